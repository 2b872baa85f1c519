#pragma once

#include <cstdint>
#include <vector>

#include "quant/dtype.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref::judge {

/// A slow second opinion on the engine's sums: fixed-point numbers wide enough for every product
/// (MPFR with thousands of bits), decoded by formula instead of by table, one rounding at the end.
/// Shares no code with the engine.
class ExactSum {
 public:
  ExactSum();
  ~ExactSum();
  ExactSum(const ExactSum&) = delete;
  ExactSum& operator=(const ExactSum&) = delete;

  void add_product(double left, double right);
  void add_dot(const ScaledMatrix& x, std::int64_t row, const ScaledMatrix& w, std::int64_t n);
  void multiply(double factor);
  void divide(double divisor);  ///< exact: the divisor is kept and applied with the one rounding
  void add(double value);
  /// Rounded to nearest even; f32, bf16 or f16. Exactly zero gives +0. Where an operand was NaN or
  /// infinite: what IEEE says of the same sum without over- and underflow, NaN as 0x7FC00000.
  float round(Format format) const;

 private:
  struct Numbers;
  Numbers* numbers_;
};

/// Bits of a code's fields; the field e stands for 2^(e - bias).
struct FloatLayout {
  int exponent_bits;
  int fraction_bits;
  int bias;
};
FloatLayout layout_of(Format format);

/// Value of a code, computed from sign, exponent and significand; NaN and infinities as f64's.
double decode_by_formula(Format format, std::uint32_t code);

/// Code times block scale of (row, col), exact; without the global scale.
double value_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);

}  // namespace moeref::judge
