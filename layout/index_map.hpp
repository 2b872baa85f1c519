#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "layout/axis_table.hpp"
#include "layout/bit_permutation.hpp"

namespace moeref {

enum class Axis : std::uint8_t { row, col };

/// One digit of a place in an expert's output. A layout lists its digits from the outermost to the
/// innermost; the digits of one axis, each times its weight, add up to the row or the column. In
/// row-major order [16 rows x 4 columns] tiles of a matrix are
/// {row, 16}, {col, 4}, {row, 1, 16}, {col, 1, 4}.
struct Digit {
  static constexpr std::int64_t kRest = 0;
  Axis axis = Axis::row;
  std::int64_t weight = 1;
  std::int64_t size = kRest;  ///< kRest: all that the axis still has; one digit of each axis
};

/// A digit whose size is known; one more of it is `stride` elements further in the output.
struct PlacedDigit {
  Axis axis;
  std::int64_t weight;
  std::int64_t size;
  std::int64_t stride;
};

/// What stands at a place of the output: an element of the expert's input matrix, or a pad.
struct Origin {
  bool pad = false;
  int pad_step = 0;               ///< pads: which padding step
  std::byte fill = std::byte{0};  ///< pads: every byte of it (FP4: both nibbles)
  std::int64_t row = 0;           ///< elements: of the expert's input matrix
  std::int64_t col = 0;
};

/// A layout for one shape: which input element stands at which output place. The same for every
/// expert; an expert's output is contiguous, and experts follow each other. Elements are what the
/// map counts: nibbles for FP4. Its size is that of the axes, not of the tensor.
class IndexMap {
 public:
  IndexMap() = default;
  /// The identity on row-major [rows, cols] matrices of `element_bits` (4, 8, 16, 32).
  IndexMap(std::int64_t experts, std::int64_t rows, std::int64_t cols, int element_bits);

  std::int64_t experts = 0;
  std::int64_t in_rows = 0;
  std::int64_t in_cols = 0;
  int element_bits = 8;
  AxisTable rows;  ///< after all row steps: output row -> input row
  AxisTable cols;
  std::vector<PlacedDigit> digits;              ///< outermost first
  std::shared_ptr<const BitPermutation> words;  ///< on the placed elements, or null
  std::vector<std::string> pad_steps;           ///< names, by number

  /// Replaces the order of the output. Error (std::invalid_argument): digits that do not cover an
  /// axis exactly once.
  void place(const std::vector<Digit>& order);

  std::int64_t out_elements() const { return rows.size() * cols.size(); }  ///< of one expert
  std::int64_t out_bytes() const { return out_elements() * element_bits / 8; }

  /// What stands at place `element` of an expert's output, before `words` move its bits.
  Origin origin(std::int64_t element) const;
  /// The output place of row and column of the output axes (after the row steps).
  std::int64_t place_of(std::int64_t out_row, std::int64_t out_col) const;
};

}  // namespace moeref
