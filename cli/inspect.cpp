#include "cli/inspect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <vector>

namespace moeref::cli {
namespace {

std::string shown_bytes(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 5> kUnits{"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.3g} {}", value, kUnits[unit]);
}

std::string shown_share(std::int64_t part, std::int64_t whole) {
  if (part == 0) return "-";
  const double percent = 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  return percent < 0.01 ? fmt::format("{}", part) : fmt::format("{:.2f}%", percent);
}

/// Counts that are rare and that matter: "NaN 3, inf 1, -0 17".
std::string shown_specials(const ValueStatistics& values) {
  std::string text;
  const auto add = [&](std::string_view label, std::int64_t count) {
    if (count == 0) return;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", label, count);
  };
  add("NaN", values.nans);
  add("inf", values.infinities);
  add("-0", values.negative_zeros);
  return text;
}

using Line = std::array<std::string, 11>;

Line header() {
  return {"tensor", "count",   "dtype", "shape",  "bytes", "min",
          "max",    "mean|x|", "zero",  "at max", "what"};
}

Line line_of(const TensorRow& row) {
  Line line{row.name,
            fmt::format("{}", row.count),
            std::string(name(row.dtype)),
            to_string(row.shape),
            shown_bytes(row.bytes),
            "",
            "",
            "",
            "",
            "",
            row.meaning};
  if (!row.values) return line;
  const ValueStatistics& values = *row.values;
  if (values.finite > 0) {
    line[5] = fmt::format("{:.4g}", values.min);
    line[6] = fmt::format("{:.4g}", values.max);
    line[7] = fmt::format("{:.4g}", values.mean_abs());
  }
  line[8] = shown_share(values.zeros, values.count);
  line[9] = shown_share(values.saturated, values.count);
  const std::string specials = shown_specials(values);
  if (!specials.empty()) line[10] += (line[10].empty() ? "[" : " [") + specials + "]";
  return line;
}

std::string table(const std::vector<Line>& lines, bool with_values) {
  std::array<std::size_t, std::tuple_size_v<Line>> widths{};
  for (const Line& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const Line& line : lines) {
    std::string shown;
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (!with_values && i >= 5 && i <= 9) continue;
      const bool left = i == 0 || i == 2 || i == 3 || i == 10;
      shown += left ? fmt::format("{:<{}}  ", line[i], widths[i])
                    : fmt::format("{:>{}}  ", line[i], widths[i]);
    }
    shown.erase(shown.find_last_not_of(' ') + 1);
    text += shown + "\n";
  }
  return text;
}

std::string finding_text(const Finding& finding) {
  const std::string where = finding.count == 1 ? finding.first
                                               : fmt::format("{} ({} tensors; {})", finding.tensors,
                                                             finding.count, finding.first);
  return fmt::format("{:<7} {:<28} {}\n        {}\n", name(finding.severity), finding.code, where,
                     finding.detail);
}

nlohmann::json values_json(const ValueStatistics& values) {
  const auto finite = [&](double value) {
    return values.finite > 0 ? nlohmann::json(value) : nlohmann::json();
  };
  return {{"count", values.count},         {"min", finite(values.min)},
          {"max", finite(values.max)},     {"mean_abs", finite(values.mean_abs())},
          {"zeros", values.zeros},         {"negative_zeros", values.negative_zeros},
          {"nans", values.nans},           {"infinities", values.infinities},
          {"saturated", values.saturated}, {"subnormals", values.subnormals}};
}

}  // namespace

std::string report_text(const InspectReport& report) {
  std::vector<Line> lines{header()};
  bool with_values = false;
  for (const TensorRow& row : report.rows) {
    lines.push_back(line_of(row));
    with_values = with_values || row.values.has_value();
  }
  std::string text = fmt::format("{} tensor{}, {} in {} file{}\n\n", report.tensors,
                                 report.tensors == 1 ? "" : "s", shown_bytes(report.bytes),
                                 report.files, report.files == 1 ? "" : "s");
  text += table(lines, with_values);
  if (report.findings.empty()) {
    return text + (with_values ? "\nno findings\n"
                               : "\nno findings in the headers; values were not read\n");
  }
  text += fmt::format("\n{} finding{}:\n", report.findings.size(),
                      report.findings.size() == 1 ? "" : "s");
  for (const Finding& finding : report.findings) text += finding_text(finding);
  return text;
}

nlohmann::json report_json(const InspectReport& report) {
  nlohmann::json rows = nlohmann::json::array();
  for (const TensorRow& row : report.rows) {
    rows.push_back({{"name", row.name},
                    {"count", row.count},
                    {"dtype", name(row.dtype)},
                    {"shape", row.shape},
                    {"bytes", row.bytes},
                    {"what", row.meaning}});
    if (row.values) rows.back()["values"] = values_json(*row.values);
  }
  nlohmann::json findings = nlohmann::json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back({{"severity", name(finding.severity)},
                        {"code", finding.code},
                        {"tensors", finding.tensors},
                        {"count", finding.count},
                        {"first", finding.first},
                        {"detail", finding.detail}});
  }
  return {{"files", report.files},
          {"tensors", report.tensors},
          {"bytes", report.bytes},
          {"rows", rows},
          {"findings", findings}};
}

}  // namespace moeref::cli
