#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/moe_layer.hpp"

namespace moeref {

/// Scratch space of one thread.
struct SelectionScratch {
  std::vector<std::int32_t> order;
  std::vector<std::int32_t> groups;
  std::vector<float> group_scores;
  std::vector<float> masked;
  std::vector<bool> kept;
};

/// The `count` indices of `values` that come first by falling value, then rising index, in that
/// order. No value is NaN, -0 equals +0. `kept` says which indices take part (empty = all); at
/// least `count` do. The order is total: no library's sort shows in the result.
void select_largest(std::span<const float> values, const std::vector<bool>& kept,
                    std::int64_t count, std::vector<std::int32_t>& order);

/// The `top_k` experts of a token by their choice values, with the groups and the mask of
/// `routing`. The result lies in `scratch.order`.
void select_experts(const Routing& routing, std::span<const float> choices,
                    SelectionScratch& scratch);

}  // namespace moeref
