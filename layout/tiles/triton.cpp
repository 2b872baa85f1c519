#include "layout/tiles/triton.hpp"

#include <fmt/format.h>
#include <array>

#include <bit>
#include <numeric>
#include <string_view>

#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;
using Strides = std::vector<std::int64_t>;

/// Stored elements of a row: two FP4 codes are one byte.
std::int64_t row_size(const TileExtent& extent) { return extent.stored(extent.cols); }

/// A storage [lines, line] of each expert as the transposed view [line, lines] that kernels see;
/// `rows` rows make a line.
void view_transposed(TileLayout& tile, std::int64_t rows) {
  tile.shape = [rows](const TileExtent& extent) -> Shape {
    return {extent.experts, rows * row_size(extent), extent.rows / rows};
  };
  tile.strides = [rows](const TileExtent& extent) -> Strides {
    return {extent.rows * row_size(extent), 1, rows * row_size(extent)};
  };
}

/// Digits in the order of the bytes of hopper_mx_value; columns are codes, two a byte.
std::vector<Digit> hopper_value_digits(std::int64_t mma_version) {
  if (mma_version == 3) {
    return {{row, 16},    {row, 2, 4}, {col, 64},   {row, 1, 2}, {col, 2, 4},
            {col, 16, 4}, {col, 8, 2}, {row, 8, 2}, {col, 1, 2}};
  }
  if (mma_version == 2) {
    return {{row, 16},    {row, 2, 4}, {col, 64},   {row, 1, 2}, {col, 8, 4},
            {col, 32, 2}, {row, 8, 2}, {col, 2, 4}, {col, 1, 2}};
  }
  fail("hopper_mx_value", "mma_version is {}; 2 (Ampere) and 3 (Hopper) exist", mma_version);
}

TileLayout hopper_value(std::string_view name, std::int64_t mma_version, std::int64_t pad_rows,
                        std::int64_t pad_cols) {
  TileLayout tile{.name = fmt::format("{}({})", name, mma_version),
                  .digits = hopper_value_digits(mma_version),
                  .bits = {4},
                  .pad_rows = pad_rows,
                  .pad_cols = pad_cols,
                  .dtype = DType::u8};
  view_transposed(tile, 4);
  return tile;
}

/// The word's bits for sign and magnitude (bit 3, 2, 1, 0) of the FP4 codes of its four bytes, in
/// the low half; the high nibble's are 16 higher.
constexpr int kHopperBits[4][4] = {{15, 8, 7, 6}, {12, 5, 4, 3}, {9, 2, 1, 0}, {14, 11, 10, 13}};

std::shared_ptr<const BitPermutation> make_hopper_bits() {
  std::array<int, 32> source{};
  for (int byte = 0; byte < 4; ++byte) {
    for (int half = 0; half < 2; ++half) {
      for (int place = 0; place < 4; ++place) {
        const int to = kHopperBits[byte][place] + 16 * half;
        source[static_cast<std::size_t>(to)] = 8 * byte + 4 * half + 3 - place;
      }
    }
  }
  return std::make_shared<const BitPermutation>("hopper_mx_bits", source);
}

}  // namespace

TileLayout hopper_mx_value(std::int64_t mma_version) {
  return hopper_value("hopper_mx_value", mma_version, 256, 128);
}

TileLayout hopper_mx_value_v35(std::int64_t mma_version) {
  return hopper_value("hopper_mx_value_v35", mma_version, 16, 64);
}

std::shared_ptr<const BitPermutation> hopper_mx_bits() {
  static const std::shared_ptr<const BitPermutation> bits = make_hopper_bits();
  return bits;
}

TileLayout hopper_mx_scale(std::int64_t num_warps) {
  if (num_warps < 1 || !std::has_single_bit(static_cast<std::uint64_t>(num_warps))) {
    fail("hopper_mx_scale", "num_warps is {}; it must be a power of two", num_warps);
  }
  TileLayout tile{.name = fmt::format("hopper_mx_scale({})", num_warps),
                  .digits = {{row, 32 * num_warps}},
                  .bits = {8, 16, 32},
                  .pad_rows = 32 * num_warps,
                  .pad_cols = 2};
  if (num_warps > 1) tile.digits.push_back({row, 16, num_warps});
  for (const Digit& digit : std::initializer_list<Digit>{
           {col, 2}, {row, 16 * num_warps, 2}, {row, 1, 8}, {col, 1, 2}, {row, 8, 2}}) {
    tile.digits.push_back(digit);
  }
  view_transposed(tile, 32);
  return tile;
}

TileLayout blackwell_mx_scale() {
  return {.name = "blackwell_mx_scale",
          .digits = {{row, 128}, {col, 4}, {row, 1, 32}, {row, 32, 4}, {col, 1, 4}},
          .bits = {8, 16, 32},
          .pad_rows = 128,
          .pad_cols = 8,
          .shape = [](const TileExtent& extent) -> Shape {
            return {1, extent.experts * extent.rows / 128, extent.cols / 4, 2, 256};
          }};
}

TileLayout blackwell_mx_value() {
  TileLayout tile = k_major_view();
  tile.name = "blackwell_mx_value";
  tile.bits = {4};
  tile.pad_cols = 256;
  tile.dtype = DType::u8;
  return tile;
}

TileLayout blackwell_mx4_value_shuffled(std::int64_t block_k, std::int64_t block_n) {
  if (block_k < 2 || block_k % 2 != 0 || block_n < 1) {
    fail("blackwell_mx4_value_shuffled",
         "block_k is {}, block_n {}; block_k must be even, both positive", block_k, block_n);
  }
  TileLayout tile{
      .name = fmt::format("blackwell_mx4_value_shuffled({}, {})", block_k, block_n),
      .digits = {{col, block_k}, {row, block_n}},
      .bits = {4},
      .pad_rows = block_n,
      .pad_cols = 2 * std::lcm(std::int64_t{128}, block_k / 2),
      .shape = [block_k, block_n](const TileExtent& extent) -> Shape {
        return {extent.experts, extent.cols / block_k, extent.rows / block_n, block_n, block_k / 2};
      },
      .dtype = DType::u8};
  if (block_n > 1) tile.digits.push_back({row, 1, block_n});
  tile.digits.push_back({col, 1, block_k});
  return tile;
}

TileLayout cdna4_mx_scale() {
  TileLayout tile{
      .name = "cdna4_mx_scale",
      .digits = {{row, 32}, {col, 8}, {col, 1, 4}, {row, 1, 16}, {col, 4, 2}, {row, 16, 2}},
      .bits = {8, 16, 32},
      .need_rows = 32,
      .need_cols = 8};
  view_transposed(tile, 32);
  return tile;
}

TileLayout k_major_view() {
  TileLayout tile{.name = "k_major_view", .digits = {{row, 1}, {col, 1}}, .bits = {4, 8, 16, 32}};
  view_transposed(tile, 1);
  return tile;
}

TileLayout repack_fp4() {
  return {.name = "repack_fp4",
          .digits = {{row, 2}, {col, 1}, {row, 1, 2}},
          .bits = {4},
          .need_rows = 2,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows / 2, extent.cols};
          },
          .dtype = DType::u8};
}

std::span<const NamedStep> triton() {
  constexpr std::string_view kHopperValue =
      "triton@000df03e layout_details/hopper_value.py swizzle_data";
  static const std::array<NamedStep, 10> steps{{
      {"hopper_mx_value", "mma_version", StepKind::move,
       "FP4 by Hopper (3) or Ampere (2) lanes, padded to 256 x 128; bits come after", kHopperValue,
       [](Parameters p) -> Step { return Tile{hopper_mx_value(p[0])}; }},
      {"hopper_mx_value_v35", "mma_version", StepKind::move,
       "the same, padded to 16 x 64 as the 3.5 wheels do",
       "triton_kernels 2025 hopper_value.py swizzle_data",
       [](Parameters p) -> Step { return Tile{hopper_mx_value_v35(p[0])}; }},
      {"hopper_mx_bits", "", StepKind::pack, "spreads 8 FP4 codes over the bf16 halves of a word",
       "triton@000df03e layout_details/hopper_value.py _pack_bits",
       [](Parameters) -> Step { return PermuteBits{hopper_mx_bits()}; }},
      {"hopper_mx_scale", "num_warps", StepKind::move,
       "E8M0 scales by Hopper warps, padded to 32 num_warps x 2",
       "triton@14dd7a19 layout_details/hopper_scale.py swizzle_data",
       [](Parameters p) -> Step { return Tile{hopper_mx_scale(p[0])}; }},
      {"blackwell_mx_scale", "", StepKind::move, "scale tiles of 128 x 4, padded to 128 x 8",
       "triton@00a287a7 layout_details/blackwell_scale.py swizzle_data",
       [](Parameters) -> Step { return Tile{blackwell_mx_scale()}; }},
      {"blackwell_mx_value", "", StepKind::move, "FP4 rows padded to 128 bytes, seen as [K, N]",
       "triton@f11ca2ea layout_details/blackwell_value.py swizzle_data",
       [](Parameters) -> Step { return Tile{blackwell_mx_value()}; }},
      {"blackwell_mx4_value_shuffled", "block_k, block_n", StepKind::move,
       "FP4 in contiguous tiles of block_n x block_k (256 x 128)",
       "triton@000df03e layout_details/blackwell_value_shuffled.py _swizzle_data_torch",
       [](Parameters p) -> Step { return Tile{blackwell_mx4_value_shuffled(p[0], p[1])}; }},
      {"cdna4_mx_scale", "", StepKind::move, "scale tiles of 32 x 8 for CDNA4, not padded",
       "triton@02cca62a layout_details/cdna4_scale.py swizzle_data",
       [](Parameters) -> Step { return Tile{cdna4_mx_scale()}; }},
      {"k_major_view", "", StepKind::move, "rows as they are, seen as [K, N]",
       "triton layout_details/strided.py StridedLayout",
       [](Parameters) -> Step { return Tile{k_major_view()}; }},
      {"repack_fp4", "", StepKind::pack, "FP4 packed along columns to packed along rows",
       "triton@d1de12c4 layout_details/torch_utils.py repack",
       [](Parameters) -> Step { return Tile{repack_fp4()}; }},
  }};
  return steps;
}

}  // namespace moeref::tiles
