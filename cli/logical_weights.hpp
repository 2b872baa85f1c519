#pragma once

#include "cli/case_writer.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::cli {

/// Adds the logical weights of the local experts as weights.*: w13 [E, 2 I, K] (gate rows, then up;
/// [E, I, K] non-gated) and w2 [E, N, I] in their stored element format (FP4 packed, low nibble
/// first: [.., K / 2]), their scales as stored, per expert global scales, biases; the same for the
/// shared expert under weights.shared_*.
void add_logical_weights(CaseWriter& writer, const MoeLayer& layer);

}  // namespace moeref::cli
