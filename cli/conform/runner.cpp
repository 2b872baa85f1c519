#include "cli/conform/runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <system_error>

#include "cli/conform/ops.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".safetensors";

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::passed:
      return "passed";
    case Verdict::failed:
      return "failed";
    case Verdict::skipped:
      return "skipped";
  }
  return {};
}

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator entries(folder, error);
  for (const fs::recursive_directory_iterator end; !error && entries != end;
       entries.increment(error)) {
    if (entries->is_regular_file(error) && entries->path().extension() == kExtension) {
      files.push_back(entries->path());
    }
  }
  if (error) fail(folder.string(), "cannot be searched: {}", error.message());
  std::sort(files.begin(), files.end());
  return files;
}

/// Files that lie beside cases without being cases.
bool is_case(const SafetensorsFile& file) {
  if (!has_op(file)) return false;
  if (find_operation(file.metadata().find("op")->second) != nullptr) return true;
  return std::any_of(file.tensors().begin(), file.tensors().end(),
                     [](const auto& entry) { return entry.first.starts_with("out."); });
}

/// "12 of 231 elements differ, first at [0, 4]: stored ..., moeref ..."
std::string describe(const Finding& finding) {
  if (finding.differing == 0)
    return fmt::format("{} ({}): {}", finding.output, finding.rule, finding.detail);
  const std::string_view unit = finding.rule == "set" ? "tokens differ" : "elements differ";
  const std::int64_t total =
      finding.rule == "set" && !finding.shape.empty() ? finding.shape.front() : finding.elements;
  return fmt::format("{} ({}): {} of {} {}, first at {}: {}", finding.output, finding.rule,
                     finding.differing, total, unit, coordinates(finding.shape, finding.first),
                     finding.detail);
}

std::string describe_failure(const CaseResult& result) {
  if (!result.error.empty()) return result.error;
  const auto is_failed = [](const Finding& finding) { return !finding.passed; };
  const auto first = std::find_if(result.findings.begin(), result.findings.end(), is_failed);
  const auto count = std::count_if(result.findings.begin(), result.findings.end(), is_failed);
  return describe(*first) + (count > 1 ? fmt::format(" (and {} more)", count - 1) : "");
}

nlohmann::json to_json(const Finding& finding) {
  nlohmann::json entry{
      {"name", finding.output}, {"rule", finding.rule}, {"passed", finding.passed}};
  if (finding.elements > 0) entry["elements"] = finding.elements;
  if (finding.differing > 0) {
    entry["differing"] = finding.differing;
    entry["first_index"] = finding.first;
  }
  if (!finding.detail.empty()) entry["detail"] = finding.detail;
  if (finding.rule.starts_with("bound")) {
    entry["worst_ratio"] = std::isfinite(finding.worst_ratio) ? nlohmann::json(finding.worst_ratio)
                                                              : nlohmann::json(nullptr);
  }
  return entry;
}

}  // namespace

std::vector<GoldenCase> find_cases(std::span<const fs::path> paths) {
  std::vector<GoldenCase> cases;
  for (const fs::path& path : paths) {
    std::error_code unreadable;  // then opening it says why
    if (!fs::is_directory(path, unreadable)) {
      cases.push_back(read_golden_case(path));
      continue;
    }
    for (const fs::path& file_path : files_below(path)) {
      const auto file = SafetensorsFile::open(file_path);
      if (is_case(*file)) cases.push_back(read_golden_case(file));
    }
  }
  if (cases.empty()) {
    fail(paths.empty() ? "conform" : paths.front().string(),
         "holds no golden case: a .safetensors file with \"op\" in its metadata");
  }
  return cases;
}

CaseResult run_case(const GoldenCase& golden) {
  CaseResult result{golden.path, golden.op, Verdict::skipped, {}, {}};
  const Operation run = find_operation(golden.op);
  if (run == nullptr) return result;
  try {
    const OpResult computed = run(golden);
    result.findings = computed.statements;
    for (Finding& finding : compare_outputs(golden, computed.outputs)) {
      result.findings.push_back(std::move(finding));
    }
    if (result.findings.empty()) {
      result.findings.push_back(
          statement("out.*", "bits", false, "the case has nothing to compare"));
    }
  } catch (const Error& error) {
    result.error = error.what();
  } catch (const std::exception& fault) {  // one case must not hide the others
    result.error = fmt::format("{}: internal fault: {}", golden.path.string(), fault.what());
  }
  const bool passed =
      result.error.empty() && std::all_of(result.findings.begin(), result.findings.end(),
                                          [](const Finding& finding) { return finding.passed; });
  result.verdict = passed ? Verdict::passed : Verdict::failed;
  return result;
}

std::string describe(const CaseResult& result) {
  std::string text;
  switch (result.verdict) {
    case Verdict::passed:
      text = fmt::format("passed ({})", result.op);
      break;
    case Verdict::skipped:
      text = fmt::format("skipped: unknown op {}", one_line(result.op));
      break;
    case Verdict::failed:
      text = describe_failure(result);
      break;
  }
  return one_line(fmt::format("{}: {}", result.path.string(), text), 2000);
}

nlohmann::json to_json(const CaseResult& result) {
  nlohmann::json outputs = nlohmann::json::array();
  for (const Finding& finding : result.findings) outputs.push_back(to_json(finding));
  nlohmann::json entry{{"file", result.path.string()},
                       {"op", result.op},
                       {"verdict", name_of(result.verdict)},
                       {"outputs", std::move(outputs)}};
  if (!result.error.empty()) entry["error"] = result.error;
  return entry;
}

}  // namespace moeref::conform
