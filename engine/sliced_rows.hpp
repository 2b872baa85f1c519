#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/packed_rows.hpp"
#include "simd/slices.hpp"

namespace moeref {

/// Rows as whole numbers in digits, for weights of E2M1: in the row blocks of the PackedRows that
/// they are made of, and blocks of `block_cols` columns, of which the last may be ragged.
class SlicedRows {
 public:
  /// `block_cols` is 16 or 32. Rows that are not finite become zeros.
  SlicedRows(const PackedRows& rows, std::span<const char> finite, std::int64_t block_cols);
  SlicedRows(const SlicedRows&) = delete;
  SlicedRows& operator=(const SlicedRows&) = delete;

  std::int64_t block_cols() const { return block_cols_; }
  /// The block of columns from `col` on, a multiple of block_cols(), and those after it; of the
  /// rows from `first` on, a multiple of the row block. Rows without slices: the numbers span too
  /// many bits.
  const simd::SliceBlock* blocks(std::int64_t first, std::int64_t col) const {
    return blocks_.data() + first / row_block_ * col_blocks_ + col / block_cols_;
  }

 private:
  void cut(std::span<const double> numbers, std::size_t cell);

  std::int64_t block_cols_;
  std::int64_t row_block_;
  std::int64_t col_blocks_;
  std::vector<simd::SliceBlock> blocks_;  ///< [row blocks, column blocks]
  std::vector<std::uint8_t> slices_;
  std::vector<std::int8_t> digits_;
  std::vector<std::int32_t> starts_;
  std::vector<double> factors_;
};

}  // namespace moeref
