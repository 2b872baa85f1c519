// moeref conform: runs golden operation cases and compares what they store with what moeref
// computes.
#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "cli/conform/runner.hpp"

namespace moeref::cli {
namespace {

struct ConformOptions {
  std::vector<std::filesystem::path> paths;
  bool verbose = false;
};

struct Counts {
  int passed = 0;
  int failed = 0;
  int skipped = 0;

  void add(conform::Verdict verdict) {
    const std::array counters{&passed, &failed, &skipped};
    ++*counters[static_cast<std::size_t>(verdict)];
  }
  std::string summary() const {
    const std::string text = fmt::format("{} passed, {} failed", passed, failed);
    return skipped > 0 ? fmt::format("{}, {} skipped", text, skipped) : text;
  }
};

void print_case(const conform::CaseResult& result, const ConformOptions& options) {
  const bool is_failed = result.verdict == conform::Verdict::failed;
  if (is_failed || options.verbose) fmt::print("{}\n", conform::describe(result));
}

void run_conform(const ConformOptions& options, const GlobalOptions& global) {
  Counts counts;
  nlohmann::json cases = nlohmann::json::array();
  for (const GoldenCase& golden : conform::find_cases(options.paths)) {
    const conform::CaseResult result = conform::run_case(golden);
    counts.add(result.verdict);
    if (global.json) {
      cases.push_back(conform::to_json(result));
    } else {
      print_case(result, options);
    }
  }
  if (global.json) {
    const nlohmann::json report{{"passed", counts.passed},
                                {"failed", counts.failed},
                                {"skipped", counts.skipped},
                                {"cases", std::move(cases)}};
    print_json(report);
  } else if (!global.quiet) {
    fmt::print("{}\n", counts.summary());
  }
  if (counts.failed + counts.skipped > 0) throw ExitWith{1};
}

}  // namespace

void add_conform_command(CLI::App& app, const GlobalOptions& global) {
  const auto options = std::make_shared<ConformOptions>();
  CLI::App* command = app.add_subcommand("conform", "run golden operation cases");
  command->add_option("FILE", options->paths, "case files, or folders that hold them")->required();
  command->add_flag("--verbose", options->verbose, "name the cases that pass or are skipped, too");
  command->footer(
      "Compares every output of a case bit for bit, or as its \"compare\" metadata says.\n"
      "Exit code 0: all passed; 1: a case failed, or was skipped because its op is unknown;\n"
      "2: a file that is no case.\n"
      "Example: moeref conform data/golden/formats data/golden/models --verbose");
  command->callback([options, &global] { run_conform(*options, global); });
}

}  // namespace moeref::cli
