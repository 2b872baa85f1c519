#pragma once

#include <cstdint>

#include "layout/tile_layout.hpp"

// Orders of FlashInfer's TRTLLM-Gen, CUTLASS and CuteDSL kernels.

namespace moeref::tiles {

/// Scales of tcgen05 block-scaled MMA: 128 x 4 tiles of 512, in a tile 32 x (4 rows of 32) x 4.
/// in [r, c], padded with 0 to [R, C] = multiples of 128 and 4
/// place = ((row / 128) (C / 4) + col / 4) 512 + (row mod 32) 16 + (row mod 128) / 32 4 + col mod 4
/// Source: flashinfer@fb28d7242 csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh
/// get_sf_out_offset_128x4
TileLayout swizzle_128x4();
/// The same bytes as a view [32, 4, R / 128, 4, C / 4, experts].
/// Source: flashinfer@fb28d7242 flashinfer/cute_dsl/utils.py convert_sf_to_mma_layout
TileLayout swizzle_128x4_mma_view();
/// Scales of small batches: 8 x 4 tiles, row-major inside. Padded with 0.
/// Source: flashinfer@fb28d7242 quantization_utils.cuh get_sf_out_offset_8x4
TileLayout swizzle_8x4();
/// in [m, k] -> [k / b, m, b], b = `block` elements (kernels want 128 bytes).
/// Error: k not a multiple of b.
/// Source: flashinfer@fb28d7242 flashinfer/fused_moe/core.py convert_to_block_layout
TileLayout block_major_k(std::int64_t block);

}  // namespace moeref::tiles
