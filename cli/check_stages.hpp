#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.hpp"
#include "cli/compare.hpp"
#include "io/safetensors.hpp"
#include "quant/tensor.hpp"

// The stages of a golden file and of the file that is checked: how they are found, in which order
// their rows lie, and what a stage that differs was computed from.

namespace moeref::cli {

// Results in the order in which a layer computes them: the first that differs is where to look.
inline constexpr std::array<std::string_view, 16> kStageOrder{
    "router_logits", "topk_ids",     "topk_weights", "fc1",  "a1_q",  "a1_s",
    "gemm1",         "act",          "a2_q",         "a2_s", "gemm2", "shared_gemm1",
    "shared_act",    "shared_gemm2", "combine",      "final"};

/// The tensor of ACTUAL that stands for `name`: out.NAME, NAME, for the last stage also "output" or
/// the only tensor if its name is none of the stages'.
const TensorView* find_actual(const SafetensorsFile& file, std::string_view name);
/// out.topk_ids, or the routing that was given; null if there is none.
const TensorView* find_ids(const SafetensorsFile& golden);

/// The same type and bytes; the shape may differ.
bool same_bytes(const TensorView& left, const TensorView& right);

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
  /// `ids` [tokens, top_k] may be null. Error: metadata params that name no experts or rank.
  ExpertRows(const SafetensorsFile& golden, const TensorView* ids);
  /// The tensor [tokens, top_k, n]; nothing if it is no stage of such rows.
  std::optional<Tensor> by_slot(const TensorView& rows) const;

 private:
  const TensorView* ids_;
  std::vector<std::int64_t> slots_;
};

struct Causes {
  std::vector<Cause> causes;  ///< in the order of the comparisons
  std::string not_explained;  ///< why there are none
};

/// Recomputes each stage that differs from the nearest stage before it that ACTUAL holds.
/// `checkpoint`: as read_golden_job.
Causes explain(const std::string& actual, const std::string& golden, const std::string& checkpoint,
               const std::vector<Comparison>& comparisons, const GlobalOptions& global);

}  // namespace moeref::cli
