#include "engine/lined_rows.hpp"

#include <algorithm>
#include <cstring>

namespace moeref {
namespace {

using simd::kLineBlocks;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// visit(block of the row, slices, factor, digits) for every block that has slices.
template <typename Visit>
void for_each_block(const SlicedRow& row, Visit visit) {
  const std::size_t chunk_blocks = to_size(kSliceChunk / row.block_cols());
  for (std::int64_t c = 0; c < row.chunks(); ++c) {
    simd::SliceRow chunk = row.chunk(c);
    for (std::size_t slices = 1; slices <= simd::kMostSlices; ++slices) {
      for (std::size_t n = 0; n < chunk.counts[slices - 1]; ++n) {
        visit(to_size(c) * chunk_blocks + *chunk.blocks++, slices, *chunk.factors++, chunk.digits);
        chunk.digits += slices * to_size(row.block_cols());
      }
    }
  }
}

}  // namespace

LinedRow::LinedRow(const SlicedRow& row) : block_cols_(row.block_cols()) {
  const std::size_t cols = to_size(block_cols_);
  const std::size_t slice = kLineBlocks * cols;  // digits
  chunks_.resize((to_size(row.blocks()) + kLineBlocks - 1) / kLineBlocks);
  for_each_block(row, [&](std::size_t block, std::size_t slices, auto...) {
    simd::LineChunk& chunk = chunks_[block / kLineBlocks];
    chunk.slices = std::max(chunk.slices, slices > 3 ? simd::kMostSlices : slices);
  });
  std::size_t digits = 0;
  std::size_t starts = 0;
  for (const simd::LineChunk& chunk : chunks_) {
    digits += chunk.slices * slice;
    starts += simd::slice_groups(chunk.slices) * kLineBlocks;
  }
  digits_.resize(digits);
  starts_.resize(starts);
  factors_.assign(chunks_.size() * kLineBlocks, 1.0);
  digits = starts = 0;
  std::vector<std::size_t> first_digits;
  std::vector<std::size_t> first_starts;
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    simd::LineChunk& chunk = chunks_[c];
    first_digits.push_back(digits);
    first_starts.push_back(starts);
    chunk.digits = digits_.data() + digits;
    chunk.factors = factors_.data() + c * kLineBlocks;
    chunk.starts = starts_.data() + starts;
    digits += chunk.slices * slice;
    starts += simd::slice_groups(chunk.slices) * kLineBlocks;
  }
  for_each_block(
      row, [&](std::size_t block, std::size_t slices, double factor, const std::int8_t* from) {
        const std::size_t c = block / kLineBlocks;
        const std::size_t b = block % kLineBlocks;
        const std::size_t first_group = simd::slices_of_group(chunks_[c].slices, 0);
        factors_[block] = factor;
        for (std::size_t s = 0; s < slices; ++s) {
          std::int8_t* to = digits_.data() + first_digits[c] + s * slice;
          std::int32_t sum = 0;
          for (std::size_t i = 0; i < cols; ++i) sum += from[i];
          for (std::size_t step = 0; step < cols / simd::kSliceStep; ++step) {
            // The columns of a step are all even or all odd, and side by side there.
            std::memcpy(to + simd::line_digit(b, simd::slice_column(step, 0), cols), from,
                        simd::kSliceStep);
            from += simd::kSliceStep;
          }
          const std::size_t group = s < first_group ? 0 : 1;
          const std::size_t place = s - group * first_group;  // in the group
          starts_[first_starts[c] + group * kLineBlocks + b] -=
              simd::kWeightOffset * sum * (1 << (8 * place));
        }
      });
}

}  // namespace moeref
