#include "engine/sliced_rows.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace moeref {
namespace {

constexpr std::size_t kMostCols = 32;
using simd::kMostSlices;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Some numbers as whole numbers times a power of two.
struct WholeNumbers {
  std::array<std::int64_t, kMostCols> values{};
  double unit = 0.0;  ///< 0: they span too many bits
};

WholeNumbers whole_numbers(std::span<const double> numbers) {
  double lowest = HUGE_VAL;
  double largest = 0.0;
  for (const double number : numbers) {
    const double size = std::fabs(number);
    const auto bits = std::bit_cast<std::uint64_t>(size);
    // Without its lowest bit, unless that is the leading one.
    const bool leading = (bits & ((1ull << 52) - 1)) == 0;
    const double bit = leading ? size : size - std::bit_cast<double>(bits & (bits - 1));
    lowest = std::min(lowest, size == 0.0 ? HUGE_VAL : bit);
    largest = std::max(largest, size);
  }
  WholeNumbers whole;
  if (largest == 0.0) {
    whole.unit = 1.0;
    return whole;
  }
  constexpr double kReach = 0x1p38;  // what kMostSlices digits reach
  if (largest >= kReach * lowest || lowest < 0x1p-900) return whole;
  whole.unit = lowest;
  const double scale = 1.0 / lowest;  // powers of two
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    whole.values[i] = static_cast<std::int64_t>(numbers[i] * scale);
  }
  return whole;
}

/// Balanced digits that the numbers need: n of them reach 127 * (256^n - 1) / 255.
std::uint8_t slices_of(const std::array<std::int64_t, kMostCols>& values) {
  std::int64_t most = 0;
  for (const std::int64_t value : values) most = std::max(most, value < 0 ? -value : value);
  std::uint8_t slices = 1;
  for (std::int64_t reach = 127; most > reach; reach = reach * 256 + 127) ++slices;
  return slices;
}

}  // namespace

SlicedRows::SlicedRows(const PackedRows& rows, std::span<const char> finite,
                       std::int64_t block_cols)
    : block_cols_(block_cols),
      row_block_(rows.row_block()),
      col_blocks_((rows.cols() + block_cols - 1) / block_cols) {
  const std::int64_t row_blocks = (rows.rows() + row_block_ - 1) / row_block_;
  blocks_.resize(to_size(row_blocks * col_blocks_));
  const std::size_t cells = to_size(rows.rows() * col_blocks_);
  slices_.resize(cells);
  digits_.resize(cells * kMostSlices * to_size(block_cols));
  starts_.resize(cells * kMostSlices);
  factors_.resize(cells);
  std::vector<double> values(to_size(col_blocks_ * block_cols));
  for (std::int64_t row = 0; row < rows.rows(); ++row) {
    if (finite[to_size(row)] != 0) {
      rows.get(row, values);
    } else {
      std::fill(values.begin(), values.end(), 0.0);
    }
    const std::int64_t first = row / row_block_ * row_block_;
    const std::size_t count = to_size(rows.block_rows(first));
    for (std::int64_t b = 0; b < col_blocks_; ++b) {
      const std::size_t begin = to_size(first * col_blocks_) + to_size(b) * count;
      const std::size_t cell = begin + to_size(row - first);
      if (row == first) {
        blocks_[to_size(first / row_block_ * col_blocks_ + b)] = {
            slices_.data() + begin, digits_.data() + begin * kMostSlices * to_size(block_cols),
            starts_.data() + begin * kMostSlices, factors_.data() + begin};
      }
      cut(std::span(values).subspan(to_size(b * block_cols), to_size(block_cols)), cell);
    }
  }
}

/// Writes one row of one block.
void SlicedRows::cut(std::span<const double> numbers, std::size_t cell) {
  WholeNumbers whole = whole_numbers(numbers);
  if (whole.unit == 0.0) return;
  factors_[cell] = 0.5 * whole.unit;
  slices_[cell] = slices_of(whole.values);
  std::int8_t* to = digits_.data() + cell * kMostSlices * numbers.size();
  for (std::size_t s = 0; s < slices_[cell]; ++s) {
    std::int32_t sum = 0;
    std::array<std::int8_t, kMostCols> digits;
    for (std::size_t i = 0; i < kMostCols; ++i) {
      digits[i] = static_cast<std::int8_t>(whole.values[i] & 0xFF);
      whole.values[i] = (whole.values[i] - digits[i]) >> 8;
      sum += digits[i];
    }
    starts_[cell * kMostSlices + s] = -simd::kWeightOffset * sum;
    for (std::size_t step = 0; step < numbers.size() / simd::kSliceStep; ++step) {
      for (std::size_t i = 0; i < simd::kSliceStep; ++i) {
        *to++ = digits[simd::slice_column(step, i)];
      }
    }
  }
}

}  // namespace moeref
