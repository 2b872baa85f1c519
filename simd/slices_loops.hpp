#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/slices.hpp"

namespace {

template <std::size_t kSteps>
std::size_t slice_cut_steps(const double* numbers, std::int8_t* digits, std::int32_t* starts,
                            double* factor) {
  constexpr std::size_t kCols = kSteps * moeref::simd::kSliceStep;
  constexpr std::size_t kLanes = 8;
  const double infinity = __builtin_inf();
  double low[kLanes];
  double high[kLanes] = {};
  for (double& value : low) value = infinity;
  for (std::size_t i = 0; i < kCols; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const double size = __builtin_fabs(numbers[i + j]);
      const auto bits = __builtin_bit_cast(std::uint64_t, size);
      // Without its lowest bit, unless that is the leading one.
      const double rest = __builtin_bit_cast(double, bits&(bits - 1));
      const bool leading = (bits & ((1ull << 52) - 1)) == 0;
      const double bit = leading ? size : size - rest;
      const double counted = size == 0.0 ? infinity : bit;
      low[j] = counted < low[j] ? counted : low[j];
      high[j] = size > high[j] ? size : high[j];
    }
  }
  double lowest = infinity;
  double largest = 0.0;
  for (std::size_t j = 0; j < kLanes; ++j) {
    lowest = low[j] < lowest ? low[j] : lowest;
    largest = high[j] > largest ? high[j] : largest;
  }
  if (largest == 0.0) lowest = 1.0;
  constexpr double kSmallest = 0x1p-900;  // its reciprocal is an f64 number
  constexpr double kReach = 0x1p38;       // of kMostSlices digits
  if (lowest < kSmallest || largest >= kReach * lowest) return 0;
  const double scale = 1.0 / lowest;  // powers of two
  // n digits reach 127 (256^n - 1) / 255.
  std::size_t slices = 1;
  for (double reach = 127.0; largest * scale > reach; reach = 256.0 * reach + 127.0) ++slices;
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
  for (std::size_t pair = 0; pair < moeref::simd::slice_pairs(slices); ++pair) {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < kCols; ++i) {
      sum += static_cast<std::int32_t>(whole[i] >> (16 * pair) & 0xFFFF);
    }
    const auto shift = static_cast<std::int32_t>(middle >> (16 * pair) & 0xFFFF);
    starts[pair] = -moeref::simd::kWeightOffset * (sum - static_cast<std::int32_t>(kCols) * shift);
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
