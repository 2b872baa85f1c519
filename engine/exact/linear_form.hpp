#pragma once

#include <vector>

#include "quant/dtype.hpp"

namespace moeref::exact {

/// The exact real number
///
///     (sum of left_i * right_i) * (product of multipliers) / (product of divisors) + (sum of
///     addends)
///
/// with finite double parts, rounded once at the end. This is the whole of a GEMM row behind its
/// exact partial sums, of a combine, of a projection plus a residual. Double-double arithmetic that
/// knows its own error decides nearly always; when its interval holds a rounding boundary, integers
/// of any size decide.
class LinearForm {
 public:
  void clear();
  void add_product(double left, double right) { products_.push_back({left, right}); }
  void multiply_by(double factor) {
    if (factor != 1.0) multipliers_.push_back(factor);
  }
  /// The divisor must not be zero.
  void divide_by(double divisor) {
    if (divisor != 1.0) divisors_.push_back(divisor);
  }
  void add(double addend) {
    if (addend != 0.0) addends_.push_back(addend);
  }

  /// The value rounded to nearest even to f32, bf16 or f16, as f32. Exactly zero gives +0; overflow
  /// infinity.
  float round(Format format) const;
  /// The same by integers alone.
  float round_by_integers(Format format) const;

 private:
  struct Product {
    double left;
    double right;
  };
  std::vector<Product> products_;
  std::vector<double> multipliers_;
  std::vector<double> divisors_;
  std::vector<double> addends_;
};

}  // namespace moeref::exact
