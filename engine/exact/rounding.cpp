#include "engine/exact/rounding.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace moeref::exact {
namespace {

/// A binary interchange format: `precision` significant bits, normal exponents
/// [min_exponent, max_exponent].
struct BinaryFormat {
  int precision;
  int min_exponent;
  int max_exponent;
};

BinaryFormat binary_format(Format format) {
  switch (format) {
    case Format::f32:
      return {24, -126, 127};
    case Format::bf16:
      return {8, -126, 127};
    case Format::f16:
      return {11, -14, 15};
    default:
      throw std::invalid_argument("round_to: only f32, bf16 and f16 are output formats");
  }
}

}  // namespace

double round_to_odd(double hi, double lo) {
  const auto bits = std::bit_cast<std::uint64_t>(hi);
  if (lo == 0.0 || (bits & 1) != 0) return hi;
  // hi is even, so the odd neighbour is the one on lo's side. The bits of a double order like its
  // magnitude, also over a power of two and into the subnormals.
  const bool away_from_zero = std::signbit(hi) == std::signbit(lo);
  return std::bit_cast<double>(away_from_zero ? bits + 1 : bits - 1);
}

float round_to(Format format, double odd) {
  if (std::isnan(odd)) return canonical_nan();
  if (format == Format::f32) return static_cast<float>(odd);
  const BinaryFormat target = binary_format(format);
  const auto bits = std::bit_cast<std::uint64_t>(odd);
  const std::uint64_t magnitude = bits & ~(1ull << 63);
  const float sign = std::signbit(odd) ? -1.0f : 1.0f;
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  if (exponent > target.max_exponent) return sign * std::numeric_limits<float>::infinity();
  // Half of the smallest subnormal has this exponent; anything with a smaller one gives zero.
  const int lowest = target.min_exponent - target.precision + 1;
  if (exponent < lowest - 1) return sign * 0.0f;

  // Bits of the double below the last place of the result: at least 53 - precision.
  const int last_place = std::max(exponent - target.precision + 1, lowest);
  const int cut = last_place - (exponent - 52);
  const std::uint64_t significand = (magnitude & 0xFFFFFFFFFFFFFull) | (1ull << 52);
  const std::uint64_t kept = significand >> cut;
  const std::uint64_t rest = significand - (kept << cut);
  const std::uint64_t half = 1ull << (cut - 1);
  const bool up = rest > half || (rest == half && (kept & 1) != 0);
  // At most 2^precision * 2^last_place: one past the range rounds to infinity.
  const double value = std::ldexp(static_cast<double>(kept + (up ? 1 : 0)), last_place);
  if (value >= std::ldexp(1.0, target.max_exponent + 1)) {
    return sign * std::numeric_limits<float>::infinity();
  }
  return sign * static_cast<float>(value);
}

float canonical_nan() { return std::bit_cast<float>(0x7FC00000u); }

}  // namespace moeref::exact
