#pragma once

#include <vector>

#include "engine/routing_kernels.hpp"

// The parts of all_routing_kernels().

namespace moeref {

void add_flashinfer_kernels(std::vector<RoutingKernel>& table);
void add_sglang_kernels(std::vector<RoutingKernel>& table);

}  // namespace moeref
