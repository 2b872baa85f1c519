#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/moe_layer.hpp"

namespace moeref::judge {

/// One token's routing as a slow, independent implementation on MPFR sees it.
struct TokenRoute {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

/// Routes one token from its f32 logits; every stage is enclosed by two MPFR numbers of growing
/// precision until both round to the same f32, quotients of f32 sums are decided by comparing exact
/// products. Selection is by repeated search for the largest. `bias` is [experts] or empty. The
/// arguments are valid and finite, except that logits may be -inf where the method allows it.
TokenRoute route_token(const Routing& routing, std::span<const float> logits,
                       std::span<const float> bias);

/// The weights alone, for given ids; -1 gives 0.
std::vector<float> weigh_token(const Routing& routing, std::span<const float> logits,
                               std::span<const std::int32_t> ids);

/// sqrt(log(1 + exp(logit))).
float sqrt_softplus(float logit);

/// factor * scores[i] / (sum of scores + epsilon) for every i; the divisor is positive.
std::vector<float> shares(std::span<const float> scores, float epsilon, float factor);

}  // namespace moeref::judge
