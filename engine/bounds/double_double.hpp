#pragma once

// Arithmetic in twice the precision of double, from additions and multiplications of doubles alone,
// so that every machine gets the same bits. Dekker, A floating-point technique for extending the
// available precision, 1971; Hida, Li, Bailey, QD, 2001. Numbers beyond about 2^990 are out of
// reach of `two_product`; callers stay far below.

namespace moeref::bounds {

/// hi + lo, hi = the double nearest to it. Relative error of one operation below 2^-100.
struct DoubleDouble {
  double hi = 0.0;
  double lo = 0.0;
};

/// a + b, exactly, if |a| >= |b| or a = 0.
inline DoubleDouble quick_two_sum(double a, double b) {
  const double sum = a + b;
  return {sum, b - (sum - a)};
}

/// a + b, exactly.
inline DoubleDouble two_sum(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  return {sum, (a - (sum - b_part)) + (b - b_part)};
}

/// a * b, exactly unless the low part underflows.
inline DoubleDouble two_product(double a, double b) {
  constexpr double kSplitter = 0x1p27 + 1.0;  // cuts 53 bits into 26 + 26
  const double product = a * b;
  const double a_scaled = kSplitter * a;
  const double a_hi = a_scaled - (a_scaled - a);
  const double a_lo = a - a_hi;
  const double b_scaled = kSplitter * b;
  const double b_hi = b_scaled - (b_scaled - b);
  const double b_lo = b - b_hi;
  return {product, ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo};
}

inline DoubleDouble operator-(const DoubleDouble& x) { return {-x.hi, -x.lo}; }

inline DoubleDouble operator+(const DoubleDouble& x, const DoubleDouble& y) {
  DoubleDouble high = two_sum(x.hi, y.hi);
  const DoubleDouble low = two_sum(x.lo, y.lo);
  high = quick_two_sum(high.hi, high.lo + low.hi);
  return quick_two_sum(high.hi, high.lo + low.lo);
}

inline DoubleDouble operator-(const DoubleDouble& x, const DoubleDouble& y) { return x + -y; }

inline DoubleDouble operator*(const DoubleDouble& x, const DoubleDouble& y) {
  const DoubleDouble product = two_product(x.hi, y.hi);
  return quick_two_sum(product.hi, product.lo + (x.hi * y.lo + x.lo * y.hi));
}

inline DoubleDouble operator/(const DoubleDouble& x, const DoubleDouble& y) {
  const double first = x.hi / y.hi;
  const DoubleDouble rest = x - y * DoubleDouble{first, 0.0};
  const double second = rest.hi / y.hi;
  const DoubleDouble rest2 = rest - y * DoubleDouble{second, 0.0};
  return quick_two_sum(first, second) + DoubleDouble{rest2.hi / y.hi, 0.0};
}

/// e^x; 0 below the range of double, infinity above. NaN gives NaN. Relative error below 2^-90.
DoubleDouble exp(const DoubleDouble& x);
/// 1 / (1 + e^-x), without cancellation for either sign.
DoubleDouble sigmoid(const DoubleDouble& x);
/// log(1 + e^x). Relative error below 2^-90.
DoubleDouble softplus(double x);
/// erf(x); absolute error below 2^-90.
DoubleDouble erf(const DoubleDouble& x);
/// tanh(x). Relative error below 2^-85.
DoubleDouble tanh(const DoubleDouble& x);

}  // namespace moeref::bounds
