#pragma once

#include <vector>

#include "cli/conform/comparison.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::conform {

/// Checks params.dequant_sha256 = {name: {"f64": hex, "f32": hex, "shape": [...]}}: the SHA-256 of
/// the little-endian row-major values of each logical tensor, dequantized in f64 and f32. Names:
/// router, router_bias, corr, gate, up, down ([E, N, K]), gate_bias, up_bias, down_bias ([E, N]),
/// shared_gate, shared_up, shared_down, latent1, latent2. One finding a hash; an unknown name, and
/// a tensor that the layer lacks, fails.
std::vector<Finding> check_logical_hashes(const GoldenCase& golden, const MoeLayer& layer);

}  // namespace moeref::conform
