#include "engine/sliced_rows.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace moeref {
namespace {

constexpr std::size_t kMostCols = 32;
constexpr auto kMostSlices = static_cast<std::size_t>(simd::kMostSlices);

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Some numbers as whole numbers times a power of two.
struct WholeNumbers {
  std::array<std::int32_t, kMostCols> values{};
  double unit = 0.0;  ///< 0: they span too many bits
};

WholeNumbers whole_numbers(const std::array<double, kMostCols>& numbers) {
  // The lowest set bit of a number is its significand's, the others masked away.
  std::uint64_t largest = 0;
  std::uint64_t lowest = ~0ull;  // exponent field of 2^(lowest bit)
  constexpr std::uint64_t kFraction = (1ull << 52) - 1;
  for (const double number : numbers) {
    const std::uint64_t bits = std::bit_cast<std::uint64_t>(number) & ~(1ull << 63);
    if (bits == 0) continue;
    largest = std::max(largest, bits);
    const auto zeros =
        static_cast<std::uint64_t>(std::countr_zero((bits & kFraction) | 1ull << 52));
    lowest = std::min(lowest, (bits >> 52) + zeros);
  }
  WholeNumbers whole;
  if (largest == 0) {
    whole.unit = 1.0;
    return whole;
  }
  // |number| < 2^(field of the largest + 1 - 1023), whole numbers below 2^31: their digits need not
  // more than kMostSlices.
  constexpr std::uint64_t kWidth = 52;
  const std::uint64_t span = (largest >> 52) + 1 + kWidth - lowest;
  const std::int64_t exponent = static_cast<std::int64_t>(lowest) - 1023 - 52;
  if (span > 30 || exponent < -900 || exponent > 900) return whole;
  whole.unit = std::ldexp(1.0, static_cast<int>(exponent));
  const double scale = std::ldexp(1.0, static_cast<int>(-exponent));
  for (std::size_t i = 0; i < kMostCols; ++i) {
    whole.values[i] = static_cast<std::int32_t>(numbers[i] * scale);
  }
  return whole;
}

/// Digits that the numbers need: an arithmetic shift by what a balanced digit leaves ends at zero.
int slices_of(const std::array<std::int32_t, kMostCols>& values) {
  std::int32_t most = 0;
  for (const std::int32_t value : values) most = std::max(most, value < 0 ? -value : value);
  int slices = 1;
  for (std::int32_t reach = 127; most > reach; ++slices) reach = reach * 256 + 127;
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
  digits_.resize(to_size(rows.rows() * col_blocks_ * block_cols) * kMostSlices);
  starts_.resize(to_size(rows.rows() * col_blocks_) * kMostSlices);
  factors_.resize(to_size(rows.rows() * col_blocks_));
  const std::size_t steps = to_size(block_cols) / simd::kSliceStep;
  std::vector<WholeNumbers> block(to_size(row_block_));
  for (std::int64_t first = 0; first < rows.rows(); first += row_block_) {
    const std::size_t count = to_size(rows.block_rows(first));
    for (std::int64_t b = 0; b < col_blocks_; ++b) {
      const std::size_t begin = to_size(first * col_blocks_) + to_size(b) * count;
      int slices = 1;
      for (std::size_t row = 0; row < count; ++row) {
        const std::int64_t index = first + static_cast<std::int64_t>(row);
        std::array<double, kMostCols> numbers{};
        const std::int64_t end = std::min(block_cols, rows.cols() - b * block_cols);
        for (std::int64_t col = 0; finite[to_size(index)] != 0 && col < end; ++col) {
          numbers[to_size(col)] = rows.at(index, b * block_cols + col);
        }
        block[row] = whole_numbers(numbers);
        if (block[row].unit == 0.0) {
          slices = 0;
          break;
        }
        slices = std::max(slices, slices_of(block[row].values));
        factors_[begin + row] = 0.5 * block[row].unit;
      }
      simd::SliceBlock& made = blocks_[to_size(first / row_block_ * col_blocks_ + b)];
      std::int8_t* digits = digits_.data() + begin * to_size(block_cols) * kMostSlices;
      std::int32_t* starts = starts_.data() + begin * kMostSlices;
      made = {slices, digits, starts, factors_.data() + begin};
      for (std::size_t row = 0; slices != 0 && row < count; ++row) {
        std::array<std::int32_t, kMostCols>& values = block[row].values;
        for (std::size_t s = 0; s < static_cast<std::size_t>(slices); ++s) {
          std::int32_t sum = 0;
          for (std::size_t step = 0; step < steps; ++step) {
            std::int8_t* to = digits + ((s * steps + step) * count + row) * simd::kSliceStep;
            for (std::size_t i = 0; i < simd::kSliceStep; ++i) {
              std::int32_t& value = values[simd::slice_column(step, i)];
              const auto digit = static_cast<std::int8_t>(value & 0xFF);
              value = (value - digit) >> 8;
              to[i] = digit;
              sum += digit;
            }
          }
          starts[s * count + row] = -simd::kWeightOffset * sum;
        }
      }
    }
  }
}

}  // namespace moeref
