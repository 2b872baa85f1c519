#pragma once

#include <cstdint>

#include "layout/tile_layout.hpp"

// Orders of AMD's aiter kernels (CK, FlyDSL, assembler, Triton). Source, unless a function names
// another: aiter@e4048607a5 aiter/ops/shuffle.py, the function of the same name.

namespace moeref::tiles {

/// How a tensor of stripes, tile rows one after the other, is seen: a stripe is a row, or a column
/// of a transposed view.
enum class StripeView : std::uint8_t { rows, transposed };

/// Tiles of `rows` x `cols` elements, row-major inside and among each other:
///   place(r, c) = ((r / rows) (C / cols) + c / cols) rows cols + (r mod rows) cols + c mod cols
/// Every weight shuffle is this order; so are the gfx1250 and f4 scales.
/// Error: rows or columns that the tile does not divide.
/// Source: _moe_tile_shuffle
TileLayout aiter_tile(std::int64_t rows, std::int64_t cols);

/// shuffle_weight(layout = (rows, k)): aiter_tile(rows, 16 bytes). FP4 codes: `k` counts bytes of
/// two.
/// Error: rows that `rows` does not divide, columns that 2 k does not divide; 2 k that is no
/// multiple of the tile's columns; elements of other than 4, 8, 16, 32 bits.
TileLayout aiter_shuffle_weight(std::int64_t rows, std::int64_t k, std::int64_t element_bits);
/// shuffle_weight(layout = (rows, k), use_int4): one int4 value an element, not yet packed, and 32
/// of them instead of 16 bytes.
TileLayout aiter_shuffle_int4_values(std::int64_t rows, std::int64_t k);
/// shuffle_weight(is_guinterleave): aiter_tile(lanes, pack) that wants whole groups of 64 lanes. On
/// gated w13 put InterleaveHalves{lanes} before it.
/// Error: rows that `lanes` does not divide, columns that 64 / lanes * pack does not divide; more
/// than 64 lanes.
TileLayout aiter_shuffle_weight_a16w4(std::int64_t lanes, std::int64_t pack);
/// aiter_tile(n, k / (64 / n)) that wants multiples of n rows and k columns.
/// Error: n above 64, k that 64 / n does not divide.
TileLayout aiter_shuffle_weight_nk(std::int64_t n, std::int64_t k);
/// aiter_tile(16, 16) as [experts, rows / 16, columns * 16], or, for weights that are stored
/// [experts, columns, rows], as the transposed view [experts, columns * 16, rows / 16].
TileLayout aiter_shuffle_weight_gfx1250(StripeView view);

/// E8M0 scales of CDNA4 MFMA: tiles of 32 x 8, inside (column mod 4, row mod 16, column / 4, row /
/// 16). Padded to 256 rows and 8 columns; aiter leaves the padding undefined, here it is 0.
///   place = (r / 32) 32 C + (c / 8) 256 + (c mod 4) 64 + (r mod 16) 4 + ((c / 4) mod 2) 2 +
///   (r / 16) mod 2
/// Source: shuffle_scale
TileLayout aiter_e8m0_shuffle();
/// The same order for each expert on its own; columns are padded to 8 with 1.0 (0x7F). On gated w13
/// whose weights are interleaved put InterleaveHalves{16} before it.
/// Error: rows not a multiple of 32.
/// Source: shuffle_scale(is_guinterleave = True)
TileLayout aiter_shuffle_scale();
/// aiter_tile(32, 4) as [experts, rows / 32, 32 * columns].
TileLayout aiter_shuffle_scale_n32k4();
/// aiter_tile(32, 4), rows padded to 32 with 1.0 (0x7F).
TileLayout aiter_shuffle_mxfp8fp4_scale();

/// aiter_tile(factor, width) as stripes.
/// Source: aiter/ops/triton/utils/shuffle.py _shuffle_scale_tile_gfx1250
TileLayout aiter_scale_gfx1250(std::int64_t factor, std::int64_t width, StripeView view);
/// aiter_e8m0_shuffle with tiles of factor x width, as stripes, without padding.
/// Error: an odd factor or width.
/// Source: aiter/ops/triton/utils/shuffle.py _shuffle_scale_tile_gfx950
TileLayout aiter_scale_gfx950(std::int64_t factor, std::int64_t width, StripeView view);
/// [n, c] as [n / 128, 128 c]; in a stripe (c / width, n mod 32, n / 32 mod 4, c mod width).
/// Source: aiter/ops/triton/utils/shuffle.py shuffle_scale_batched
TileLayout aiter_scale_batched(std::int64_t width);

/// Runs of 8 int4 values v0 .. v7 of a row as the bytes v0 v4, v1 v5, v2 v6, v3 v7, low nibble
/// first. After recode::int8_to_int4.
/// Source: pack_int8_to_packed_int4
TileLayout aiter_pack_int4();
/// Weights of a16wi4 kernels: aiter_tile(16, 16) of the values, then aiter_pack_int4 along memory.
TileLayout aiter_int4_weight();
/// 16-bit scales [k groups, n] as [k groups / 2, n, 2]: two groups of a column in one word.
/// Source: shuffle_scale_for_int4
TileLayout aiter_int4_scale();

}  // namespace moeref::tiles
