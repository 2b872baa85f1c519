#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/approx.hpp"

namespace {

constexpr std::uint32_t kApproxSign = 0x8000'0000u;
constexpr std::uint32_t kApproxInfinity = 0x7F80'0000u;
constexpr std::uint32_t kApproxMantissa = 0x007F'FFFFu;
constexpr std::uint32_t kApproxNan = 0x7FFF'FFFFu;

inline std::uint32_t approx_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float approx_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline std::uint32_t approx_flushed(std::uint32_t bits) {
  return (bits & kApproxInfinity) == 0 ? bits & kApproxSign : bits;
}
inline bool approx_is_nan(std::uint32_t bits) { return (bits & ~kApproxSign) > kApproxInfinity; }

/// yes or no without a branch, over which loads could not be moved.
inline std::uint32_t approx_choose(bool condition, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

constexpr std::size_t kApproxBlock = 16;

/// Calls body(in, result) for blocks of 16 numbers in arrays of its own, which the compiler knows
/// to be apart from the tables.
template <typename Body>
void approx_blocks(const float* x, std::size_t count, float* out, Body body) {
  for (std::size_t first = 0; first < count; first += kApproxBlock) {
    const std::size_t size = count - first < kApproxBlock ? count - first : kApproxBlock;
    float in[kApproxBlock] = {};
    float result[kApproxBlock];
    for (std::size_t j = 0; j < size; ++j) in[j] = x[first + j];
    body(in, result);
    for (std::size_t j = 0; j < size; ++j) out[first + j] = result[j];
  }
}

/// (c0 2^13 +- c1 inside + c2 square + bias) / 2^15, at most 25 bits.
inline std::uint32_t approx_piece(std::int32_t c0, std::int32_t c1, std::int32_t c2,
                                  std::int32_t inside, std::int32_t square, std::int32_t bias) {
  const std::int64_t value =
      (std::int64_t{c0} << 13) + std::int64_t{c1} * inside + std::int64_t{c2} * square + bias;
  return static_cast<std::uint32_t>(value >> 15);
}

void approx_rcp(const moeref::simd::ApproxTables& tables, const float* x, std::size_t count,
                float* out) {
  const std::int32_t* c0 = tables.reciprocal[0];
  const std::int32_t* c1 = tables.reciprocal[1];
  const std::int32_t* c2 = tables.reciprocal[2];
  const std::int32_t* squares = tables.squares;
  const std::int32_t bias = tables.reciprocal_bias;
  approx_blocks(x, count, out, [=](const float* in, float* results) {
    for (std::size_t i = 0; i < kApproxBlock; ++i) {
      const std::uint32_t bits = approx_bits(in[i]);
      const std::uint32_t sign = bits & kApproxSign;
      const auto exponent = static_cast<std::int32_t>(bits >> 23 & 0xFFu);
      const std::uint32_t mantissa = bits & kApproxMantissa;
      const auto piece = static_cast<std::int32_t>(mantissa >> 16);
      const auto inside = static_cast<std::int32_t>(mantissa & 0xFFFFu);
      const std::uint32_t result =
          approx_piece(c0[piece], -c1[piece], c2[piece], inside, squares[inside >> 1], bias);
      const bool is_power = result == 1u << 24;
      const std::int32_t field = (is_power ? 254 : 253) - exponent;
      const std::uint32_t fraction = is_power ? 0u : result & kApproxMantissa;
      std::uint32_t value = sign | static_cast<std::uint32_t>(field) << 23 | fraction;
      value = approx_choose(field <= 0, sign, value);
      value = approx_choose(exponent == 0, sign | kApproxInfinity, value);
      value = approx_choose(exponent == 255, sign, value);
      value = approx_choose(approx_is_nan(bits), kApproxNan, value);
      results[i] = approx_float(value);
    }
  });
}

void approx_ex2(const moeref::simd::ApproxTables& tables, const float* x, std::size_t count,
                float* out) {
  const std::int32_t* c0 = tables.exp2[0];
  const std::int32_t* c1 = tables.exp2[1];
  const std::int32_t* c2 = tables.exp2[2];
  const std::int32_t* squares = tables.squares;
  const std::int32_t bias = tables.exp2_bias;
  approx_blocks(x, count, out, [=](const float* in, float* results) {
    for (std::size_t i = 0; i < kApproxBlock; ++i) {
      const std::uint32_t bits = approx_bits(in[i]);
      const auto negative = static_cast<std::int32_t>(bits) >> 31;  // all ones or none
      const auto exponent = static_cast<std::int32_t>(bits >> 23 & 0xFFu);
      // Fixed point in units of 2^-23, toward zero; from 256 on the exponent alone decides.
      const std::uint32_t size = bits & ~kApproxSign;
      const std::uint32_t clipped = size < 0x437F'FFFFu ? size : 0x437F'FFFFu;
      const auto magnitude =
          static_cast<std::uint32_t>(static_cast<std::int32_t>(approx_float(clipped) * 0x1p23f));
      std::int32_t whole = static_cast<std::int32_t>(magnitude >> 23);
      std::uint32_t fraction = magnitude & kApproxMantissa;
      // Ones' complement: a negative number that is no integer is taken 2^-23 too low.
      const std::int32_t below = fraction != 0 ? negative : 0;
      whole = (whole ^ negative) - negative + below;
      fraction ^= static_cast<std::uint32_t>(below) & kApproxMantissa;
      const auto piece = static_cast<std::int32_t>(fraction >> 17);
      const auto inside = static_cast<std::int32_t>(fraction & 0x1'FFFFu);
      const std::uint32_t result =
          approx_piece(c0[piece], c1[piece], c2[piece], inside, squares[inside >> 2], bias);
      const std::int32_t field = whole + 127;
      std::uint32_t value = static_cast<std::uint32_t>(field) << 23 | (result & kApproxMantissa);
      value = approx_choose(field >= 255, kApproxInfinity, value);
      value = approx_choose(field <= 0, 0u, value);
      value = approx_choose(exponent >= 135,
                            ~static_cast<std::uint32_t>(negative) & kApproxInfinity, value);
      value = approx_choose(exponent == 0, 0x3F80'0000u, value);
      value = approx_choose(approx_is_nan(bits), kApproxNan, value);
      results[i] = approx_float(value);
    }
  });
}

/// The product rounded with subnormals, flushed; `doubt` at exactly 2^-126.
inline float approx_product(float a, float b, std::uint32_t& doubt) {
  const float x = approx_float(approx_flushed(approx_bits(a)));
  const float y = approx_float(approx_flushed(approx_bits(b)));
  std::uint32_t product = approx_bits(x * y);
  doubt |= (product & ~kApproxSign) == 0x0080'0000u ? 1u : 0u;
  product = approx_flushed(product);
  return approx_float(approx_is_nan(product) ? kApproxNan : product);
}

bool approx_mul_ftz(const float* x, const float* y, std::size_t count, float* out) {
  std::uint32_t doubt = 0;
  for (std::size_t i = 0; i < count; ++i) out[i] = approx_product(x[i], y[i], doubt);
  return doubt != 0;
}

bool approx_mul_ftz_by(const float* x, float factor, std::size_t count, float* out) {
  std::uint32_t doubt = 0;
  for (std::size_t i = 0; i < count; ++i) out[i] = approx_product(x[i], factor, doubt);
  return doubt != 0;
}

void approx_add_ftz_to(const float* x, float addend, std::size_t count, float* out) {
  const float c = approx_float(approx_flushed(approx_bits(addend)));
  for (std::size_t i = 0; i < count; ++i) {
    const float a = approx_float(approx_flushed(approx_bits(x[i])));
    const std::uint32_t sum = approx_flushed(approx_bits(a + c));
    out[i] = approx_float(approx_is_nan(sum) ? kApproxNan : sum);
  }
}

}  // namespace
