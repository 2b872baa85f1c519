#pragma once

#include <cmath>

namespace moeref::exact {

/// hi + lo with hi = RN(hi + lo): about 106 bits. The error bounds below are relative to the exact
/// result, u = 2^-53, and hold while nothing over- or underflows (Joldes, Muller, Popescu, "Tight
/// and rigorous error bounds for basic building blocks of double-word arithmetic", ACM TOMS 44(2),
/// 2017; the algorithm's number is that of the paper). std::fma rounds once by definition, so it
/// moves no bits between machines.
struct DoubleDouble {
  double hi = 0.0;
  double lo = 0.0;
};

/// x + y exactly (2Sum).
inline DoubleDouble two_sum(double x, double y) {
  const double sum = x + y;
  const double x_part = sum - y;
  const double y_part = sum - x_part;
  return {sum, (x - x_part) + (y - y_part)};
}

/// x + y exactly, for |x| >= |y| or x = 0 (Fast2Sum).
inline DoubleDouble quick_two_sum(double x, double y) {
  const double sum = x + y;
  return {sum, y - (sum - x)};
}

/// x * y exactly.
inline DoubleDouble two_product(double x, double y) {
  const double product = x * y;
  return {product, std::fma(x, y, -product)};
}

/// Algorithm 4, error <= 2 u^2.
inline DoubleDouble add(DoubleDouble x, double y) {
  const DoubleDouble sum = two_sum(x.hi, y);
  return quick_two_sum(sum.hi, x.lo + sum.lo);
}

/// Algorithm 6, error <= 3 u^2 + 13 u^3.
inline DoubleDouble add(DoubleDouble x, DoubleDouble y) {
  const DoubleDouble high = two_sum(x.hi, y.hi);
  const DoubleDouble low = two_sum(x.lo, y.lo);
  const DoubleDouble sum = quick_two_sum(high.hi, high.lo + low.hi);
  return quick_two_sum(sum.hi, low.lo + sum.lo);
}

/// Algorithm 9, error <= 2 u^2.
inline DoubleDouble multiply(DoubleDouble x, double y) {
  const DoubleDouble product = two_product(x.hi, y);
  return quick_two_sum(product.hi, std::fma(x.lo, y, product.lo));
}

/// Algorithm 12, error <= 5 u^2.
inline DoubleDouble multiply(DoubleDouble x, DoubleDouble y) {
  const DoubleDouble product = two_product(x.hi, y.hi);
  const double cross = std::fma(x.lo, y.hi, std::fma(x.hi, y.lo, x.lo * y.lo));
  return quick_two_sum(product.hi, product.lo + cross);
}

/// Algorithm 17 with algorithm 9 for its product, error <= 16 u^2.
inline DoubleDouble divide(DoubleDouble x, DoubleDouble y) {
  const double quotient = x.hi / y.hi;
  const DoubleDouble product = multiply(y, quotient);
  const double rest = (x.hi - product.hi) + (x.lo - product.lo);
  return quick_two_sum(quotient, rest / y.hi);
}

}  // namespace moeref::exact
