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
/// Panels that `dot` takes at most: each digit is read once for both.
inline constexpr std::size_t kSlicePanels = 2;

/// Columns of K that a step takes, inside their block: 8 * (step / 2) + step % 2 + 2 * i, i < 4;
/// the nibbles of a 32-bit word of codes, even ones first.
constexpr std::size_t slice_column(std::size_t step, std::size_t i) {
  return 8 * (step / 2) + step % 2 + 2 * i;
}

/// Slices whose sums one 32-bit integer holds together are a group: up to three are one, four and
/// five are two of which the first has two slices.
constexpr std::size_t slice_groups(std::size_t slices) { return slices <= 3 ? 1 : 2; }
constexpr std::size_t slices_of_group(std::size_t slices, std::size_t group) {
  if (slice_groups(slices) == 1) return slices;
  return group == 0 ? 2 : slices - 2;
}
/// [slices - 1]: the largest number, in units of its block, that is written in so many slices;
/// three hold less than they could, so that their sum over a block is below 2^31. Data, as no
/// function of f64 may be shared by files of different instruction sets.
inline constexpr double kSliceReach[kMostSlices] = {0x7Fp0, 0x7F7Fp0, 0x1p22, 0x7F7F'7F7Fp0,
                                                    0x1p38 - 1.0};

/// The blocks of one row in a chunk of columns: first those of one slice, then those of two, and so
/// on. Everything lies in that order.
struct SliceRow {
  const std::uint8_t* counts = nullptr;  ///< [kMostSlices]: blocks with 1, 2, .. slices
  const std::uint8_t* blocks = nullptr;  ///< their numbers in the chunk
  const double* factors = nullptr;       ///< half of what a whole number stands for
  const std::int8_t* digits = nullptr;   ///< of each block [slices, steps, kSliceStep]
  /// Of each block [slice_groups]: -kWeightOffset * the sum of what the digits of a group stand
  /// for, in units of its first slice.
  const std::int32_t* starts = nullptr;
};

/// Weights and outputs of a panel in the same chunk.
struct SlicePanel {
  const std::uint8_t* weights = nullptr;  ///< of each block [steps, kPanelColumns, kSliceStep]
  const double* scales = nullptr;         ///< [blocks, kPanelColumns]
  double* sums = nullptr;                 ///< [kPanelColumns]
};

struct SliceKernels {
  /// Rows up to which activations of long significands, which have many digits, are summed faster
  /// than by f64; those of short ones are, unless many blocks are left out.
  std::int64_t most_long_rows;
  /// One block of finite numbers, in order of columns, as SliceRow has it: `digits` [kMostSlices,
  /// steps, kSliceStep], of which the first ones are written, `starts` and `factor`. Gives its
  /// slices; 0: the numbers span too many bits.
  std::size_t (*cut)(const double* numbers, std::size_t steps, std::int8_t* digits,
                     std::int32_t* starts, double* factor);
  /// weights [k / kSliceStep, kPanelColumns, kSliceStep], steps as slice_column has them. k is a
  /// multiple of 32; codes of e2m1 without factors.
  void (*decode)(const PanelCodes& codes, std::size_t k, std::uint8_t* weights);
  /// Blocks of 4 or 8 steps, up to kSlicePanels panels: sums[j] += for each block: scales[j] *
  /// factor * sum of whole number * 2 w.
  void (*dot)(const SliceRow& row, std::size_t steps, const SlicePanel* panels, std::size_t count);
};

}  // namespace moeref::simd
