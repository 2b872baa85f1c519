#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/routing_kernels.hpp"

namespace moeref {

/// What the selection of one token looks at.
struct RoutingChoices {
  std::span<const float> values;  ///< [experts], no NaN
  std::int64_t groups = 1;        ///< 1: no selection of groups
  std::int64_t kept_groups = 1;
  std::int64_t top_k = 1;
};

/// Scratch space of one thread.
struct KernelSelection {
  std::vector<float> group_scores;
  std::vector<bool> kept;  ///< [experts]; empty = all
  std::vector<float> masked;
  std::vector<std::int32_t> order;  ///< the result: experts by slot
};

/// The experts that `kernel` chooses, ties that it leaves open going to the lower index.
void select_as(const RoutingKernel& kernel, const RoutingChoices& choices,
               KernelSelection& selection);

/// Why `ids` cannot be a choice of `kernel`, or nothing. `kernel.ties` is `unspecified`.
std::optional<std::string> open_selection_fault(const RoutingKernel& kernel,
                                                const RoutingChoices& choices,
                                                std::span<const std::int32_t> ids);

}  // namespace moeref
