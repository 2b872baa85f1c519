#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/routing_kernels.hpp"

// What routing as a kernel refuses, in one line each.

namespace moeref {

inline constexpr std::string_view kRouterLogits = "router logits";

/// Whether the method's weights are shares of their sum.
bool wants_shares(const Routing& routing);

/// Method, sizes, scaling, types. Error: see route_logits_as.
void check_kernel(const RoutingKernel& kernel, const Routing& routing, std::int64_t experts);
void check_kernel_bias(const RoutingKernel& kernel, std::span<const float> bias,
                       std::int64_t experts);
/// Returns the number of tokens.
std::int64_t check_kernel_logits(const RoutingKernel& kernel, std::span<const float> logits,
                                 std::int64_t experts);
void check_given_ids(std::span<const std::int32_t> ids, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t experts);
/// Error: a logit of +infinity, or none that is finite.
void check_softmax(std::int64_t token, std::span<const float> logits);

}  // namespace moeref
