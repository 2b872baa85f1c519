#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/matrix.hpp"

namespace {

constexpr std::uint32_t kJoinInfinity = 0x7F80'0000u;

inline std::uint32_t join_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float join_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// Any NaN as 0x7FFFFFFF.
inline float join_canonical(float x) { return x == x ? x : join_float(0x7FFF'FFFFu); }

/// A subnormal as the zero of its sign.
inline float join_flushed(float x) {
  return (join_bits(x) & kJoinInfinity) == 0 ? join_float(join_bits(x) & 0x8000'0000u) : x;
}

/// A result rounded with subnormals, flushed; at exactly 2^-126 it may have been rounded up from
/// below, which the caller decides.
inline float join_cleared(float x, unsigned& unsure) {
  const std::uint32_t magnitude = join_bits(x) & 0x7FFF'FFFFu;
  unsure |= magnitude == 0x0080'0000u ? 1u : 0u;
  return join_flushed(x);
}

template <moeref::simd::JoinForm kForm, bool kFlushes>
unsigned join_columns(const float* p, float row, const float* columns, float* acc) {
  using enum moeref::simd::JoinForm;
  constexpr std::size_t kCount = 16;
  float result[kCount];
  unsigned unsure[kCount];
  for (std::size_t j = 0; j < kCount; ++j) {
    float a = p[j];
    float b = columns[j];
    float c = acc[j];
    float s = row;
    unsigned doubt = 0;
    if (kFlushes && kForm != add) {
      a = join_flushed(a);
      b = join_flushed(b);
      c = join_flushed(c);
      s = join_flushed(s);
    }
    const auto cleared = [&doubt](float x) { return kFlushes ? join_cleared(x, doubt) : x; };
    float value = 0.0f;
    switch (kForm) {
      case add:
        value = a + c;
        break;
      case fma_product:
        value = cleared(__builtin_fmaf(a, cleared(s * b), c));
        break;
      case fma_row:
        value = cleared(__builtin_fmaf(cleared(a * s), b, c));
        break;
      case fma_column:
        value = cleared(__builtin_fmaf(cleared(a * b), s, c));
        break;
      case scale_first:
        value = cleared(a * b);
        break;
      case scale_next:
        value = cleared(__builtin_fmaf(a, b, c));
        break;
    }
    result[j] = join_canonical(value);
    unsure[j] = doubt;
  }
  unsigned mask = 0;
  for (std::size_t j = 0; j < kCount; ++j) {
    if (unsure[j] != 0) {
      mask |= 1u << j;
    } else {
      acc[j] = result[j];
    }
  }
  return mask;
}

template <bool kFlushes>
unsigned join_form(moeref::simd::JoinForm form, const float* p, float row, const float* columns,
                   float* acc) {
  using enum moeref::simd::JoinForm;
  switch (form) {
    case add:
      return join_columns<add, kFlushes>(p, row, columns, acc);
    case fma_product:
      return join_columns<fma_product, kFlushes>(p, row, columns, acc);
    case fma_row:
      return join_columns<fma_row, kFlushes>(p, row, columns, acc);
    case fma_column:
      return join_columns<fma_column, kFlushes>(p, row, columns, acc);
    case scale_first:
      return join_columns<scale_first, kFlushes>(p, row, columns, acc);
    case scale_next:
      break;
  }
  return join_columns<scale_next, kFlushes>(p, row, columns, acc);
}

unsigned join(moeref::simd::JoinForm form, bool flushes, const float* p, float row,
              const float* columns, float* acc) {
  return flushes ? join_form<true>(form, p, row, columns, acc)
                 : join_form<false>(form, p, row, columns, acc);
}

void powers(const float* values, std::size_t count, float smallest, float* out, float* lowest,
            float* largest) {
  // Positive floats are ordered as their bits are, and integers may be reduced in any order.
  const auto least = static_cast<std::int32_t>(join_bits(smallest));
  auto low = static_cast<std::int32_t>(kJoinInfinity);
  std::int32_t high = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<std::int32_t>(join_bits(values[i]) & 0x7FFF'FFFFu);
    const auto field =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(magnitude) & kJoinInfinity);
    const std::int32_t clipped = field > least ? field : least;
    const std::int32_t power = magnitude == 0 ? 0 : clipped;
    const std::int32_t nonzero =
        magnitude == 0 ? static_cast<std::int32_t>(kJoinInfinity) : clipped;
    low = nonzero < low ? nonzero : low;
    high = power > high ? power : high;
    out[i] = join_float(static_cast<std::uint32_t>(power));
  }
  *lowest = join_float(static_cast<std::uint32_t>(low));
  *largest = join_float(static_cast<std::uint32_t>(high));
}

}  // namespace
