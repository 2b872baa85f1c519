#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "simd/slices.hpp"

namespace moeref {

/// Columns of K of whole numbers that a GEMM takes at a time: their weights, of two panels, stay in
/// the first cache.
inline constexpr std::int64_t kSliceChunk = 512;

/// Rows as whole numbers in digits, for weights of E2M1: chunks of kSliceChunk columns in blocks of
/// `block_cols`, of which the last may be ragged.
class SlicedRows {
 public:
  /// `block_cols` is 16 or 32.
  SlicedRows(std::int64_t cols, std::int64_t block_cols, const simd::SliceKernels& kernels);

  /// Appends a row of finite numbers.
  void add(std::span<const double> row);

  std::int64_t block_cols() const { return block_cols_; }
  std::size_t steps() const { return static_cast<std::size_t>(block_cols_) / simd::kSliceStep; }
  simd::SliceRow row(std::int64_t row, std::int64_t chunk) const;
  /// The blocks of a chunk whose numbers span too many bits.
  std::span<const std::uint8_t> left_out(std::int64_t row, std::int64_t chunk) const;

 private:
  struct Chunk {
    std::uint8_t counts[simd::kMostSlices] = {};
    std::uint8_t blocks = 0;  ///< with slices; the others come after them
    std::size_t digits = 0;   ///< where those of the chunk begin
    std::size_t starts = 0;
  };
  const Chunk& chunk_at(std::int64_t row, std::int64_t chunk) const {
    return chunks_[static_cast<std::size_t>(row * col_chunks_ + chunk)];
  }
  /// Number of the first block of a chunk.
  std::size_t first_block(std::int64_t row, std::int64_t chunk) const {
    return static_cast<std::size_t>(row * col_blocks_ + chunk * (kSliceChunk / block_cols_));
  }
  void add_chunk(std::span<const double> numbers);

  std::int64_t block_cols_;
  std::int64_t col_blocks_;
  std::int64_t col_chunks_;
  const simd::SliceKernels& kernels_;
  std::vector<Chunk> chunks_;         ///< [rows, col_chunks]
  std::vector<std::uint8_t> blocks_;  ///< [rows, col_blocks]
  std::vector<double> factors_;       ///< likewise
  std::vector<std::int8_t> digits_;
  std::vector<std::int32_t> starts_;
  std::vector<double> padded_;  ///< of a ragged block
};

}  // namespace moeref
