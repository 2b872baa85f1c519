#include "quant/gpu/approx.hpp"

#include <array>

namespace moeref::gpu {
namespace {

constexpr std::uint32_t kMantissaMask = 0x007F'FFFFu;

std::int64_t square_of(std::uint32_t fifteen_bits) { return kTruncatedSquares[fifteen_bits]; }

/// The power of two that brings x into the range of the reciprocal unit.
float range_scale(float x) {
  const float magnitude = std::fabs(x);
  if (magnitude > 0x1p126f) return 0.25f;
  return magnitude < kSmallestNormal ? 0x1p24f : 1.0f;
}

}  // namespace

float fma_ftz(float a, float b, float c) {
  // The product is exact in f64; the sum is made odd where it is not (see to_odd_float).
  const double product = static_cast<double>(flush(a)) * static_cast<double>(flush(b));
  const auto addend = static_cast<double>(flush(c));
  const double sum = product + addend;
  if (!std::isfinite(sum)) return canonical(static_cast<float>(sum));
  const double shadow = sum - product;
  const double rest = (product - (sum - shadow)) + (addend - shadow);
  auto bits = std::bit_cast<std::uint64_t>(sum);
  if (rest != 0.0 && (bits & 1u) == 0) bits += (rest > 0.0) == (sum > 0.0) ? 1u : ~std::uint64_t{0};
  return round_and_flush(std::bit_cast<double>(bits));
}

float rcp_approx_ftz(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = bits & kF32SignMask;
  const std::uint32_t exponent = bits >> 23 & 0xFFu;
  const std::uint32_t mantissa = bits & kMantissaMask;
  if (exponent == 0) return from_bits(sign | kF32Infinity);
  if (exponent == 255) return mantissa == 0 ? from_bits(sign) : nan();
  const Quadratic& piece = kReciprocal[mantissa >> 16];
  const std::int64_t inside = mantissa & 0xFFFFu;
  const std::int64_t value = (std::int64_t{piece.c0} << 13) - piece.c1 * inside +
                             piece.c2 * square_of((mantissa & 0xFFFFu) >> 1) + kReciprocalBias;
  const auto result = static_cast<std::uint32_t>(value >> 15);
  const bool is_power = result == 1u << 24;  // only where the mantissa is 0
  const int field = (is_power ? 254 : 253) - static_cast<int>(exponent);
  if (field <= 0) return from_bits(sign);
  return from_bits(sign | static_cast<std::uint32_t>(field) << 23 |
                   (is_power ? 0u : result & kMantissaMask));
}

float ex2_approx_ftz(float x) {
  const std::uint32_t bits = bits_of(x);
  const bool negative = (bits & kF32SignMask) != 0;
  const std::uint32_t exponent = bits >> 23 & 0xFFu;
  const std::uint32_t mantissa = bits & kMantissaMask;
  if (exponent == 255 && mantissa != 0) return nan();
  if (exponent >= 136) return negative ? 0.0f : from_bits(kF32Infinity);
  if (exponent == 0) return 1.0f;
  // Fixed point in units of 2^-23; bits below are dropped toward zero.
  const std::uint64_t significand = mantissa | 0x0080'0000u;
  std::uint64_t magnitude = 0;
  if (exponent >= 127) {
    magnitude = significand << (exponent - 127);
  } else if (exponent >= 104) {
    magnitude = significand >> (127 - exponent);
  }
  auto whole = static_cast<int>(magnitude >> 23);
  auto fraction = static_cast<std::uint32_t>(magnitude & kMantissaMask);
  if (negative) {
    // Ones' complement: a negative number that is no integer is taken 2^-23 too low.
    whole = fraction != 0 ? -whole - 1 : -whole;
    if (fraction != 0) fraction = kMantissaMask - fraction;
  }
  const Quadratic& piece = kExp2[fraction >> 17];
  const std::uint32_t inside = fraction & 0x1'FFFFu;
  const std::int64_t value = (std::int64_t{piece.c0} << 13) + std::int64_t{piece.c1} * inside +
                             piece.c2 * square_of(inside >> 2) + kExp2Bias;
  const int field = whole + 127;
  if (field >= 255) return from_bits(kF32Infinity);
  if (field <= 0) return 0.0f;
  return from_bits(static_cast<std::uint32_t>(field) << 23 |
                   (static_cast<std::uint32_t>(value >> 15) & kMantissaMask));
}

float rcp_approx(float x) {
  const float scale = range_scale(x);
  return canonical(rcp_approx_ftz(x * scale) * scale);
}

float ex2_approx(float x) {
  if (!(x < -126.0f)) return ex2_approx_ftz(x);
  const float root = ex2_approx_ftz(x * 0.5f);
  return root * root;
}

float div_full(float a, float b) {
  const float scale = range_scale(b);
  return canonical((a * scale) * rcp_approx_ftz(b * scale));
}

}  // namespace moeref::gpu
