#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/moe_layer.hpp"

namespace moeref {

/// Which experts each token goes to, with which weight. Slots of a token lie side by side.
struct Route {
  std::int64_t tokens = 0;
  std::int64_t top_k = 0;
  std::vector<std::int32_t> ids;  ///< [tokens, top_k]; -1 = no expert in this slot
  std::vector<float> weights;     ///< [tokens, top_k]
};

/// "softmax_topk", ...
std::string_view name(RoutingMethod method);

/// Carries out `routing` on f32 logits [tokens, experts], row-major. Every score, choice value,
/// group score and weight is one rounding to f32 of its exact value from the f32 values of the
/// stage before; selection looks at the f32 values, ties go to the lower index, -0 equals +0. Slots
/// are listed by falling choice value, then rising index. What each method does (z = logits, s =
/// scores, b = bias, sums and softmax weights are exact, rsf = `scaling`, eps = `sum_epsilon`):
///
///     method         scores                choice   weight of a chosen expert
///     softmax_topk   softmax of all z      s        s rsf / (sum s + eps), or s rsf
///     topk_softmax   z                     z        rsf softmax over the chosen z
///     deepseek_v3    sigma(z)              s + b    s rsf / (sum s + eps), or s rsf
///     llama4         z                     z        rsf sigma(z)
///     topk_logits    z                     z        z rsf
///     sigmoid_topk   sigma(z)              s        s rsf / (sum s + eps), or s rsf
///     minimax2       sigma(z)              s + b    s rsf / (sum s + eps)
///     sqrt_softplus  sqrt(log1p(exp z))    s + b    s rsf / (sum s + eps)
///
/// The second form of a weight holds if `renormalize` is false; the other methods have one form
/// only. eps is the f32 in `sum_epsilon`: the Python constant 1e-20 enters as the f32 nearest to
/// it. deepseek_v3 keeps the `kept_groups` groups with the largest sum of their two largest choice
/// values (a group of one expert: its one value). An expert outside them is never chosen under
/// MaskFill::minus_infinity and has the choice value 0 under MaskFill::zero.
///
/// `selection_bias` is [experts] or empty; -inf keeps an expert out as long as others are left. A
/// logit of -inf has probability, sigma and softplus 0, one of +inf sigma 1. `threads`: 0 = all;
/// the result does not depend on it.
/// Error: a NaN logit or bias (names token and expert); +inf in a softmax or softplus; a softmax of
/// -inf alone; chosen scores that are all 0 with eps 0; top_k or groups that do not fit the expert
/// count; a bias for a method without one; `scaling` outside [2^-64, FLT_MAX].
/// Source: flashinfer@fb28d7242 RoutingMethodType; transformers 5.17.0 DeepseekV3MoE,
/// DeepseekV4SparseMoeBlock; DeepSeek-V4 inference code for the weights that are always shares.
Route route_logits(const Routing& routing, std::span<const float> logits, std::int64_t experts,
                   std::span<const float> selection_bias, int threads = 0);

/// As above, but the ids are given (`ids` [tokens, top_k], e.g. from a table by token id) and only
/// the weights are computed. Slots keep their order; -1 has weight 0; an expert named twice counts
/// twice in the sum. Error: also an id outside [-1, experts), sizes that disagree.
Route weigh_given_experts(const Routing& routing, std::span<const float> logits,
                          std::int64_t experts, std::span<const std::int32_t> ids, int threads = 0);

/// Checks a routing that came from outside. Error: an id outside [-1, experts), an expert twice in
/// one token, a NaN weight, sizes that disagree. `subject` names where it came from.
void check_route(const Route& route, std::int64_t experts, const std::string& subject);

}  // namespace moeref
