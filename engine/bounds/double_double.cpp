#include "engine/bounds/double_double.hpp"

#include <cmath>
#include <limits>

namespace moeref::bounds {
namespace {

constexpr DoubleDouble kLn2{0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
constexpr DoubleDouble kTwoOverSqrtPi{0x1.20dd750429b6dp+0, 0x1.1ae3a914fed80p-56};
constexpr DoubleDouble kOne{1.0, 0.0};

DoubleDouble scaled(const DoubleDouble& x, int exponent) {
  return {std::ldexp(x.hi, exponent), std::ldexp(x.lo, exponent)};
}

/// log(1 + x) for 0 <= x <= 1, as 2 atanh(x / (2 + x)): the argument is at most 1/3.
DoubleDouble log1p(const DoubleDouble& x) {
  constexpr int kTerms = 36;  // 9^-36 < 2^-114
  const DoubleDouble t = x / (DoubleDouble{2.0, 0.0} + x);
  const DoubleDouble square = t * t;
  DoubleDouble sum;
  for (int n = kTerms; n >= 0; --n) {  // Horner: 1 + t^2/3 + t^4/5 + ...
    sum = sum * square + kOne / DoubleDouble{2.0 * n + 1.0, 0.0};
  }
  return scaled(t * sum, 1);
}

}  // namespace

DoubleDouble exp(const DoubleDouble& x) {
  if (std::isnan(x.hi)) return {x.hi, 0.0};
  if (x.hi > 709.7) return {std::numeric_limits<double>::infinity(), 0.0};
  if (x.hi < -746.0) return {};
  constexpr int kHalvings = 8;  // |r| <= ln(2) / 2 / 2^8 < 0.0014
  constexpr int kTerms = 10;    // 0.0014^11 / 11! < 2^-120
  const double power = std::floor(x.hi * 0x1.71547652b82fep+0 + 0.5);
  const DoubleDouble r = scaled(x - kLn2 * DoubleDouble{power, 0.0}, -kHalvings);
  DoubleDouble term = r;
  DoubleDouble sum = r;  // e^r - 1, so that the doublings below lose nothing
  for (int n = 2; n <= kTerms; ++n) {
    term = term * r / DoubleDouble{static_cast<double>(n), 0.0};
    sum = sum + term;
  }
  for (int n = 0; n < kHalvings; ++n) sum = scaled(sum, 1) + sum * sum;
  return scaled(kOne + sum, static_cast<int>(power));
}

DoubleDouble sigmoid(const DoubleDouble& x) {
  if (x.hi >= 0.0) return kOne / (kOne + exp(-x));
  const DoubleDouble e = exp(x);
  return e / (kOne + e);
}

DoubleDouble softplus(double x) {
  if (std::isnan(x) || x > 700.0) return {x, 0.0};
  if (x > 0.0) return DoubleDouble{x, 0.0} + log1p(exp(DoubleDouble{-x, 0.0}));
  return log1p(exp(DoubleDouble{x, 0.0}));
}

DoubleDouble erf(const DoubleDouble& x) {
  if (std::isnan(x.hi)) return {x.hi, 0.0};
  constexpr double kSaturated = 9.0;  // 1 - erf(9) < 2^-119
  if (std::fabs(x.hi) >= kSaturated) return {std::copysign(1.0, x.hi), 0.0};
  // e^(-x^2) * sum of 2^n x^(2n+1) / (2n+1)!!: no cancellation (Abramowitz, Stegun 7.1.6).
  const DoubleDouble square = x * x;
  const DoubleDouble twice_square = scaled(square, 1);
  DoubleDouble term = x;
  DoubleDouble sum = x;
  for (int n = 1; std::fabs(term.hi) > std::fabs(sum.hi) * 0x1p-110; ++n) {
    term = term * twice_square / DoubleDouble{2.0 * n + 1.0, 0.0};
    sum = sum + term;
  }
  return kTwoOverSqrtPi * exp(-square) * sum;
}

DoubleDouble tanh(const DoubleDouble& x) {
  if (std::isnan(x.hi)) return {x.hi, 0.0};
  constexpr double kSmall = 0x1p-4;  // above it 1 - e^(-2x) loses no more than three bits
  if (std::fabs(x.hi) >= kSmall) {
    const DoubleDouble size = x.hi < 0.0 ? -x : x;
    const DoubleDouble e = exp(scaled(-size, 1));
    const DoubleDouble value = (kOne - e) / (kOne + e);
    return x.hi < 0.0 ? -value : value;
  }
  // sinh / cosh by their series: x^2 <= 2^-8, and 2^-88 / 22! < 2^-150.
  constexpr int kTerms = 11;
  const DoubleDouble square = x * x;
  DoubleDouble sinh_over_x = kOne;
  DoubleDouble cosh = kOne;
  for (int n = kTerms; n > 0; --n) {  // Horner: 1 + x^2/(2 3) (1 + x^2/(4 5) (...))
    const double even = 2.0 * n;
    cosh = kOne + cosh * square / DoubleDouble{even * (even - 1.0), 0.0};
    sinh_over_x = kOne + sinh_over_x * square / DoubleDouble{even * (even + 1.0), 0.0};
  }
  return x * sinh_over_x / cosh;
}

}  // namespace moeref::bounds
