#include "bench/markdown_reporter.hpp"

#include <fmt/format.h>

namespace moeref::bench {
namespace {

/// "21.5 G", "0.79", "0.01 %".
std::string text_of(const std::string& counter, double value) {
  if (counter == "one_sum" || counter == "last_resort") return fmt::format("{:.3g} %", 100 * value);
  if (value >= 1e9) return fmt::format("{:.3g} G", value / 1e9);
  return value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.2f}", value);
}

}  // namespace

bool MarkdownReporter::ReportContext(const Context&) { return true; }

void MarkdownReporter::ReportRuns(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    if (run.error_occurred || run.run_type != Run::RT_Iteration) continue;
    const std::string& name = run.run_name.function_name;
    const std::size_t slash = name.find('/');
    if (family_ != name.substr(0, slash)) {
      family_ = name.substr(0, slash);
      std::string head = "\n| case | arguments | ms |";
      std::string rule = "|---|---|---|";
      for (const auto& [counter, value] : run.counters) {
        head += fmt::format(" {} |", counter);
        rule += "---|";
      }
      fmt::print("{}\n{}\n", head, rule);
    }
    fmt::print("| {} | {} | {:.3g} |", name.substr(slash + 1), run.run_name.args,
               run.GetAdjustedRealTime());
    for (const auto& [counter, value] : run.counters) {
      fmt::print(" {} |", text_of(counter, value.value));
    }
    fmt::print("\n");
  }
}

}  // namespace moeref::bench
