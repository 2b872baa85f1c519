#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "cli/commands.hpp"
#include "cli/compare.hpp"
#include "cli/golden_job.hpp"
#include "cli/selection.hpp"
#include "io/json_file.hpp"
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

// Results in the order in which a layer computes them: the first that differs is where to look.
constexpr std::array<std::string_view, 16> kStageOrder{
    "router_logits", "topk_ids",     "topk_weights", "fc1",  "a1_q",  "a1_s",
    "gemm1",         "act",          "a2_q",         "a2_s", "gemm2", "shared_gemm1",
    "shared_act",    "shared_gemm2", "combine",      "final"};

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

// Stages in chains: each is computed from the one before it that a layer has.
constexpr std::array<std::string_view, 8> kMainChain{"fc1",  "a1_q",  "gemm1",   "act",
                                                     "a2_q", "gemm2", "combine", "final"};
constexpr std::array<std::string_view, 3> kSharedChain{"shared_gemm1", "shared_act",
                                                       "shared_gemm2"};

using Stages = std::map<std::string, Tensor, std::less<>>;

/// The nearest stage before `stage` among the given ones; empty = the layer's inputs. Nothing: no
/// stage of a chain.
std::optional<std::string> input_of(std::string_view stage, const Stages& given) {
  if (stage == "a1_s") stage = "a1_q";
  if (stage == "a2_s") stage = "a2_q";
  const auto search = [&](std::span<const std::string_view> chain) -> std::optional<std::string> {
    auto at = std::find(chain.begin(), chain.end(), stage);
    if (at == chain.end()) return std::nullopt;
    while (at != chain.begin()) {
      if (given.contains(*--at)) return std::string(*at);
    }
    return "";
  };
  const std::optional<std::string> found = search(kMainChain);
  return found ? found : search(kSharedChain);
}

/// Whether a stage that differs follows from the input that it had.
struct Cause {
  std::string stage;
  std::string input;     ///< the dumped stage before it; empty = the layer's inputs
  bool follows = false;  ///< recomputed from that input it is what the file holds
  std::int64_t differing = 0;
};

/// Rows of local experts, one after the other, back to one row a slot: what stages of
/// RowOrder::by_expert need to be told by token.
class ExpertRows {
 public:
  ExpertRows(const SafetensorsFile& golden, const TensorView* ids) : ids_(ids) {
    const auto found = golden.metadata().find("params");
    if (found == golden.metadata().end() || ids == nullptr || ids->shape.size() != 2) return;
    const nlohmann::json params =
        parse_json_object(golden.path().string() + ": metadata params", found->second);
    if (params.value("rows", nlohmann::json()) != "by_expert") return;
    std::int64_t rank = 0;
    std::int64_t ranks = 1;
    parse_rank("params.ep", params.value("ep", std::string("0/1")), rank, ranks);
    const std::int64_t experts = params.value("experts", std::int64_t{0}) / ranks;
    for (std::int64_t expert = rank * experts; expert < (rank + 1) * experts; ++expert) {
      for (std::int64_t slot = 0; slot < ids->size(); ++slot) {
        const std::int64_t id =
            ids->dtype == DType::i64 ? ids->at<std::int64_t>(slot) : ids->at<std::int32_t>(slot);
        if (id == expert) slots_.push_back(slot);
      }
    }
  }

  /// The tensor [tokens, top_k, n]; nothing if it is no stage of such rows.
  std::optional<Tensor> by_slot(const TensorView& rows) const {
    const auto count = static_cast<std::int64_t>(slots_.size());
    if (count == 0 || rows.shape.size() != 2 || rows.shape[0] != count) return std::nullopt;
    const std::size_t row_bytes = rows.bytes.size() / slots_.size();
    Tensor tensor{rows.name, rows.dtype, {ids_->shape[0], ids_->shape[1], rows.shape[1]}, {}};
    tensor.bytes.resize(static_cast<std::size_t>(ids_->size()) * row_bytes);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      std::copy_n(rows.bytes.begin() + static_cast<std::ptrdiff_t>(i * row_bytes), row_bytes,
                  tensor.bytes.begin() +
                      static_cast<std::ptrdiff_t>(static_cast<std::size_t>(slots_[i]) * row_bytes));
    }
    return tensor;
  }

 private:
  const TensorView* ids_;
  std::vector<std::int64_t> slots_;
};

struct Report {
  std::vector<Cause> causes;  ///< of the stages that differ, in their order
  std::string not_explained;  ///< why there are no causes, if stages differ
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
    std::optional<Tensor> aligned;
    if (actual_ids != nullptr && golden_ids != nullptr) {
      aligned = align_slots(*found, *actual_ids, *golden_ids);
    }
    report.comparisons.push_back(compare_tensors(
        std::string(stage), aligned ? aligned->view() : *found, *expected, context));
  }
  return report;
}

bool same_bytes(const TensorView& left, const TensorView& right) {
  return left.dtype == right.dtype && left.bytes.size() == right.bytes.size() &&
         std::equal(left.bytes.begin(), left.bytes.end(), right.bytes.begin());
}

std::int64_t count_differing(const TensorView& left, const TensorView& right) {
  const std::size_t size = static_cast<std::size_t>(info(left.dtype).bits / 8);
  std::int64_t count = 0;
  for (std::size_t at = 0; at < left.bytes.size(); at += size) {
    count += std::equal(left.bytes.begin() + static_cast<std::ptrdiff_t>(at),
                        left.bytes.begin() + static_cast<std::ptrdiff_t>(at + size),
                        right.bytes.begin() + static_cast<std::ptrdiff_t>(at))
                 ? 0
                 : 1;
  }
  return count;
}

/// The stages that a file holds, its slots in the order of the golden file's. Error: the file has
/// another routing, so that its stages are those of other experts.
Stages stages_of(const SafetensorsFile& file, const SafetensorsFile& golden) {
  const TensorView* ids = find_actual(file, "topk_ids");
  const TensorView* golden_ids = find_ids(golden);
  const bool routed = ids != nullptr && golden_ids != nullptr;
  if (routed) {
    const std::optional<Tensor> aligned = align_slots(*ids, *ids, *golden_ids);
    const Comparison routing = compare_tensors("topk_ids", aligned ? aligned->view() : *ids,
                                               *golden_ids, {nullptr, nullptr, nullptr});
    if (routing.differing != 0 || !routing.mismatch.empty()) {
      fail(file.path().string(), "its topk_ids are not those of the golden file");
    }
  }
  Stages stages;
  for (const std::string_view stage : kStageOrder) {
    if (stage == "final" || stage == "router_logits" || stage.starts_with("topk_")) continue;
    const TensorView* found = find_actual(file, stage);
    if (found == nullptr) continue;
    std::optional<Tensor> tensor;
    if (routed) tensor = align_slots(*found, *ids, *golden_ids);
    if (!tensor) {
      tensor = Tensor{"", found->dtype, found->shape, {found->bytes.begin(), found->bytes.end()}};
    }
    tensor->name = stage;
    stages.emplace(stage, std::move(*tensor));
  }
  return stages;
}

/// Recomputes each stage that differs from the nearest stage before it that ACTUAL holds.
void explain(const Arguments& arguments, const GlobalOptions& global, Report& report) {
  const auto actual = SafetensorsFile::open(arguments.actual);
  Stages given;
  std::vector<Tensor> computed;
  try {
    given = stages_of(*actual, *SafetensorsFile::open(arguments.golden));
    if (given.empty()) {
      report.not_explained = "no stage is dumped";
      return;
    }
    GoldenJob job = read_golden_job(arguments.golden, arguments.checkpoint);
    job.options.stages = true;
    job.options.given = &given;
    const ComputedCase result = compute_case(job.layer, job.inputs, job.options, global, "check");
    computed = output_tensors(job.layer, result, job.options);
  } catch (const Error& missing) {
    report.not_explained = missing.what();
    return;
  }
  for (const Comparison& comparison : report.comparisons) {
    if (comparison.verdict == Verdict::identical) continue;
    const std::optional<std::string> input = input_of(comparison.tensor, given);
    if (!input) continue;
    const auto seen = given.find(comparison.tensor);
    const TensorView* final = find_actual(*actual, comparison.tensor);
    const auto again = std::find_if(computed.begin(), computed.end(), [&](const Tensor& tensor) {
      return tensor.name == "out." + comparison.tensor;
    });
    if (final == nullptr || again == computed.end()) continue;
    const TensorView found = seen != given.end() ? seen->second.view() : *final;
    if (found.dtype != again->dtype || found.bytes.size() != again->bytes.size()) continue;
    Cause cause;
    cause.stage = comparison.tensor;
    cause.input = *input;
    cause.follows = same_bytes(found, again->view());
    cause.differing = cause.follows ? 0 : count_differing(found, again->view());
    report.causes.push_back(std::move(cause));
  }
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
  if (report.first_differing() != nullptr) explain(arguments, global, report);
  const Verdict verdict = report.verdict();
  const Comparison* first = report.first_differing();
  if (global.json) {
    nlohmann::json json{{"verdict", name(verdict)},
                        {"tensors", nlohmann::json::array()},
                        {"not_compared", report.not_compared}};
    if (first != nullptr) json["first_differing"] = first->tensor;
    json["causes"] = nlohmann::json::array();
    for (const Cause& cause : report.causes) {
      json["causes"].push_back({{"stage", cause.stage},
                                {"input", cause.input},
                                {"follows_from_input", cause.follows},
                                {"differing", cause.differing}});
    }
    if (!report.not_explained.empty()) json["not_explained"] = report.not_explained;
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
    for (const Cause& cause : report.causes) fmt::print("{}\n", text_of(cause));
    if (!report.not_explained.empty() && first != nullptr && report.comparisons.size() > 1) {
      fmt::print("stages were not recomputed: {}\n", report.not_explained);
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
