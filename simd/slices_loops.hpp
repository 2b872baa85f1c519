#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/slices.hpp"

namespace {

/// The lowest set bit of a number without sign, as a number; both as their bits.
inline std::int64_t slice_lowest_bit(std::int64_t size) {
  // Without its lowest bit, unless that is the leading one; the difference is exact.
  const std::int64_t rest = size & (size - 1);
  const double difference = __builtin_bit_cast(double, size) - __builtin_bit_cast(double, rest);
  const bool leading = (size & ((1ll << 52) - 1)) == 0;
  return leading ? size : __builtin_bit_cast(std::int64_t, difference);
}

template <std::size_t kSteps>
std::size_t slice_cut_steps(const double* numbers, std::int8_t* digits, std::int32_t* starts,
                            double* factor) {
  constexpr std::size_t kCols = kSteps * moeref::simd::kSliceStep;
  constexpr std::size_t kLanes = 8;
  // Sizes as integers, which have the same order, so that the compiler sees no branches.
  constexpr std::int64_t kInfinity = 0x7FFll << 52;
  std::int64_t low[kLanes];
  std::int64_t high[kLanes] = {};
  for (std::int64_t& value : low) value = kInfinity;
  for (std::size_t i = 0; i < kCols; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const std::int64_t size =
          __builtin_bit_cast(std::int64_t, numbers[i + j]) & 0x7FFF'FFFF'FFFF'FFFF;
      const std::int64_t bit = slice_lowest_bit(size);
      const std::int64_t counted = size == 0 ? kInfinity : bit;
      low[j] = counted < low[j] ? counted : low[j];
      high[j] = size > high[j] ? size : high[j];
    }
  }
  for (std::size_t j = 1; j < kLanes; ++j) {
    low[0] = low[j] < low[0] ? low[j] : low[0];
    high[0] = high[j] > high[0] ? high[j] : high[0];
  }
  double lowest = __builtin_bit_cast(double, low[0]);
  const double largest = __builtin_bit_cast(double, high[0]);
  if (largest == 0.0) lowest = 1.0;
  constexpr double kSmallest = 0x1p-799;  // half of it is the least factor of a LineChunk
  constexpr std::size_t kMost = moeref::simd::kMostSlices;
  if (lowest < kSmallest || largest > moeref::simd::kSliceReach[kMost - 1] * lowest) return 0;
  const double scale = 1.0 / lowest;  // powers of two
  std::size_t slices = 1;
  while (largest * scale > moeref::simd::kSliceReach[slices - 1]) ++slices;
  // With 128 in every digit, digits are the bytes of a number that is not negative.
  const std::uint64_t middle = 0x80'8080'8080ull & ((1ull << (8 * slices)) - 1);
  constexpr double kShift = 0x1.8p52;  // makes the low bits of an f64 number those of an integer
  const std::uint64_t offset = middle - __builtin_bit_cast(std::uint64_t, kShift);
  std::uint64_t whole[kCols];
  for (std::size_t i = 0; i < kCols; ++i) {
    whole[i] = __builtin_bit_cast(std::uint64_t, numbers[i] * scale + kShift) + offset;
  }
  std::uint64_t ordered[kCols];
  for (std::size_t step = 0; step < kSteps; ++step) {
    for (std::size_t i = 0; i < moeref::simd::kSliceStep; ++i) {
      ordered[step * moeref::simd::kSliceStep + i] = whole[moeref::simd::slice_column(step, i)];
    }
  }
  for (std::size_t s = 0; s < slices; ++s) {
    for (std::size_t i = 0; i < kCols; ++i) {
      digits[s * kCols + i] =
          static_cast<std::int8_t>(static_cast<std::uint8_t>(ordered[i] >> (8 * s) ^ 0x80));
    }
  }
  std::size_t first = 0;  // slice of the group
  for (std::size_t group = 0; group < moeref::simd::slice_groups(slices); ++group) {
    const std::size_t count = moeref::simd::slices_of_group(slices, group);
    const std::uint64_t mask = (1ull << (8 * count)) - 1;
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < kCols; ++i) {
      sum += static_cast<std::int64_t>(whole[i] >> (8 * first) & mask);
    }
    const auto shift = static_cast<std::int64_t>(middle >> (8 * first) & mask);
    starts[group] = static_cast<std::int32_t>(-moeref::simd::kWeightOffset *
                                              (sum - static_cast<std::int64_t>(kCols) * shift));
    first += count;
  }
  *factor = 0.5 * lowest;
  return slices;
}

std::size_t slice_cut(const double* numbers, std::size_t steps, std::int8_t* digits,
                      std::int32_t* starts, double* factor) {
  return steps == 8 ? slice_cut_steps<8>(numbers, digits, starts, factor)
                    : slice_cut_steps<4>(numbers, digits, starts, factor);
}

}  // namespace
