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
  /// Rounded to nearest even; f32, bf16 or f16. Exactly zero gives +0.
  float round(Format format) const;

 private:
  struct Numbers;
  Numbers* numbers_;
};

/// Value of a code, computed from sign, exponent and significand.
double decode_by_formula(Format format, std::uint32_t code);

}  // namespace moeref::judge
