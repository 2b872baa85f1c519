#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/gemm.hpp"

// Exact dot products of E2M1 weights in whole numbers. In a block of columns of K that share a
// scale, activations are whole numbers times a factor, written in digits of base 256 from -128 to
// 127: slices. A weight w is the unsigned byte 2 w + 12. Sums of 32-bit integers then have no
// rounding; a block becomes an f64 number once.

namespace moeref::simd {

/// Digits that a block has at most: its sum of products is then below 2^49, an f64 number.
inline constexpr std::size_t kMostSlices = 5;
/// Columns of K whose products one instruction sums.
inline constexpr std::size_t kSliceStep = 4;
/// What is added to twice a weight.
inline constexpr int kWeightOffset = 12;

/// Columns of K that a step takes, inside their block: 8 * (step / 2) + step % 2 + 2 * i, i < 4;
/// the nibbles of a 32-bit word of codes, even ones first.
constexpr std::size_t slice_column(std::size_t step, std::size_t i) {
  return 8 * (step / 2) + step % 2 + 2 * i;
}

/// One block of columns for some rows.
struct SliceBlock {
  const std::uint8_t* slices = nullptr;  ///< [rows]: 1 to kMostSlices; 0: the row is left out
  const std::int8_t* digits = nullptr;   ///< [rows, kMostSlices, steps, kSliceStep]
  const std::int32_t* starts = nullptr;  ///< [rows, kMostSlices]: -kWeightOffset * sum of digits
  const double* factors = nullptr;       ///< [rows]: half of what a whole number stands for
};

struct SliceKernels {
  /// weights [k / kSliceStep, kPanelColumns, kSliceStep], steps as slice_column has them. k is a
  /// multiple of 32; codes of e2m1 without factors.
  void (*decode)(const PanelCodes& codes, std::size_t k, std::uint8_t* weights);
  /// Blocks of 4 or 8 steps: sums[r * kPanelColumns + j] += for each block: scales[j] * factors[r]
  /// * sum of whole number * 2 w. `scales` [blocks, kPanelColumns].
  void (*dot)(const SliceBlock* blocks, std::size_t count, std::size_t steps, std::size_t rows,
              const std::uint8_t* weights, const double* scales, double* sums);
};

}  // namespace moeref::simd
