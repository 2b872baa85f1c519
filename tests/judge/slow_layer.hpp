#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/moe.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::judge {

/// Router logits by exact sums, row by row.
std::vector<float> slow_logits(const MoeLayer& layer, const ScaledMatrix& hidden);

/// The whole layer as the definition reads, one output at a time: exact sums and MPFR functions,
/// each stage rounded once to f32. Stages by the engine's names, "final" for the output. Finite
/// values only.
std::map<std::string, std::vector<float>> slow_forward(const MoeLayer& layer,
                                                       const ScaledMatrix& hidden,
                                                       const Route& route,
                                                       const ForwardOptions& options);

}  // namespace moeref::judge
