#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "layout/step.hpp"

// MXFP4 weights for FP8 activations on Hopper: a block scale becomes a small offset that the kernel
// adds to the exponent of a code on its way to E4M3, and one factor for the whole expert. Per
// expert, over all its E8M0 bytes s: lo = max(s) - min(max(s) - min(s), max_range); a byte below
// lo is raised to it by delta = max(s, lo) - s, and the codes of its block are divided by 2^delta.
// Source: flashinfer@fb28d7242 fused_moe/prepare.py
// preprocess_moe_weights_for_sm90_mixed_gemm_humming

namespace moeref::recode {

struct HummingRange {
  int max_range = 11;   ///< 0 .. 11: what an E4M3 exponent can hold beside that of the code
  bool padded = false;  ///< blocks with scale byte 0 are appended to every expert before
};

/// Row delta, column code: the code of value / 2^delta, to nearest, ties away from zero; -0 becomes
/// +0 first, a negative value that rounds to 0 becomes -0. Rows from 128 on are what the original
/// table holds: its factor 2^-delta wraps to -infinity at 128 and to -2^(256 - delta) above.
/// Source: prepare.py _humming_mxfp4_w4a8_rewrite_lut_cpu
const std::array<std::array<std::uint8_t, 16>, 256>& humming_table();

/// FP4 codes by the delta of their block. `scale`: the slot of their scales (E8M0 bytes, or numbers
/// that to_e8m0 takes). Error: a max_range outside 0 .. 11; padding whose delta is 128 or more,
/// since it would not stay 0.
Recode humming_codes(Slot scale, HummingRange range = {});
/// E8M0 bytes to offsets: (max(s, lo) - lo + 1) & 15. A padding byte becomes kHummingPad.
Recode humming_offsets(Slot scale, HummingRange range = {});
inline constexpr std::byte kHummingPad{1};
/// E8M0 bytes to their delta.
Recode humming_deltas(Slot scale, HummingRange range = {});
/// 2^(lo - 128) of each expert; the kernel's factor is 64 times it.
std::vector<float> humming_residuals(const LayerTensors& layer, Slot scale,
                                     HummingRange range = {});

}  // namespace moeref::recode
