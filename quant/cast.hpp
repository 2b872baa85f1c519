#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "quant/dtype.hpp"
#include "quant/mini_float.hpp"

// Rounding to a wider type's value that stays in f32: the casts between the steps of a dequantizer.
// Free of branches and tables, so that loops over them vectorise. They use f32 and f64 arithmetic:
// the caller holds the default float environment.

namespace moeref {

/// `value` rounded to nearest even to a BF16 or FP16 value, as `encode` and `decode` do it under
/// EncodePolicy::eigen; f32 stays as it is. A NaN gives some NaN.
template <Format kTarget>
inline float cast(float value) {
  static_assert(kTarget == Format::f32 || kTarget == Format::bf16 || kTarget == Format::f16);
  if constexpr (kTarget == Format::f32) return value;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & ~kF32SignMask;
  std::uint32_t rounded = 0;
  if constexpr (kTarget == Format::bf16) {
    rounded = (magnitude + 0x7FFFu + ((magnitude >> 16) & 1u)) & 0xFFFF'0000u;
  } else {
    // From 2^-14 on the last 13 bits go, 65536 and above is infinity; below, adding 0.5 puts the
    // unit 2^-24 into the last place of the sum.
    const std::uint32_t normal = (magnitude + 0x0FFFu + ((magnitude >> 13) & 1u)) & 0xFFFF'E000u;
    const float subnormal = (std::bit_cast<float>(magnitude) + 0.5f) - 0.5f;
    rounded = normal >= 0x4780'0000u ? kF32Infinity : normal;
    rounded = magnitude < 0x3880'0000u ? std::bit_cast<std::uint32_t>(subnormal) : rounded;
  }
  rounded = magnitude > kF32Infinity ? magnitude : rounded;
  return std::bit_cast<float>(rounded | (bits & kF32SignMask));
}

/// x rounded to odd: the f32 that is x, or of the two around x the one with an odd last bit (beyond
/// the largest, that one). Rounding it once more, to a format with at least two bits less, gives
/// what rounding x itself gives. Source: Boldo and Melquiond, "When double rounding is odd", IMACS
/// 2005.
inline float to_odd_float(double x) {
  const auto nearest = static_cast<float>(x);
  const auto back = static_cast<double>(nearest);
  const std::uint32_t inexact = back != x ? 1 : 0;
  const std::uint32_t away = std::fabs(back) > std::fabs(x) ? 1 : 0;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(nearest) - away) | inexact);
}

/// A double rounded once.
template <Format kTarget>
inline float cast(double value) {
  if constexpr (kTarget == Format::f32) {
    return static_cast<float>(value);
  } else {
    return cast<kTarget>(to_odd_float(value));
  }
}

/// x * y rounded to odd in f64, for 0 or magnitudes in [2^-298, 2^256], where the rest of the
/// product does not underflow.
inline double multiply_to_odd(double x, double y) {
  const double nearest = x * y;
  const double rest = std::fma(x, y, -nearest);
  if (!(rest < 0.0 || rest > 0.0)) return nearest;  // also if the product is infinite or NaN
  const auto bits = std::bit_cast<std::uint64_t>(nearest);
  if ((bits & 1u) != 0) return nearest;
  const bool grows = (rest > 0.0) == (nearest > 0.0);  // in magnitude
  return std::bit_cast<double>(grows ? bits + 1 : bits - 1);
}

/// The value of an FP16 code, exact; a NaN keeps sign and payload.
inline float widen_f16(std::uint16_t code) {
  const std::uint32_t magnitude = (code & 0x7FFFu) << 13;
  // Exponent field 0 .. 30 with FP16's bias; the factor 2^112 is the difference of the biases, and
  // normalises subnormals.
  const float finite = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t bits =
      magnitude >= 0x0F80'0000u ? magnitude | kF32Infinity : std::bit_cast<std::uint32_t>(finite);
  return std::bit_cast<float>(bits | (static_cast<std::uint32_t>(code & 0x8000u) << 16));
}

}  // namespace moeref
