#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/routing.hpp"
#include "quant/error.hpp"

// What the routing tests share.

namespace moeref::routing_tests {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
using Ids = std::vector<std::int32_t>;
using Floats = std::vector<float>;

inline Routing make(RoutingMethod method, std::int64_t top_k) {
  Routing routing;
  routing.method = method;
  routing.top_k = top_k;
  return routing;
}

inline constexpr RoutingMethod kAllMethods[] = {
    RoutingMethod::softmax_topk, RoutingMethod::topk_softmax, RoutingMethod::deepseek_v3,
    RoutingMethod::llama4,       RoutingMethod::topk_logits,  RoutingMethod::sigmoid_topk,
    RoutingMethod::minimax2,     RoutingMethod::sqrt_softplus};

inline bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

inline bool same_bytes(const Route& left, const Route& right) {
  return left.tokens == right.tokens && left.top_k == right.top_k && left.ids == right.ids &&
         left.weights.size() == right.weights.size() &&
         std::memcmp(left.weights.data(), right.weights.data(),
                     left.weights.size() * sizeof(float)) == 0;
}

/// Logits on a coarse grid: many ties.
inline Floats grid_logits(std::int64_t tokens, std::int64_t experts, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  Floats logits;
  for (std::int64_t i = 0; i < tokens * experts; ++i) {
    logits.push_back(static_cast<float>(static_cast<int>(bits() % 129) - 64) * 0.125f);
  }
  return logits;
}

inline Floats step_bias(std::int64_t experts) {
  Floats bias;
  for (std::int64_t e = 0; e < experts; ++e) {
    bias.push_back(static_cast<float>(e * 7 % 5) * 0.25f - 1.0f);
  }
  return bias;
}

/// A routing of every method over 16 experts, with all that the method has.
inline Routing full_routing(RoutingMethod method) {
  Routing routing = make(method, 4);
  routing.scaling = 2.5f;
  routing.sum_epsilon = 1e-20f;
  if (method == RoutingMethod::deepseek_v3) {
    routing.groups = 4;
    routing.kept_groups = 2;
  }
  return routing;
}

inline Floats full_bias(RoutingMethod method) {
  const bool biased = method == RoutingMethod::deepseek_v3 || method == RoutingMethod::minimax2 ||
                      method == RoutingMethod::sqrt_softplus;
  return biased ? step_bias(16) : Floats{};
}

}  // namespace moeref::routing_tests
