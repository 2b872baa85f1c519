#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/bounds/dense.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::bounds {

/// Experts and weights of every slot, the weights with their errors.
struct BoundedRoute {
  std::int64_t tokens = 0;
  std::int64_t top_k = 0;
  std::vector<std::int32_t> ids;  ///< [tokens, top_k]; -1 = no expert in this slot
  std::vector<Bounded> weights;   ///< [tokens, top_k]
};

/// A route whose weights every evaluation has exactly. Error: sizes that disagree.
BoundedRoute exact_route(std::span<const std::int32_t> ids, std::span<const double> weights,
                         std::int64_t tokens, std::int64_t top_k);

/// Logits hidden * router^T (+ router bias) [tokens, experts].
BoundedMatrix router_logits(const Arithmetic& arithmetic, const MoeLayer& layer,
                            const BoundedMatrix& hidden);

/// The scores by which experts are chosen, [tokens, experts]: score + selection bias, or the logits
/// where the score rises with them and has no bias.
BoundedMatrix choice_values(const Arithmetic& arithmetic, const MoeLayer& layer,
                            const BoundedMatrix& logits, const BoundedMatrix& selection_bias);

/// The `top_k` experts of one token by falling choice value, ties to the lower index, groups as
/// `routing` says.
std::vector<std::int32_t> choose(const Routing& routing, std::span<const double> choices);

/// True if an evaluation within the errors of `choices` (one token) may choose exactly the set
/// `ids`.
bool may_choose(const Routing& routing, const BoundedMatrix& choices, std::int64_t token,
                std::span<const std::int32_t> ids);

/// The weights of given experts [tokens, top_k]. Error: an id outside the experts.
BoundedRoute weigh(const Arithmetic& arithmetic, const MoeLayer& layer, const BoundedMatrix& logits,
                   std::span<const std::int32_t> ids, std::int64_t top_k);

/// Ids by the layer's table of token ids, [tokens, top_k]. Error: no table, a token id outside it.
std::vector<std::int32_t> look_up_experts(const MoeLayer& layer,
                                          std::span<const std::int64_t> input_ids);

}  // namespace moeref::bounds
