#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/conform/aiter_forward_operands.hpp"
#include "engine/bounds/staged.hpp"

// The rest of what cases of aiter's torch references state: sizes, slots, biases, the activation.
// Source: ROCm/aiter@e4048607a535 aiter/fused_moe.py get_inter_dim, torch_moe, torch_moe_stage1,
// torch_moe_stage2, swiglu, situv2; aiter/ops/quant.py get_torch_act.

namespace moeref::conform::aiter {

/// The slots of all tokens: [tokens, top_k].
struct Slots {
  std::int64_t tokens = 0;
  std::int64_t top_k = 0;
  std::vector<std::int64_t> experts;  ///< by local index; -1 = none here
  std::vector<double> weights;
};

/// in.topk_ids and in.topk_weight [tokens, top_k]; ids that are none of `experts` are -1.
Slots read_slots(const GoldenCase& golden, std::int64_t tokens, std::int64_t experts);
/// The slots with global ids: the local ones are the running sum of in.expert_mask less 1, -1 where
/// the mask is 0. Ids below 0 count from the end, as torch's indices do. Error: an id outside the
/// mask.
void map_to_local(const GoldenCase& golden, Slots& slots, std::int64_t experts);

/// One row of numbers for each expert.
struct ExpertRows {
  std::int64_t each = 0;
  std::vector<double> values;

  std::span<const double> of(std::int64_t expert) const {
    return std::span(values).subspan(static_cast<std::size_t>(expert * each),
                                     static_cast<std::size_t>(each));
  }
};

/// in.`name` [experts, ...] with `width` numbers for each expert, or one for all columns; nothing
/// if absent. Error: too few experts, another width.
std::optional<ExpertRows> read_expert_rows(const GoldenCase& golden, std::string_view name,
                                           std::int64_t experts, std::int64_t width);

/// Sizes of the experts as get_inter_dim takes them from the shapes of w1 and w2.
struct Sizes {
  std::int64_t experts = 0;
  std::int64_t hidden = 0;
  std::int64_t rows = 0;          ///< of w1
  std::int64_t intermediate = 0;  ///< twice the width of w2 where w1 is packed
  bool gated() const { return rows == 2 * intermediate; }
};

/// From in.w1 and in.w2, or in.w2_shape alone. Error: shapes that do not fit.
Sizes read_sizes(const GoldenCase& golden);

/// A flag; nothing if absent or null. Error: not a boolean.
std::optional<bool> optional_flag(const GoldenCase& golden, std::string_view name);
/// A parameter for a message.
std::string shown_param(const GoldenCase& golden, std::string_view name);

/// params.activation: the name before "_lim" and a remark in brackets, as in "silu_lim2" and
/// "gelu(erf)"; absent = silu. Error: another name.
bounds::StageFunction read_function(const GoldenCase& golden);
/// The activation of stage 1: params.activation, swiglu_limit, situ_beta, situ_linear_beta,
/// default_swiglu. Error: not numbers, an activation of halves without a gate.
bounds::StageActivation read_activation(const GoldenCase& golden,
                                        const bounds::Arithmetic& arithmetic, bool gated);

}  // namespace moeref::conform::aiter
