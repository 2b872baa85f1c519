#pragma once

#include <cstdint>

#include "layout/step.hpp"

// Orders of FlashInfer's CUTLASS kernels for 4-bit weights on Hopper (mixed input). Before 0.6.10
// the weights are unchanged and the scales legacy, 0.6.10 to 0.6.15 the weights are v1 and the
// scales legacy, from 0.6.16 the weights are v2 (a tile and its bits) and the scales folded.

namespace moeref::tiles {

/// v2 for bf16 activations. 4-bit elements [n, k], n % 16 == 0, k % 64 == 0; in bytes, row r = 16 R
/// + 8 h + a (a < 8), group of 4 bytes at column 32 p + 16 m + 4 t:
/// out = in[16 R + a][s], in[.. + 8][s], in[..][s + 4], in[.. + 8][s + 4], s = 32 p + 16 m + 8 h +
/// t. sm90_bits_fp4 completes it. Source: flashinfer@fb28d7242 moe_gemm/moe_gemm_mixed_utils.cu
/// interleave_moe_weights_for_sm90_mixed_gemm
TileLayout sm90_weights_v2();
/// Of int4 weights, and (with sm90_bits_fp4_fp8) of FP4 weights for FP8 activations: the groups are
/// in[16 R + a][s], [s + 1], in[.. + 8][s], [s + 1], s = 32 p + 16 m + 8 h + 2 t. Source: as v2.
TileLayout sm90_weights_int4();
/// v1, FP4: the byte pair at column 32 p + 16 m + 4 t + 2 w is, with x = in[16 R + a][s], y = in[..
/// + 8][s], s = 32 p + 16 m + 8 h + 4 w + t: low(x) | low(y) << 4, high(x) | high(y) << 4. Source:
/// flashinfer@d4544921 moe_gemm/moe_gemm_mixed_utils.cu
TileLayout sm90_weights_v1();

/// Where the bits of eight FP4 codes lie in the word that the bf16 converter reads. Source: as v2.
Step sm90_bits_fp4();
/// The signs of codes 0 .. 7 go to the places of codes 1, 3, 5, 7, 0, 2, 4, 6. Source: as v2.
Step sm90_bits_fp4_fp8();

/// Scales of groups of `group` weights, `element_bits` each, folded to 16 bytes a row: q = 128 /
/// group, c = 128 / element_bits, f = 64 q / c.
/// in [r, k / group] -> [r / 64, k / 128, f, c], out[b][kb][i][j] = in[64 b + j / q f + i][kb q + j
/// mod q]. Error: sizes that do not divide; r % 64 != 0, k % 128 != 0.
/// Source: flashinfer@fb28d7242 fused_moe/prepare.py interleave_moe_scales_for_sm90_mixed_gemm
TileLayout sm90_folded_scales(std::int64_t group, std::int64_t element_bits);
/// q = 128 / group; in [r, k / group] -> [k / 128, r q], out[j / q][row q + j mod q] = in[row][j].
/// Error: a group that does not divide 128; k % 128 != 0.
/// Source: flashinfer@d4544921 fused_moe/core.py interleave_moe_scales_for_sm90_mixed_gemm
TileLayout sm90_legacy_scales(std::int64_t group);

}  // namespace moeref::tiles
