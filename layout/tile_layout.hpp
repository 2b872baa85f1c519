#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "layout/index_map.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// Sizes of a tensor after all row and column steps and the layout's own padding, in elements.
struct TileExtent {
  std::int64_t experts;
  std::int64_t rows;
  std::int64_t cols;
  int element_bits;
  int stored_bits;  ///< of an element of the prepared tensor's dtype: 8 for FP4 codes in U8

  /// Elements of the dtype that hold `elements` of the layout.
  std::int64_t stored(std::int64_t elements) const { return elements * element_bits / stored_bits; }
};

/// An order of all elements of a matrix: digits, and what they need. Plain data.
struct TileLayout {
  std::string name;           ///< "swizzle_128x4", "block_major_k(128)"
  std::vector<Digit> digits;  ///< outermost first
  std::vector<int> bits;      ///< element sizes it is defined for
  std::int64_t pad_rows = 1;  ///< rows and columns are padded to these multiples with `fill` ...
  std::int64_t pad_cols = 1;
  std::byte fill = std::byte{0};
  std::int64_t need_rows = 1;  ///< ... and must be multiples of these before (error otherwise)
  std::int64_t need_cols = 1;
  /// Shape of the prepared tensor, in elements of its dtype; null = [experts, rows, cols], packed.
  std::function<Shape(const TileExtent&)> shape = nullptr;
  /// Strides of the kernel's view in elements, or null.
  std::function<std::vector<std::int64_t>(const TileExtent&)> strides = nullptr;
  DType dtype = DType::boolean;  ///< of the prepared tensor; boolean = as before
};

}  // namespace moeref
