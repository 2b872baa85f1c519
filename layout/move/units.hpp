#pragma once

#include <cstdint>
#include <vector>

#include "layout/index_map.hpp"

namespace moeref::move {

/// The digits of a map counted in what is moved: bytes, or nibbles where the order tears the pairs
/// of FP4 codes apart. Columns, weights and strides are in these units. Digits have at least size
/// 2, and neighbours that go on with each other are one.
struct UnitDigits {
  int unit_bits = 8;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<PlacedDigit> digits;      ///< outermost first
  std::vector<std::int64_t> row_place;  ///< place of a row's first unit ...
  std::vector<std::int64_t> col_place;  ///< ... plus this

  /// Units of a row that stay side by side: the innermost digit if it belongs to the columns.
  std::int64_t run() const;
  bool row_major() const;
};

/// What the digits of one axis, that cover its `size`, add to the place of an element: for every
/// row or column.
std::vector<std::int64_t> axis_places(const std::vector<PlacedDigit>& digits, Axis axis,
                                      std::int64_t size);

/// The map has at least one element.
UnitDigits unit_digits(const IndexMap& map);

}  // namespace moeref::move
