#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/aligned.hpp"

namespace moeref {

/// Columns of K that a GEMM takes at a time: a panel of weights and a block of rows then stay in
/// the first cache.
inline constexpr std::int64_t kDepthChunk = 128;

/// Rows of f64 values in the order in which the GEMM reads them: chunks of kDepthChunk columns;
/// inside, blocks of `row_block` rows; inside, column by column.
class PackedRows {
 public:
  PackedRows() = default;
  PackedRows(std::int64_t rows, std::int64_t cols, std::int64_t row_block)
      : rows_(rows),
        cols_(cols),
        row_block_(row_block),
        values_(static_cast<std::size_t>(rows * cols)) {}

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t row_block() const { return row_block_; }
  /// Rows of the block that begins with row `first`, a multiple of row_block().
  std::int64_t block_rows(std::int64_t first) const { return std::min(row_block_, rows_ - first); }

  /// Column `col` of the block that begins with row `first`: block_rows(first) values, and those of
  /// the columns after it up to the end of the chunk.
  const double* column(std::int64_t first, std::int64_t col) const {
    const std::int64_t start = col / kDepthChunk * kDepthChunk;
    const std::int64_t depth = std::min(kDepthChunk, cols_ - start);
    return values_.data() + rows_ * start + first * depth + (col - start) * block_rows(first);
  }
  void put(std::int64_t row, std::span<const double> values) {
    for (std::int64_t start = 0; start < cols_; start += kDepthChunk) {
      double* to = values_.data() + index(row, start);
      const std::int64_t step = block_rows(row / row_block_ * row_block_);
      const std::int64_t end = std::min(cols_, start + kDepthChunk);
      for (std::int64_t col = start; col < end; ++col, to += step) {
        *to = values[static_cast<std::size_t>(col)];
      }
    }
  }

 private:
  std::int64_t index(std::int64_t row, std::int64_t col) const {
    const std::int64_t start = col / kDepthChunk * kDepthChunk;
    const std::int64_t depth = std::min(kDepthChunk, cols_ - start);
    const std::int64_t first = row / row_block_ * row_block_;
    return rows_ * start + first * depth + (col - start) * block_rows(first) + (row - first);
  }

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t row_block_ = 1;
  AlignedVector<double> values_;
};

}  // namespace moeref
