#include "engine/sliced_rows.hpp"

#include <algorithm>
#include <array>

namespace moeref {
namespace {

using simd::kMostSlices;

constexpr std::size_t kMostCols = 32;
constexpr std::size_t kMostBlocks = static_cast<std::size_t>(kSliceChunk) / 16;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// One block as SliceKernels::cut gives it.
struct Cut {
  std::size_t slices = 0;
  double factor = 0.0;
  std::array<std::int32_t, simd::slice_pairs(kMostSlices)> starts;
  std::array<std::int8_t, kMostSlices * kMostCols> digits;
};

}  // namespace

SlicedRows::SlicedRows(std::int64_t cols, std::int64_t block_cols,
                       const simd::SliceKernels& kernels)
    : block_cols_(block_cols),
      col_blocks_((cols + block_cols - 1) / block_cols),
      col_chunks_((cols + kSliceChunk - 1) / kSliceChunk),
      kernels_(kernels) {}

void SlicedRows::add(std::span<const double> row) {
  for (std::size_t first = 0; first < row.size(); first += to_size(kSliceChunk)) {
    add_chunk(row.subspan(first, std::min(row.size() - first, to_size(kSliceChunk))));
  }
}

void SlicedRows::add_chunk(std::span<const double> numbers) {
  const std::size_t cols = to_size(block_cols_);
  std::array<Cut, kMostBlocks> cuts;
  const std::size_t count = (numbers.size() + cols - 1) / cols;
  for (std::size_t b = 0; b < count; ++b) {
    Cut& cut = cuts[b];
    const double* block = numbers.data() + b * cols;
    if ((b + 1) * cols > numbers.size()) {
      padded_.assign(cols, 0.0);
      std::copy(block, numbers.data() + numbers.size(), padded_.begin());
      block = padded_.data();
    }
    cut.slices = kernels_.cut(block, steps(), cut.digits.data(), cut.starts.data(), &cut.factor);
  }
  Chunk chunk;
  chunk.digits = digits_.size();
  chunk.starts = starts_.size();
  // Those of one slice first, those without any last.
  for (std::size_t slices = 1; slices <= kMostSlices + 1; ++slices) {
    for (std::size_t b = 0; b < count; ++b) {
      const Cut& cut = cuts[b];
      if (cut.slices != slices % (kMostSlices + 1)) continue;
      blocks_.push_back(static_cast<std::uint8_t>(b));
      factors_.push_back(cut.factor);
      if (cut.slices == 0) continue;
      ++chunk.counts[slices - 1];
      ++chunk.blocks;
      digits_.insert(digits_.end(), cut.digits.begin(),
                     cut.digits.begin() + static_cast<std::ptrdiff_t>(slices * cols));
      starts_.insert(starts_.end(), cut.starts.begin(),
                     cut.starts.begin() + static_cast<std::ptrdiff_t>(simd::slice_pairs(slices)));
    }
  }
  chunks_.push_back(chunk);
}

simd::SliceRow SlicedRows::row(std::int64_t row, std::int64_t chunk) const {
  const Chunk& at = chunk_at(row, chunk);
  const std::size_t first = first_block(row, chunk);
  return {at.counts, blocks_.data() + first, factors_.data() + first, digits_.data() + at.digits,
          starts_.data() + at.starts};
}

std::span<const std::uint8_t> SlicedRows::left_out(std::int64_t row, std::int64_t chunk) const {
  const std::size_t before = chunk_at(row, chunk).blocks;
  const std::int64_t blocks =
      std::min(kSliceChunk / block_cols_, col_blocks_ - chunk * (kSliceChunk / block_cols_));
  return std::span(blocks_).subspan(first_block(row, chunk) + before, to_size(blocks) - before);
}

}  // namespace moeref
