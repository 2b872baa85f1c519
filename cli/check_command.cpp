#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "cli/check_stages.hpp"
#include "cli/commands.hpp"
#include "cli/compare.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string actual;
  std::string golden;
  std::string checkpoint;
  std::vector<std::string> tensors;
};

struct Report {
  Causes causes;           ///< of the stages that differ
  std::string allowed_by;  ///< the order of additions that gives the bits of the output
  std::vector<Comparison> comparisons;
  std::vector<std::string> not_compared;  ///< golden tensors that ACTUAL lacks

  /// The layer's output decides, if it was compared: stages say where a difference begins. Else the
  /// worst stage.
  Verdict verdict() const {
    Verdict worst = Verdict::identical;
    for (const Comparison& comparison : comparisons) {
      if (comparison.tensor == "final") return comparison.verdict;
      worst = std::max(worst, comparison.verdict);
    }
    return worst;
  }
  const Comparison* first_differing() const {
    for (const Comparison& comparison : comparisons) {
      if (comparison.verdict != Verdict::identical) return &comparison;
    }
    return nullptr;
  }
};

/// The other order of the kernel's additions whose bits `actual` has, or nothing.
std::string matching_alternative(const SafetensorsFile& golden, std::string_view stage,
                                 const TensorView& actual) {
  const std::string prefix = fmt::format("alternative.{}.", stage);
  for (const auto& [name, tensor] : golden.tensors()) {
    if (name.starts_with(prefix) && tensor.shape == actual.shape && same_bytes(tensor, actual)) {
      return name.substr(prefix.size());
    }
  }
  return {};
}

Report compare_files(const Arguments& arguments) {
  const auto actual = SafetensorsFile::open(arguments.actual);
  const auto golden = SafetensorsFile::open(arguments.golden);
  if (golden->find("out.final") == nullptr) {
    fail(arguments.golden, "has no tensor out.final; give a golden file that moeref golden wrote");
  }
  for (const std::string& wanted : arguments.tensors) {
    if (golden->find("out." + wanted) == nullptr) golden->at("out." + wanted);
    if (find_actual(*actual, wanted) == nullptr) actual->at(wanted);
  }
  const TensorView* golden_ids = find_ids(*golden);
  const TensorView* actual_ids = find_actual(*actual, "topk_ids");
  if (arguments.tensors.empty() && find_actual(*actual, "final") == nullptr) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : actual->tensors()) names.push_back(name);
    if (names.size() > 8) names.resize(8);
    fail(arguments.actual,
         "has no tensor 'final', the layer's output (found {}); save it under that name, or name "
         "stages with --tensor",
         fmt::join(names, ", "));
  }
  const ExpertRows expert_rows(*golden, golden_ids);
  Report report;
  for (const std::string_view stage : kStageOrder) {
    const bool wanted = arguments.tensors.empty() ||
                        std::find(arguments.tensors.begin(), arguments.tensors.end(), stage) !=
                            arguments.tensors.end();
    const TensorView* expected = golden->find("out." + std::string(stage));
    const TensorView* found = find_actual(*actual, stage);
    if (!wanted || expected == nullptr) continue;
    if (found == nullptr) {
      report.not_compared.emplace_back(stage);
      continue;
    }
    const Context context{golden->find("low." + std::string(stage)),
                          golden->find("high." + std::string(stage)), golden_ids};
    const std::optional<Tensor> golden_rows = expert_rows.by_slot(*expected);
    const std::optional<Tensor> actual_rows = expert_rows.by_slot(*found);
    if (golden_rows && actual_rows) {
      report.comparisons.push_back(
          compare_tensors(std::string(stage), actual_rows->view(), golden_rows->view(), context));
      continue;
    }
    if (const std::string order = matching_alternative(*golden, stage, *found); !order.empty()) {
      Comparison comparison = compare_tensors(std::string(stage), *found, *expected, context);
      comparison.verdict = Verdict::allowed;
      report.comparisons.push_back(std::move(comparison));
      report.allowed_by = order;
      continue;
    }
    std::optional<Tensor> aligned;
    if (actual_ids != nullptr && golden_ids != nullptr) {
      aligned = align_slots(*found, *actual_ids, *golden_ids);
    }
    report.comparisons.push_back(compare_tensors(
        std::string(stage), aligned ? aligned->view() : *found, *expected, context));
  }
  return report;
}

std::string text_of(const Cause& cause) {
  const std::string input =
      cause.input.empty() ? "the layer's inputs" : fmt::format("the file's own {}", cause.input);
  if (cause.follows) {
    return fmt::format("{}: wrong input: recomputed from {} it is what the file holds", cause.stage,
                       input);
  }
  return fmt::format(
      "{}: computed something else: recomputed from {}, {} elements differ from the "
      "file's",
      cause.stage, input, cause.differing);
}

void run_check(const Arguments& arguments, const GlobalOptions& global) {
  Report report = compare_files(arguments);
  if (report.first_differing() != nullptr) {
    report.causes = explain(arguments.actual, arguments.golden, arguments.checkpoint,
                            report.comparisons, global);
  }
  const Verdict verdict = report.verdict();
  const Comparison* first = report.first_differing();
  if (global.json) {
    nlohmann::json json{{"verdict", name(verdict)},
                        {"tensors", nlohmann::json::array()},
                        {"not_compared", report.not_compared}};
    if (first != nullptr) json["first_differing"] = first->tensor;
    json["causes"] = nlohmann::json::array();
    for (const Cause& cause : report.causes.causes) {
      json["causes"].push_back({{"stage", cause.stage},
                                {"input", cause.input},
                                {"follows_from_input", cause.follows},
                                {"differing", cause.differing}});
    }
    if (!report.allowed_by.empty()) json["allowed_by"] = report.allowed_by;
    if (!report.causes.not_explained.empty()) json["not_explained"] = report.causes.not_explained;
    for (const Comparison& comparison : report.comparisons) {
      json["tensors"].push_back(to_json(comparison));
    }
    print_json(json);
  } else if (!global.quiet) {
    for (const Comparison& comparison : report.comparisons) fmt::print("{}", to_text(comparison));
    if (!report.not_compared.empty()) {
      fmt::print("not compared, absent in {}: {}\n", arguments.actual,
                 fmt::join(report.not_compared, ", "));
    }
    for (const Cause& cause : report.causes.causes) fmt::print("{}\n", text_of(cause));
    if (!report.causes.not_explained.empty() && first != nullptr && report.comparisons.size() > 1) {
      fmt::print("stages were not recomputed: {}\n", report.causes.not_explained);
    }
    if (!report.allowed_by.empty()) {
      fmt::print("final: the bits of the same kernel with {}\n", report.allowed_by);
    }
    fmt::print("{}{}\n", name(verdict),
               first != nullptr ? ": the first difference is in " + first->tensor : "");
  }
  if (verdict == Verdict::wrong) throw ExitWith{1};
}

}  // namespace

void add_check_command(CLI::App& app, const GlobalOptions& global) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("check", "compare a GPU's output (and stages) with a golden file");
  command->add_option("actual", arguments->actual, "safetensors file with the output to judge")
      ->required();
  command->add_option("golden", arguments->golden, "golden file that moeref golden wrote")
      ->required();
  command->add_option(
      "--checkpoint", arguments->checkpoint,
      "the checkpoint of the golden file, if it is not where the file says: stages "
      "that differ are computed again from the stage before them that ACTUAL holds");
  command->add_option("--tensor", arguments->tensors,
                      "compare only these: final, gemm1, act, gemm2, topk_ids, ...");
  command->footer(
      "Verdicts: identical (same bits), allowed (inside the bounds of a file made with golden\n"
      "--bounds; without bounds any other bit is wrong), wrong. The layer's output 'final' "
      "decides;\n"
      "stages say where a difference begins, and whether a stage had a wrong input or computed\n"
      "something else. Exit code 0 for identical and allowed, 1 for wrong.\n"
      "Examples:\n"
      "  moeref check gpu.safetensors golden/CASE.safetensors\n"
      "  moeref check gpu.safetensors golden/CASE.safetensors --tensor gemm1 --json");
  command->callback([arguments, &global] { run_check(*arguments, global); });
}

}  // namespace moeref::cli
