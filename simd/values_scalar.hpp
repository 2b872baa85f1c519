#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simd/gemm.hpp"
#include "simd/slices.hpp"

// What codes mean, for the scalar loops.

namespace moeref::simd::scalar {

inline constexpr double kE2m1[16] = {0.0,  0.5,  1.0,  1.5,  2.0,  3.0,  4.0,  6.0,
                                     -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0};

/// A number of `exponent_bits` and `fraction_bits` without a sign; no infinity.
inline double magnitude(std::uint32_t code, int fraction_bits, int bias) {
  const auto fraction = static_cast<int>(code & ((1u << fraction_bits) - 1));
  const int exponent = static_cast<int>(code >> fraction_bits);
  return exponent == 0
             ? std::ldexp(fraction, 1 - bias - fraction_bits)
             : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

/// Code number `i`.
inline double value_of(PanelCode type, const std::byte* codes, std::size_t i) {
  if (type == PanelCode::e2m1) {
    return kE2m1[std::to_integer<std::uint32_t>(codes[i / 2]) >> (i % 2 * 4) & 0xFu];
  }
  if (type == PanelCode::e4m3) {
    const auto code = std::to_integer<std::uint32_t>(codes[i]);
    const double size = magnitude(code & 0x7F, 3, 7);
    return (code & 0x80) != 0 ? -size : size;
  }
  if (type == PanelCode::e8m0) return std::ldexp(1.0, std::to_integer<int>(codes[i]) - 127);
  std::uint16_t code;
  std::memcpy(&code, codes + 2 * i, sizeof code);
  const double size = type == PanelCode::bf16 ? magnitude(code & 0x7FFFu, 7, 127)
                                              : magnitude(code & 0x7FFFu, 10, 15);
  return (code & 0x8000u) != 0 ? -size : size;
}

/// The byte that sums of whole numbers take for code `col` of e2m1.
inline int byte_weight(const std::byte* codes, std::size_t col) {
  return static_cast<int>(2.0 * value_of(PanelCode::e2m1, codes, col)) + kWeightOffset;
}

}  // namespace moeref::simd::scalar
