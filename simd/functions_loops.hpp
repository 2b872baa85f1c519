#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/functions.hpp"

namespace {

constexpr std::size_t kFunctionBlock = 16;

void sigmoid_block(const moeref::simd::ExpTable& table, const double* z, double* s) {
  constexpr double kIntegers = 0x1.8p52;  // adding it leaves an integer in the low bits
  constexpr std::uint64_t kSteps = moeref::simd::ExpTable::kSteps;
  static_assert(kSteps == 64);
  double size[kFunctionBlock];
  double count[kFunctionBlock];
  double power_of_two[kFunctionBlock];
  std::uint64_t entry[kFunctionBlock];
  for (std::size_t i = 0; i < kFunctionBlock; ++i) {
    size[i] = __builtin_bit_cast(
        double, __builtin_bit_cast(std::uint64_t, z[i]) & 0x7FFF'FFFF'FFFF'FFFFull);
    const double shifted = size[i] * table.steps_per_unit + kIntegers;
    const std::uint64_t k = __builtin_bit_cast(std::uint64_t, shifted) & 0xFFFF'FFFF;
    count[i] = shifted - kIntegers;
    entry[i] = k & (kSteps - 1);
    power_of_two[i] = __builtin_bit_cast(double, (1023 - (k >> 6)) << 52);
  }
  double powers[kFunctionBlock];
  for (std::size_t i = 0; i < kFunctionBlock; ++i) powers[i] = table.powers[entry[i]];
  for (std::size_t i = 0; i < kFunctionBlock; ++i) {
    const double t = count[i] * table.step_rest - (size[i] - count[i] * table.step);
    const double square = t * t;
    const double tail = (1.0 / 6 + t * (1.0 / 24)) + square * (1.0 / 120 + t * (1.0 / 720));
    const double p = t + square * (0.5 + t * tail);
    const double e = (powers[i] + powers[i] * p) * power_of_two[i];
    s[i] = (z[i] < 0.0 ? e : 1.0) / (1.0 + e);
  }
}

void function_sigmoid(const moeref::simd::ExpTable& table, const double* z, std::size_t count,
                      double* s) {
  std::size_t i = 0;
  for (; i + kFunctionBlock <= count; i += kFunctionBlock) sigmoid_block(table, z + i, s + i);
  if (i == count) return;
  double rest[kFunctionBlock] = {};
  double values[kFunctionBlock];
  for (std::size_t j = 0; i + j < count; ++j) rest[j] = z[i + j];
  sigmoid_block(table, rest, values);
  for (std::size_t j = 0; i + j < count; ++j) s[i + j] = values[j];
}

}  // namespace
