#include "cli/check_stages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "cli/golden_job.hpp"
#include "cli/moe_case.hpp"
#include "quant/error.hpp"

namespace moeref::cli {
namespace {

bool is_stage(std::string_view tensor) {
  if (tensor.starts_with("out.")) tensor.remove_prefix(4);
  return std::find(kStageOrder.begin(), kStageOrder.end(), tensor) != kStageOrder.end();
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

}  // namespace

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

bool same_bytes(const TensorView& left, const TensorView& right) {
  return left.dtype == right.dtype && left.bytes.size() == right.bytes.size() &&
         std::equal(left.bytes.begin(), left.bytes.end(), right.bytes.begin());
}

ExpertRows::ExpertRows(const SafetensorsFile& golden, const TensorView* ids) : ids_(ids) {
  if (ids == nullptr || !is_id_tensor(*ids)) return;
  const std::optional<ExpertRange> local = rows_by_expert(golden);
  if (!local) return;
  for (std::int64_t slot = 0; slot < ids->size(); ++slot) {
    const std::int64_t id = id_at(*ids, slot);
    if (id >= local->begin && id < local->end) slots_.push_back(slot);
  }
  std::stable_sort(slots_.begin(), slots_.end(), [&](std::int64_t left, std::int64_t right) {
    return id_at(*ids, left) < id_at(*ids, right);
  });
}

std::optional<Tensor> ExpertRows::by_slot(const TensorView& rows) const {
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

Causes explain(const std::string& actual_file, const std::string& golden_file,
               const std::string& checkpoint, const std::vector<Comparison>& comparisons,
               const GlobalOptions& global) {
  Causes report;
  const auto actual = SafetensorsFile::open(actual_file);
  Stages given;
  std::vector<Tensor> computed;
  try {
    given = stages_of(*actual, *SafetensorsFile::open(golden_file));
    if (given.empty()) {
      report.not_explained = "no stage is dumped";
      return report;
    }
    GoldenJob job = read_golden_job(golden_file, checkpoint);
    job.options.stages = true;
    job.options.given = &given;
    const ComputedCase result = compute_case(job.layer, job.inputs, job.options, global, "check");
    computed = output_tensors(job.layer, result, job.options);
  } catch (const Error& missing) {
    report.not_explained = missing.what();
    return report;
  }
  for (const Comparison& comparison : comparisons) {
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
  return report;
}

}  // namespace moeref::cli
