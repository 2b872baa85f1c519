#pragma once

// Loops that the compiler vectorises by itself: the same text for the scalar table and for every
// instruction set. Only internal functions.

#include <cstddef>
#include <cstdint>

#include "simd/gemm.hpp"

namespace {

using moeref::simd::kPanelColumns;

inline std::uint64_t gemm_bits(double x) { return __builtin_bit_cast(std::uint64_t, x); }
inline double gemm_double(std::uint64_t bits) { return __builtin_bit_cast(double, bits); }
inline double gemm_size(double x) { return gemm_double(gemm_bits(x) & ~(1ull << 63)); }

/// left * right = product + rest, exactly, far from the ends of the range of f64.
inline void gemm_two_product(double left, double right, double& product, double& rest) {
  product = left * right;
#if defined(__FMA__) || defined(__aarch64__)
  rest = __builtin_fma(left, right, -product);
#else
  // Dekker's: halves of 26 bits have exact products.
  constexpr double kSplit = 0x1p27 + 1.0;
  const double left_big = kSplit * left;
  const double left_high = left_big - (left_big - left);
  const double left_low = left - left_high;
  const double right_big = kSplit * right;
  const double right_high = right_big - (right_big - right);
  const double right_low = right - right_high;
  rest = ((left_high * right_high - product) + left_high * right_low + left_low * right_high) +
         left_low * right_low;
#endif
}

inline void gemm_two_sum(double left, double right, double& sum, double& rest) {
  const double total = left + right;
  const double right_part = total - left;
  const double left_part = total - right_part;
  rest = (left - left_part) + (right - right_part);
  sum = total;
}

/// high + low, with |exact value - (high + low)| <= error, as exact::LinearForm has it: each step
/// adds what it drops to the error.
struct GemmTracked {
  double high;
  double low;
  double error;

  // The rest of a product or quotient so small, of numbers other than zero, is no f64 number.
  void check_range(bool counts, double result) {
    constexpr double kSmallest = 0x1p-900;
    if (counts && gemm_size(result) < kSmallest) error = __builtin_inf();
  }

  // Rounded sums of non-negative numbers: a relative 2^-50 above covers every rounding.
  void widen(double amount) { error = (error + amount) * (1.0 + 0x1p-50); }

  void add(double term) {
    double carry;
    gemm_two_sum(high, term, high, carry);
    double dropped;
    gemm_two_sum(low, carry, low, dropped);
    widen(gemm_size(dropped));
  }

  void multiply(double factor) {
    const bool counts = high != 0.0 && factor != 0.0;
    double product;
    double product_rest;
    gemm_two_product(high, factor, product, product_rest);
    double low_product;
    double low_rest;
    gemm_two_product(low, factor, low_product, low_rest);
    double dropped;
    error = error * gemm_size(factor);
    gemm_two_sum(product_rest, low_product, low, dropped);
    widen(gemm_size(dropped));
    widen(gemm_size(low_rest));
    gemm_two_sum(product, low, high, low);
    check_range(counts, product);
  }

  void divide(double divisor) {
    const bool counts = high != 0.0;
    const double quotient = high / divisor;
    double product;
    double product_rest;
    gemm_two_product(quotient, divisor, product, product_rest);
    const double remainder = (high - product) - product_rest;  // exact
    double rest;
    double dropped;
    gemm_two_sum(remainder, low, rest, dropped);
    const double correction = rest / divisor;
    double back;
    double back_rest;
    gemm_two_product(correction, divisor, back, back_rest);
    const double missing = (rest - back) - back_rest;  // exact
    const double size = gemm_size(divisor);
    error = error / size;
    widen(gemm_size(dropped) / size);
    widen(gemm_size(missing) / size);
    gemm_two_sum(quotient, correction, high, low);
    check_range(counts, quotient);
  }
};

/// high + low rounded to a double by round-to-odd; high = RN(high + low).
inline double gemm_round_to_odd(double high, double low) {
  const std::uint64_t bits = gemm_bits(high);
  // Away from zero if the signs agree.
  const std::uint64_t outward = ((bits ^ gemm_bits(low)) >> 63) ^ 1;
  const std::uint64_t rounds = (low == 0.0 ? 0ull : 1ull) & ~bits;
  return gemm_double(bits + ((2 * outward - 1) & (0 - rounds)));
}

/// The last rounding of round-to-odd doubles to nearest even, of normal numbers and zeros.
/// `kShort`: to fewer bits than f32 has.
template <bool kShort>
void gemm_round(const double (&high)[kPanelColumns], const double (&low)[kPanelColumns],
                const moeref::simd::OutputType& type, float (&out)[kPanelColumns]) {
  double odd[kPanelColumns];
  for (std::size_t j = 0; j < kPanelColumns; ++j) odd[j] = gemm_round_to_odd(high[j], low[j]) + 0.0;
  if constexpr (kShort) {
    const int cut = 53 - type.precision;
    const std::uint64_t below_half = (1ull << (cut - 1)) - 1;
    const std::uint64_t kept = ~((1ull << cut) - 1);
    const std::uint64_t past = static_cast<std::uint64_t>(type.max_exponent + 1 + 1023) << 52;
    constexpr std::uint64_t kSign = 1ull << 63;
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const std::uint64_t bits = gemm_bits(odd[j]);
      const std::uint64_t value = (bits + below_half + (bits >> cut & 1)) & kept;
      const std::uint64_t infinity = 0x7FFull << 52 | (bits & kSign);
      odd[j] = gemm_double((value & ~kSign) >= past ? infinity : value);
    }
  }
  for (std::size_t j = 0; j < kPanelColumns; ++j) out[j] = static_cast<float>(odd[j]);
}

/// What high + low rounds to, with a bound of what it lacks. Gives the columns (a bit each) that
/// cannot be decided.
template <bool kShort>
std::uint32_t gemm_round_tracked(const double (&high)[kPanelColumns],
                                 const double (&low)[kPanelColumns],
                                 const double (&error)[kPanelColumns],
                                 const moeref::simd::OutputType& type, float* out) {
  double sum[kPanelColumns];
  double rest[kPanelColumns];
  for (std::size_t j = 0; j < kPanelColumns; ++j) gemm_two_sum(high[j], low[j], sum[j], rest[j]);
  float rounded[kPanelColumns];
  gemm_round<kShort>(sum, rest, type, rounded);
  const double smallest = gemm_double(static_cast<std::uint64_t>(type.min_exponent + 1023) << 52);
  std::uint64_t doubtful[kPanelColumns];
  std::uint64_t inexact = 0;
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    const double size = gemm_size(sum[j]);
    const std::uint64_t tiny =
        (kShort && size < smallest ? 1u : 0u) & (size != 0.0 ? 1u : 0u);  // rest is zero, then
    doubtful[j] = tiny | (size <= 0x1.fffffffffffffp1023 ? 0u : 1u);
    inexact |= gemm_bits(error[j]);
  }
  // Where nothing was dropped, high + low is the value. Else both ends of the interval must round
  // to one number other than zero.
  if (inexact != 0) {
    double ends[2][kPanelColumns];
    double end_rests[2][kPanelColumns];
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const double below = rest[j] - error[j];
      const double above = rest[j] + error[j];
      const double below_margin = gemm_size(below) * 0x1p-51 + 0x1p-1020;
      const double above_margin = gemm_size(above) * 0x1p-51 + 0x1p-1020;
      gemm_two_sum(sum[j], below - below_margin, ends[0][j], end_rests[0][j]);
      gemm_two_sum(sum[j], above + above_margin, ends[1][j], end_rests[1][j]);
    }
    float values[2][kPanelColumns];
    for (std::size_t i = 0; i < 2; ++i) gemm_round<kShort>(ends[i], end_rests[i], type, values[i]);
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const std::uint32_t agree =
          (values[0][j] == values[1][j] ? 1u : 0u) & (values[0][j] != 0.0f ? 1u : 0u);
      doubtful[j] |= (error[j] == 0.0 ? 0u : 1u) & (agree ^ 1u);
    }
  }
  std::uint32_t columns = 0;
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    columns |= static_cast<std::uint32_t>(doubtful[j]) << j;
  }
  for (std::size_t j = 0; j < kPanelColumns; ++j) out[j] = rounded[j];
  return columns;
}

void gemm_add_segment(const double* sums, std::size_t rows, const double* column_scales,
                      const double* row_scales, double* high, double* low) {
  for (std::size_t row = 0; row < rows; ++row) {
    const double scale = row_scales[row];
    double sum[kPanelColumns];
    double rest[kPanelColumns];
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      double product;
      double product_rest;
      gemm_two_product(scale * column_scales[j], sums[j], product, product_rest);
      double carry;
      gemm_two_sum(high[j], product, sum[j], carry);
      rest[j] = low[j] + (carry + product_rest);
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) high[j] = sum[j];
    for (std::size_t j = 0; j < kPanelColumns; ++j) low[j] = rest[j];
    sums += kPanelColumns;
    high += kPanelColumns;
    low += kPanelColumns;
  }
}

/// Finite sums that are the results but for their rounding.
bool gemm_is_bare(const moeref::simd::FinishTerms& terms, const moeref::simd::OutputType& type) {
  if (type.precision != 24 || terms.low != nullptr || terms.error != nullptr ||
      terms.column_scales != nullptr || terms.row_scale != 1.0 || terms.multiplier_count != 0 ||
      terms.divisor_count != 0 || terms.addends[0] != nullptr || terms.addends[1] != nullptr) {
    return false;
  }
  std::uint64_t infinite = 0;
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    infinite |= gemm_size(terms.high[j]) <= 0x1.fffffffffffffp1023 ? 0u : 1u;
  }
  return infinite == 0;
}

std::uint32_t gemm_finish(const moeref::simd::FinishTerms& terms,
                          const moeref::simd::OutputType& type, float* out) {
  if (gemm_is_bare(terms, type)) {
    for (std::size_t j = 0; j < kPanelColumns; ++j)
      out[j] = static_cast<float>(terms.high[j] + 0.0);
    return 0;
  }
  double high[kPanelColumns];
  double low[kPanelColumns];
  double error[kPanelColumns];
  for (std::size_t j = 0; j < kPanelColumns; ++j) high[j] = terms.high[j];
  for (std::size_t j = 0; j < kPanelColumns; ++j)
    low[j] = terms.low != nullptr ? terms.low[j] : 0.0;
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    error[j] = terms.error != nullptr ? terms.error[j] : 0.0;
  }
  const auto each = [&](auto step) {
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      GemmTracked value{high[j], low[j], error[j]};
      step(value, j);
      high[j] = value.high;
      low[j] = value.low;
      error[j] = value.error;
    }
  };
  if (terms.column_scales != nullptr) {
    const double scale = terms.row_scale;
    const double* columns = terms.column_scales;
    each([=](GemmTracked& value, std::size_t j) { value.multiply(scale * columns[j]); });
  } else if (terms.row_scale != 1.0) {
    const double scale = terms.row_scale;
    each([=](GemmTracked& value, std::size_t) { value.multiply(scale); });
  }
  for (std::size_t i = 0; i < terms.multiplier_count; ++i) {
    const double factor = terms.multipliers[i];
    each([=](GemmTracked& value, std::size_t) { value.multiply(factor); });
  }
  for (std::size_t i = 0; i < terms.divisor_count; ++i) {
    const double divisor = terms.divisors[i];
    each([=](GemmTracked& value, std::size_t) { value.divide(divisor); });
  }
  for (const double* addends : terms.addends) {
    if (addends == nullptr) continue;
    each([=](GemmTracked& value, std::size_t j) { value.add(addends[j]); });
  }
  return type.precision == 24 ? gemm_round_tracked<false>(high, low, error, type, out)
                              : gemm_round_tracked<true>(high, low, error, type, out);
}

/// The same sums on every instruction set: eight of them, each in order.
void gemm_window(const double* values, std::size_t count, double* lowest, double* largest,
                 double* sum, double* squares) {
  constexpr std::size_t kSums = 8;
  // Sizes as integers, which have the same order, so that the compiler sees no branches.
  constexpr std::int64_t kInfinity = 0x7FFll << 52;
  std::int64_t low[kSums];
  std::int64_t high[kSums] = {};
  double sums[kSums] = {};
  double square_sums[kSums] = {};
  for (std::int64_t& value : low) value = kInfinity;
  const auto take = [&](double value, std::size_t j) {
    const std::int64_t size = __builtin_bit_cast(std::int64_t, value) & 0x7FFF'FFFF'FFFF'FFFF;
    // Without its lowest bit, unless that is the leading one: the difference is exact.
    const std::int64_t rest = size & (size - 1);
    const double number = __builtin_bit_cast(double, size);
    const double difference = number - __builtin_bit_cast(double, rest);
    const bool leading = (size & ((1ll << 52) - 1)) == 0;
    const std::int64_t bit = leading ? size : __builtin_bit_cast(std::int64_t, difference);
    const std::int64_t counted = size == 0 ? kInfinity : bit;
    low[j] = counted < low[j] ? counted : low[j];
    high[j] = size > high[j] ? size : high[j];
    sums[j] += number;
    square_sums[j] += number * number;
  };
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j) take(values[i + j], j);
  }
  for (std::size_t j = 0; i < count; ++i, ++j) take(values[i], j);
  *sum = sums[0];
  *squares = square_sums[0];
  for (std::size_t j = 1; j < kSums; ++j) {
    low[0] = low[j] < low[0] ? low[j] : low[0];
    high[0] = high[j] > high[0] ? high[j] : high[0];
    *sum += sums[j];
    *squares += square_sums[j];
  }
  *lowest = __builtin_bit_cast(double, low[0]);
  *largest = __builtin_bit_cast(double, high[0]);
}

}  // namespace
