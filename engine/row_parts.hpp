#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/operand.hpp"
#include "engine/packed_rows.hpp"

namespace moeref {

/// Bits of an f64 significand: what an exact sum may span.
inline constexpr int kSumBits = 53;

/// True if the sum of |values| spans at most `room` bits above their lowest bit.
inline bool fits(const Window& window, int room) {
  return window.empty || window.sum - window.lowest <= room;
}

/// Activation rows cut by magnitude: row = sum of its parts, exactly, and each part fits the room,
/// segment by segment. The dot product of each part with weights that span at most 53 - room bits
/// is then an exact f64 sum.
struct RowParts {
  PackedRows values;  ///< [total parts, cols]
  std::vector<std::int64_t>
      begin;                   ///< [rows + 1]: row i has the parts begin[i] .. begin[i + 1] - 1
  std::vector<char> possible;  ///< [rows]: 0 = it would take too many parts and is whole
};

/// A row to cut: its values and the windows of its segments.
struct MeasuredRow {
  std::span<const double> values;
  std::span<const Window> windows;
};

/// Cuts rows into parts that fit `room`. `bounds` are the segments' columns.
RowParts cut_rows(std::span<const MeasuredRow> rows, std::span<const std::int64_t> bounds, int room,
                  const simd::GemmKernels& kernels);

}  // namespace moeref
