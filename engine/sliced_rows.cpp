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
  std::array<std::int32_t, simd::slice_groups(kMostSlices)> starts;
  std::array<std::int8_t, kMostSlices * kMostCols> digits;
};

}  // namespace

SlicedRow::SlicedRow(std::span<const double> row, std::int64_t block_cols,
                     const simd::SliceKernels& kernels)
    : block_cols_(block_cols) {
  const std::size_t blocks = row.size() / to_size(block_cols) + 1;
  blocks_.reserve(blocks);
  factors_.reserve(blocks);
  constexpr std::size_t kUsualSlices = 3;
  digits_.reserve(kUsualSlices * row.size());
  starts_.reserve(simd::slice_groups(kUsualSlices) * blocks);
  for (std::size_t first = 0; first < row.size(); first += to_size(kSliceChunk)) {
    add_chunk(row.subspan(first, std::min(row.size() - first, to_size(kSliceChunk))), kernels);
  }
}

void SlicedRow::add_chunk(std::span<const double> numbers, const simd::SliceKernels& kernels) {
  const std::size_t cols = to_size(block_cols_);
  const std::size_t steps = cols / simd::kSliceStep;
  std::array<Cut, kMostBlocks> cuts;
  const std::size_t count = (numbers.size() + cols - 1) / cols;
  for (std::size_t b = 0; b < count; ++b) {
    Cut& cut = cuts[b];
    std::array<double, kMostCols> padded{};
    const double* block = numbers.data() + b * cols;
    if ((b + 1) * cols > numbers.size()) {
      std::copy(block, numbers.data() + numbers.size(), padded.begin());
      block = padded.data();
    }
    cut.slices = kernels.cut(block, steps, cut.digits.data(), cut.starts.data(), &cut.factor);
  }
  Chunk chunk;
  chunk.blocks = blocks_.size();
  chunk.digits = digits_.size();
  chunk.starts = starts_.size();
  for (std::size_t slices = 1; slices <= kMostSlices; ++slices) {
    for (std::size_t b = 0; b < count; ++b) {
      const Cut& cut = cuts[b];
      if (cut.slices != slices) continue;
      ++chunk.counts[slices - 1];
      blocks_.push_back(static_cast<std::uint8_t>(b));
      factors_.push_back(cut.factor);
      digits_.insert(digits_.end(), cut.digits.begin(),
                     cut.digits.begin() + static_cast<std::ptrdiff_t>(slices * cols));
      starts_.insert(starts_.end(), cut.starts.begin(),
                     cut.starts.begin() + static_cast<std::ptrdiff_t>(simd::slice_groups(slices)));
    }
  }
  for (std::size_t b = 0; b < count; ++b) {
    if (cuts[b].slices != 0) continue;
    ++chunk.left_out;
    blocks_.push_back(static_cast<std::uint8_t>(b));
    factors_.push_back(0.0);
  }
  chunks_.push_back(chunk);
}

simd::SliceRow SlicedRow::chunk(std::int64_t chunk) const {
  const Chunk& at = chunks_[to_size(chunk)];
  return {at.counts, blocks_.data() + at.blocks, factors_.data() + at.blocks,
          digits_.data() + at.digits, starts_.data() + at.starts};
}

std::span<const std::uint8_t> SlicedRow::left_out(std::int64_t chunk) const {
  const Chunk& at = chunks_[to_size(chunk)];
  const std::size_t end =
      to_size(chunk + 1) < chunks_.size() ? chunks_[to_size(chunk + 1)].blocks : blocks_.size();
  return std::span(blocks_).subspan(end - at.left_out, at.left_out);
}

}  // namespace moeref
