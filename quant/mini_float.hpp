#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <stdexcept>

#include "quant/dtype.hpp"

// One description for every narrow floating-point format, and the two functions that follow from
// it: the value of a code and the rounding of a value to a code. Integer arithmetic only, so
// neither the host's rounding mode nor flush-to-zero matters.

namespace moeref {

/// What the codes at the ends of a format's range mean.
enum class Specials : std::uint8_t {
  none,           ///< every code is a finite number: E2M1
  ieee,           ///< exponent all ones: infinity if the mantissa is 0, else NaN: E5M2, BF16, FP16
  all_ones_nan,   ///< only exponent and mantissa all ones is NaN, no infinity: E4M3 of OCP OFP8 1.0
  fnuz,           ///< the code of -0 is the only NaN, no infinity: AMD
  exponent_only,  ///< E8M0 of OCP MX 1.0: code 0 is 2^-bias, not zero; all ones is NaN
};

/// Sign, exponent field E, mantissa field M, from the top. E > 0: 2^(E - bias) (1 + M /
/// 2^mantissa_bits); E = 0: 2^(1 - bias) M / 2^mantissa_bits.
struct MiniFloat {
  bool has_sign;
  int exponent_bits;
  int mantissa_bits;
  int bias;
  Specials specials;

  constexpr std::uint32_t sign_mask() const {
    return has_sign ? 1u << (exponent_bits + mantissa_bits) : 0u;
  }
  constexpr std::uint32_t magnitude_mask() const {
    return (1u << (exponent_bits + mantissa_bits)) - 1u;
  }
  /// The code of the largest finite value.
  constexpr std::uint32_t max_code() const {
    switch (specials) {
      case Specials::ieee:
        return (((1u << exponent_bits) - 1u) << mantissa_bits) - 1u;
      case Specials::all_ones_nan:
      case Specials::exponent_only:
        return magnitude_mask() - 1u;
      case Specials::none:
      case Specials::fnuz:
        break;
    }
    return magnitude_mask();
  }
};

/// The description of every format but f32 and f64. UE4M3 is laid out as E4M3: the sign bit is
/// there, and clear.
constexpr MiniFloat mini_float(Format format) {
  switch (format) {
    case Format::e4m3:
      return {true, 4, 3, 7, Specials::all_ones_nan};
    case Format::e4m3fnuz:
      return {true, 4, 3, 8, Specials::fnuz};
    case Format::e5m2:
      return {true, 5, 2, 15, Specials::ieee};
    case Format::e5m2fnuz:
      return {true, 5, 2, 16, Specials::fnuz};
    case Format::e2m1:
      return {true, 2, 1, 1, Specials::none};
    case Format::e8m0:
      return {false, 8, 0, 127, Specials::exponent_only};
    case Format::ue4m3:
      return {true, 4, 3, 7, Specials::all_ones_nan};
    case Format::bf16:
      return {true, 8, 7, 127, Specials::ieee};
    case Format::f16:
      return {true, 5, 10, 15, Specials::ieee};
    case Format::f32:
    case Format::f64:
      break;
  }
  throw std::invalid_argument("mini_float: f32 and f64 are not narrow formats");
}

inline constexpr std::uint32_t kF32SignMask = 0x8000'0000u;
inline constexpr std::uint32_t kF32Infinity = 0x7F80'0000u;
inline constexpr std::uint32_t kF32QuietNan = 0x7FC0'0000u;

/// The f32 bits of the value of `code`; exact. A NaN code gives the quiet NaN 0x7FC00000, with the
/// code's sign and, from BF16 and FP16, the code's payload as it is.
constexpr std::uint32_t decode_to_f32_bits(const MiniFloat& format, std::uint32_t code) {
  const int m = format.mantissa_bits;
  const std::uint32_t sign = (code & format.sign_mask()) != 0 ? kF32SignMask : 0u;
  const std::uint32_t magnitude = code & format.magnitude_mask();
  const std::uint32_t mantissa = magnitude & ((1u << m) - 1u);
  const int exponent = static_cast<int>(magnitude >> m);

  if (format.specials == Specials::exponent_only) {
    if (magnitude > format.max_code()) return kF32QuietNan;
    return exponent == 0 ? 0x0040'0000u : magnitude << 23;  // 2^-127 is an f32 subnormal
  }
  if (format.specials == Specials::fnuz && code == format.sign_mask()) return sign | kF32QuietNan;
  if (magnitude > format.max_code()) {
    const bool is_nan = format.specials == Specials::all_ones_nan || mantissa != 0;
    const bool is_byte = format.exponent_bits + m < 8;
    if (is_nan && is_byte) return sign | kF32QuietNan;
    return sign | kF32Infinity | (mantissa << (23 - m));
  }
  if (exponent > 0) {
    return sign | (static_cast<std::uint32_t>(exponent - format.bias + 127) << 23) |
           (mantissa << (23 - m));
  }
  if (mantissa == 0) return sign;
  // A subnormal, mantissa * 2^unit. It is one in f32 too only where the smallest exponents agree
  // (BF16).
  const int unit = 1 - format.bias - m;
  const int leading = static_cast<int>(std::bit_width(mantissa)) - 1;
  if (leading + unit < -126) return sign | (mantissa << (unit + 149));
  return sign | (static_cast<std::uint32_t>(leading + unit + 127) << 23) |
         ((mantissa << (23 - leading)) & 0x007F'FFFFu);
}

/// The f32 magnitude `magnitude` (bits of |x|, finite) rounded to nearest even to units of the
/// format, as if its exponents went on without end: the result is a code, or above `max_code()` on
/// overflow. Not for E8M0. Needs at most 22 mantissa bits and no smaller normal exponent than f32
/// has.
constexpr std::uint32_t round_magnitude(const MiniFloat& format, std::uint32_t magnitude) {
  const int m = format.mantissa_bits;
  const int dropped = 23 - m;
  // Rounds off the last `bits` bits: adds half a unit, less one if the bit that stays is even. A
  // carry may run on into the exponent field, as it should.
  const auto round_off = [](std::uint32_t value, int bits) {
    return (value + (1u << (bits - 1)) - 1u + ((value >> bits) & 1u)) >> bits;
  };
  const int smallest_normal = 128 - format.bias;  // the f32 exponent field of 2^(1 - bias)
  if (magnitude >= static_cast<std::uint32_t>(smallest_normal) << 23) {
    return round_off(magnitude, dropped) - (static_cast<std::uint32_t>(127 - format.bias) << m);
  }
  // In the subnormal range the unit stays while the exponent falls, so more bits go; beyond 24 the
  // value is below half a unit.
  const int field = std::max(static_cast<int>(magnitude >> 23), 1);
  const int bits = dropped + smallest_normal - field;
  if (bits > 24) return 0;
  const std::uint32_t hidden_bit = magnitude >= 0x0080'0000u ? 0x0080'0000u : 0u;
  return round_off((magnitude & 0x007F'FFFFu) | hidden_bit, bits);
}

}  // namespace moeref
