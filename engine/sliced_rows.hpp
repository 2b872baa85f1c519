#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "simd/slices.hpp"

namespace moeref {

/// Columns of K of whole numbers that a GEMM takes at a time: their weights, of two panels, stay in
/// the first cache.
inline constexpr std::int64_t kSliceChunk = 512;

/// A row as whole numbers in digits, for weights of E2M1: chunks of kSliceChunk columns in blocks
/// of `block_cols`, of which the last may be ragged.
class SlicedRow {
 public:
  SlicedRow() = default;
  /// Finite numbers; `block_cols` is 16 or 32.
  SlicedRow(std::span<const double> row, std::int64_t block_cols,
            const simd::SliceKernels& kernels);

  std::int64_t block_cols() const { return block_cols_; }
  std::int64_t chunks() const { return std::ssize(chunks_); }
  simd::SliceRow chunk(std::int64_t chunk) const;
  /// The blocks of a chunk whose numbers span too many bits.
  std::span<const std::uint8_t> left_out(std::int64_t chunk) const;
  std::int64_t blocks() const { return std::ssize(blocks_); }

 private:
  struct Chunk {
    std::uint8_t counts[simd::kMostSlices] = {};
    std::uint8_t left_out = 0;
    std::size_t blocks = 0;  ///< where those of the chunk begin; those that are left out come last
    std::size_t digits = 0;
    std::size_t starts = 0;
  };
  void add_chunk(std::span<const double> numbers, const simd::SliceKernels& kernels);

  std::int64_t block_cols_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<std::uint8_t> blocks_;
  std::vector<double> factors_;  ///< of each of `blocks_`
  std::vector<std::int8_t> digits_;
  std::vector<std::int32_t> starts_;
};

}  // namespace moeref
