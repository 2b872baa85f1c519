#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cli/commands.hpp"
#include "cli/compare.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

struct Arguments {
  std::string actual;
  std::string golden;
  std::vector<std::string> tensors;
};

// Results in the order in which a layer computes them: the first that differs is where to look.
constexpr std::array<std::string_view, 12> kStageOrder{
    "router_logits", "topk_ids",     "topk_weights", "fc1",          "gemm1",   "act",
    "gemm2",         "shared_gemm1", "shared_act",   "shared_gemm2", "combine", "final"};

bool is_stage(std::string_view tensor) {
  if (tensor.starts_with("out.")) tensor.remove_prefix(4);
  return std::find(kStageOrder.begin(), kStageOrder.end(), tensor) != kStageOrder.end();
}

/// The tensor of ACTUAL that stands for `name`: out.NAME, NAME, for the last stage also "output" or
/// the only tensor if its name is none of the stages'.
const TensorView* find_actual(const SafetensorsFile& file, std::string_view name) {
  if (const TensorView* tensor = file.find("out." + std::string(name))) return tensor;
  if (const TensorView* tensor = file.find(name)) return tensor;
  if (name != "final") return nullptr;
  if (const TensorView* tensor = file.find("output")) return tensor;
  if (file.tensors().size() == 1 && !is_stage(file.tensors().begin()->first)) {
    return &file.tensors().begin()->second;
  }
  return nullptr;
}

const TensorView* find_ids(const SafetensorsFile& golden) {
  if (const TensorView* ids = golden.find("out.topk_ids")) return ids;
  return golden.find("in.topk_ids");
}

struct Report {
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
    std::optional<Tensor> aligned;
    if (actual_ids != nullptr && golden_ids != nullptr) {
      aligned = align_slots(*found, *actual_ids, *golden_ids);
    }
    report.comparisons.push_back(compare_tensors(
        std::string(stage), aligned ? aligned->view() : *found, *expected, context));
  }
  return report;
}

void run_check(const Arguments& arguments, const GlobalOptions& global) {
  const Report report = compare_files(arguments);
  const Verdict verdict = report.verdict();
  const Comparison* first = report.first_differing();
  if (global.json) {
    nlohmann::json json{{"verdict", name(verdict)},
                        {"tensors", nlohmann::json::array()},
                        {"not_compared", report.not_compared}};
    if (first != nullptr) json["first_differing"] = first->tensor;
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
  command->add_option("--tensor", arguments->tensors,
                      "compare only these: final, gemm1, act, gemm2, topk_ids, ...");
  command->footer(
      "Verdicts: identical (same bits), allowed (inside the bounds of a file made with golden\n"
      "--bounds; without bounds any other bit is wrong), wrong. The layer's output 'final' "
      "decides;\n"
      "stages say where a difference begins. Exit code 0 for identical and allowed, 1 for wrong.\n"
      "Examples:\n"
      "  moeref check gpu.safetensors golden/CASE.safetensors\n"
      "  moeref check gpu.safetensors golden/CASE.safetensors --tensor gemm1 --json");
  command->callback([arguments, &global] { run_check(*arguments, global); });
}

}  // namespace moeref::cli
