#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/gemm.hpp"
#include "simd/slices.hpp"

// Whole numbers (slices.hpp) of one output at a time, along K: for so few rows that to transpose
// the codes of a panel would cost more than the sums.

namespace moeref::simd {

/// Blocks of columns that a chunk of a row has.
inline constexpr std::size_t kLineBlocks = 16;

/// Where the digit of a column of a block lies in a chunk, in blocks of `block_cols`: first those
/// of the even columns of all blocks, then those of the odd ones.
constexpr std::size_t line_digit(std::size_t block, std::size_t column, std::size_t block_cols) {
  return (column % 2 * kLineBlocks + block) * block_cols / 2 + column / 2;
}

/// A chunk of one row. Blocks that have fewer slices, or none, have digits that are zero.
struct LineChunk {
  std::size_t slices = 1;               ///< 1, 2, 3 or kMostSlices: one form less to compile
  const std::int8_t* digits = nullptr;  ///< [slices, kLineBlocks * block_cols] by line_digit
  /// [kLineBlocks]: half of what a whole number stands for, a power of two from 2^-800 on.
  const double* factors = nullptr;
  const std::int32_t* starts = nullptr;  ///< [slice_groups, kLineBlocks], as SliceRow has them
};

/// Weight rows of a panel, one for each output.
struct LineWeights {
  const std::byte* const* codes = nullptr;   ///< [kPanelColumns]: e2m1, low nibble first
  const std::byte* const* scales = nullptr;  ///< [kPanelColumns]: of each block
  PanelCode scale_type = PanelCode::e8m0;    ///< or e4m3; none is NaN
  std::size_t cols = 0;
  std::size_t block_cols = 32;  ///< or 16
};

struct LineKernels {
  /// sums[j] = sum over block: scale * factor * sum of whole number * 2 w, rounded once a block in
  /// an order of its own where f64 numbers do not hold it. As many chunks as the columns need; no
  /// byte beyond the columns is read.
  void (*dot)(const LineChunk* chunks, const LineWeights& weights, double* sums);
};

}  // namespace moeref::simd
