#pragma once

#include <cstdint>
#include <memory>

#include "layout/bit_permutation.hpp"
#include "layout/tile_layout.hpp"

// Storage orders of triton_kernels for MXFP4 matrices and their E8M0 scales. Rows are output
// columns N of the matrix multiplication, columns its K: the logical tensor of triton_kernels,
// [K, N], is the transpose. R, C: rows and columns after padding, FP4 columns counted in bytes.

namespace moeref::tiles {

/// Values for Hopper (mma_version 3) and Ampere (2); hopper_mx_bits() belongs after it.
/// in [r, k] FP4, padded with 0 to multiples of 256 rows and 128 codes; stored [R / 4, 4 C] bytes,
/// seen as [4 C, R / 4]. With c = k / 2:
/// line = (r / 16) 4 + (r / 2) mod 4
/// 3: byte = (c / 32) 128 + (r mod 2) 64 + (c mod 4) 16 + ((c / 8) mod 4) 4 + ((c / 4) mod 2) 2 +
///           (r / 8) mod 2
/// 2: byte = (c / 32) 128 + (r mod 2) 64 + ((c / 4) mod 4) 16 + ((c / 16) mod 2) 8 +
///           ((r / 8) mod 2) 4 + c mod 4
/// An activation (mx_axis -1) has the same bytes, seen as [R / 4, 4 C].
/// Error: another mma_version.
/// Source: triton-lang/triton@000df03e python/triton_kernels/triton_kernels/tensor_details/
/// layout_details/hopper_value.py HopperMXValueLayoutTransformation.swizzle_data
TileLayout hopper_mx_value(std::int64_t mma_version);
/// The same order as the 3.5 wheels have it: padded to 16 rows and 64 codes only.
/// Source: triton_kernels hopper_value.py of 2025 HopperMXValueLayout.swizzle_data
TileLayout hopper_mx_value_v35(std::int64_t mma_version);
/// Spreads the FP4 codes of 4 bytes x0 .. x3 over a word, so that and, shift and multiply give
/// bf16 pairs: x0 to bits 15 8 7 6 of each half of the word (sign first), x1 three lower, x2 six
/// lower, x3 to 14 11 10 13; low nibbles to the low half.
/// Source: hopper_value.py _pack_bits
std::shared_ptr<const BitPermutation> hopper_mx_bits();

/// Scales for Hopper kernels compiled for W = num_warps.
/// in [r, c], padded with 0 to multiples of 32 W rows and 2 columns; stored [R / 32, 32 C], seen as
/// [32 C, R / 32]. With r = q 32 W + a 16 W + w 16 + h 8 + e:
/// place = (q W + w) 32 C + (c / 2) 64 + a 32 + e 4 + (c mod 2) 2 + h
/// Error: W not a power of two.
/// Source: triton-lang/triton@14dd7a19 layout_details/hopper_scale.py
/// HopperMXScaleLayoutTransformation.swizzle_data
TileLayout hopper_mx_scale(std::int64_t num_warps);

/// Scales for Blackwell: the 128 x 4 tiles of tcgen05, but K padded to 8.
/// in [r, c], padded with 0; stored [1, experts R / 128, C / 4, 2, 256]
/// place = ((r / 128) (C / 4) + c / 4) 512 + (r mod 32) 16 + ((r mod 128) / 32) 4 + c mod 4
/// Activations (BlackwellActMXScaleLayout, batched) take the same order.
/// Source: triton-lang/triton@00a287a7 layout_details/blackwell_scale.py
/// BlackwellMXScaleLayoutTransformation.swizzle_data
TileLayout blackwell_mx_scale();
/// Values for Blackwell: rows as they are, padded to 128 bytes, seen as [C, r]. The pads are not
/// initialised by the original; here 0.
/// Source: triton-lang/triton@f11ca2ea layout_details/blackwell_value.py swizzle_data
TileLayout blackwell_mx_value();
/// Values for Blackwell, tile by tile: stored [C / b, R / block_n, block_n, b], b = block_k / 2
/// bytes; C padded to lcm(128, b), R to block_n, with 0.
/// Error: block_k odd.
/// Source: triton-lang/triton@000df03e layout_details/blackwell_value_shuffled.py
/// _swizzle_data_torch
TileLayout blackwell_mx4_value_shuffled(std::int64_t block_k, std::int64_t block_n);

/// Scales for CDNA4: 32 x 8 tiles, the order of aiter's e8m0_shuffle; stored [r / 32, 32 c], seen
/// as [32 c, r / 32].
/// place = ((r / 32) (c / 8) + c / 8) 256 + (c mod 4) 64 + (r mod 16) 4 + ((c mod 8) / 4) 2 +
///         (r mod 32) / 16
/// Error: rows % 32 or columns % 8 not 0.
/// Source: triton-lang/triton@02cca62a layout_details/cdna4_scale.py swizzle_data
TileLayout cdna4_mx_scale();

/// Rows as they are, seen as [K, N]: StridedLayout.
TileLayout k_major_view();
/// The canonical packing of FP4 along the last axis to packing along the one before: nibbles of
/// each 2 x 2 block of codes transpose. in [m, n] -> bytes [m / 2, n].
/// Error: odd rows.
/// Source: triton-lang/triton@d1de12c4 layout_details/torch_utils.py repack(-1, -2)
TileLayout repack_fp4();

}  // namespace moeref::tiles
