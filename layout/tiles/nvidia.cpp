#include "layout/tiles/nvidia.hpp"

#include <fmt/format.h>
#include <array>

#include "layout/tiles/families.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;

std::vector<std::int64_t> mma_strides(const TileExtent& extent) {
  const std::int64_t tiles = extent.cols / 4;
  return {16, 4, 512 * tiles, 1, 512, extent.rows * extent.cols};
}

}  // namespace

TileLayout swizzle_128x4() {
  return {.name = "swizzle_128x4",
          .digits = {{row, 128}, {col, 4}, {row, 1, 32}, {row, 32, 4}, {col, 1, 4}},
          .bits = {8, 16, 32},
          .pad_rows = 128,
          .pad_cols = 4};
}

TileLayout swizzle_128x4_mma_view() {
  TileLayout tile = swizzle_128x4();
  tile.name = "swizzle_128x4_mma_view";
  tile.shape = [](const TileExtent& extent) -> Shape {
    return {32, 4, extent.rows / 128, 4, extent.cols / 4, extent.experts};
  };
  tile.strides = mma_strides;
  return tile;
}

TileLayout swizzle_8x4() {
  return {.name = "swizzle_8x4",
          .digits = {{row, 8}, {col, 4}, {row, 1, 8}, {col, 1, 4}},
          .bits = {8, 16},
          .pad_rows = 8,
          .pad_cols = 4};
}

TileLayout block_major_k(std::int64_t block) {
  std::vector<Digit> digits{{col, block}, {row, 1}};
  if (block > 1) digits.push_back({col, 1, block});
  return {.name = fmt::format("block_major_k({})", block),
          .digits = std::move(digits),
          .bits = block % 2 == 0 ? std::vector{4, 8, 16, 32} : std::vector{8, 16, 32},
          .need_cols = block,
          .shape = [block](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.cols / block, extent.rows, extent.stored(block)};
          }};
}

std::span<const NamedStep> nvidia() {
  static const std::array<NamedStep, 4> steps{{
      {"swizzle_128x4", "", StepKind::move, "scale tiles of 128 x 4, padded with 0 (tcgen05 MMA)",
       "flashinfer@fb28d7242 quantization_utils.cuh get_sf_out_offset_128x4",
       [](Parameters) -> Step { return Tile{swizzle_128x4()}; }},
      {"swizzle_128x4_mma_view", "", StepKind::move, "the same bytes, seen as CuteDSL's 6-D view",
       "flashinfer@fb28d7242 cute_dsl/utils.py convert_sf_to_mma_layout",
       [](Parameters) -> Step { return Tile{swizzle_128x4_mma_view()}; }},
      {"swizzle_8x4", "", StepKind::move, "scale tiles of 8 x 4, padded with 0 (small batches)",
       "flashinfer@fb28d7242 quantization_utils.cuh get_sf_out_offset_8x4",
       [](Parameters) -> Step { return Tile{swizzle_8x4()}; }},
      {"block_major_k", "block", StepKind::move, "[m, k] -> [k / block, m, block]",
       "flashinfer@fb28d7242 fused_moe/core.py convert_to_block_layout",
       [](Parameters p) -> Step { return Tile{block_major_k(p[0])}; }},
  }};
  return steps;
}

}  // namespace moeref::tiles
