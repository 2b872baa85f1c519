#pragma once

#include <string>

#include "engine/moe.hpp"
#include "quant/moe_layer.hpp"

// Words for what a kernel reads wrongly.

namespace moeref {

/// The first element of gate, up, down or their biases that differs between the layer as a kernel
/// reads it (with padding) and as it is meant (without; padding must be 0): which row or column of
/// the meant layer stands there instead, or a wrong scale, or both values. Empty: all are the same.
std::string first_wrong_weight(const MoeLayer& kernel, const MoeLayer& meant);

/// The first stage that differs in a place that both layers have; its stages before are the same.
/// Empty: none.
std::string first_wrong_stage(const ForwardResult& kernel_run, const ForwardResult& meant_run,
                              const MoeLayer& kernel, const MoeLayer& meant, const Route& route);

}  // namespace moeref
