#pragma once

#include <gtest/gtest.h>
#include <mpfr.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "tests/quant/representable.hpp"

// Matrices for the dequantizer's tests, and what their elements must be: by exact arithmetic where
// a result is rounded once, step by step where an order says so.

namespace moeref::test {

inline constexpr std::uint32_t kNanBits = 0x7FC0'0000u;

template <typename T>
const std::byte* bytes_of(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

/// Row-major codes without gaps.
inline ScaledMatrix plain(std::int64_t rows, std::int64_t cols, Format format,
                          const std::byte* data) {
  ScaledMatrix matrix;
  matrix.name = "weight";
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes.data = data;
  matrix.codes.format = format;
  matrix.codes.row_stride = cols;
  return matrix;
}

inline ScaleGrid blocks(Format format, const std::byte* data, std::int64_t block_rows,
                        std::int64_t block_cols, std::int64_t row_stride) {
  ScaleGrid grid;
  grid.data = data;
  grid.format = format;
  grid.block_rows = block_rows;
  grid.block_cols = block_cols;
  grid.row_stride = row_stride;
  grid.col_stride = 1;
  return grid;
}

inline std::vector<float> values_of(const ScaledMatrix& matrix, DequantizeOrder order,
                                    Format target = Format::f32) {
  std::vector<float> out(static_cast<std::size_t>(matrix.rows * matrix.cols), -77.0f);
  dequantize(matrix, order, target, out);
  return out;
}

inline std::vector<double> f64_values_of(const ScaledMatrix& matrix) {
  std::vector<double> out(static_cast<std::size_t>(matrix.rows * matrix.cols), -77.0);
  dequantize(matrix, out);
  return out;
}

inline float round_to(Format target, float value) {
  return target == Format::f32 ? value : decode(target, encode(target, value, EncodePolicy::eigen));
}

inline float canonical(float value) { return value == value ? value : from_bits(kNanBits); }

inline constexpr mpfr_prec_t kExactBits = 400;  // of sums and products of a few f32

class Exact {
 public:
  explicit Exact(double value) {
    mpfr_init2(value_, kExactBits), mpfr_set_d(value_, value, MPFR_RNDN);
  }
  ~Exact() { mpfr_clear(value_); }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  Exact& multiply(double factor) {
    EXPECT_EQ(mpfr_mul_d(value_, value_, factor, MPFR_RNDN), 0);
    return *this;
  }
  Exact& subtract(const Exact& other) {
    EXPECT_EQ(mpfr_sub(value_, value_, other.value_, MPFR_RNDN), 0);
    return *this;
  }
  int compare_magnitude(const Exact& other) const { return mpfr_cmpabs(value_, other.value_); }

 private:
  mpfr_t value_;
};

/// The magnitude with number `code` of a target: f32 by its bits, with 2^128 for the code of
/// infinity.
inline double magnitude_of(Format target, std::uint32_t code) {
  static const Representable kBf16 = representable(Format::bf16);
  static const Representable kF16 = representable(Format::f16);
  if (target == Format::f32) {
    return code >= 0x7F80'0000u ? 0x1p128 : static_cast<double>(from_bits(code));
  }
  const Representable& list = target == Format::bf16 ? kBf16 : kF16;
  return code < list.values.size() ? list.values[code] : list.beyond;
}

/// q * s * g, or q * s / g, rounded once: of the codes near an estimate the one at the smallest
/// exact distance, ties to the even one. Distances to q * s / g are taken times g.
inline float rounded_once(Format target, float q, float s, GlobalScaleRule rule, float g) {
  const double product = static_cast<double>(q) * static_cast<double>(s);  // exact, 48 bits
  const bool divides = rule == GlobalScaleRule::divide;
  const double factor = rule == GlobalScaleRule::none ? 1.0 : static_cast<double>(g);
  const double estimate = divides ? product / factor : product * factor;
  const bool negative = std::signbit(estimate);
  const std::uint32_t infinity = target == Format::f32    ? 0x7F80'0000u
                                 : target == Format::bf16 ? 0x7F80u
                                                          : 0x7C00u;
  const std::uint32_t near =
      target == Format::f32
          ? to_bits(static_cast<float>(std::fabs(estimate)))
          : encode(target, static_cast<float>(std::fabs(estimate)), EncodePolicy::eigen);
  std::uint32_t best = 0;
  bool is_first = true;
  Exact best_distance(0.0);
  for (std::uint32_t code = near < 2 ? 0 : near - 2; code <= std::min(near + 2, infinity); ++code) {
    const double magnitude = magnitude_of(target, code);
    Exact distance(std::fabs(product));
    Exact there(magnitude);
    if (divides) {
      there.multiply(std::fabs(factor));
    } else {
      distance.multiply(std::fabs(factor));
    }
    distance.subtract(there);
    const int order = is_first ? -1 : distance.compare_magnitude(best_distance);
    if (order < 0 || (order == 0 && code % 2 == 0)) {
      best = code;
      best_distance.multiply(0.0).subtract(distance);
      is_first = false;
    }
  }
  const float value = best == infinity        ? std::numeric_limits<float>::infinity()
                      : target == Format::f32 ? from_bits(best)
                                              : static_cast<float>(magnitude_of(target, best));
  return negative ? -value : value;
}

/// One element by the formula of the order, step by step.
inline float expected_value(DequantizeOrder order, Format target, float q, float s,
                            GlobalScaleRule rule, float g, bool is_e2m1_minus_zero) {
  switch (order) {
    case DequantizeOrder::once: {
      const float factor = rule == GlobalScaleRule::none ? 1.0f : g;
      if (!std::isfinite(q) || !std::isfinite(s) || !std::isfinite(factor)) {
        return canonical(rule == GlobalScaleRule::divide ? q * s / factor : q * s * factor);
      }
      return canonical(rounded_once(target, q, s, rule, g));
    }
    case DequantizeOrder::modelopt_nvfp4:
      if (is_e2m1_minus_zero) q = 0.0f;
      [[fallthrough]];
    case DequantizeOrder::checkpoint: {
      float t = s;
      if (rule == GlobalScaleRule::multiply) t = s * g;
      if (rule == GlobalScaleRule::divide) t = s / g;
      return canonical(round_to(target, q * t));
    }
    case DequantizeOrder::modelopt_fp8:
      return canonical(round_to(target, round_to(target, q) * round_to(target, s)));
    case DequantizeOrder::sglang_fp16: {
      const float product = round_to(Format::f16, q) * round_to(Format::f16, s);
      return canonical(round_to(target, round_to(Format::f16, product)));
    }
  }
  return 0.0f;
}

}  // namespace moeref::test
