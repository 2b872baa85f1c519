#pragma once

#include "engine/exact/fast_exp.hpp"

namespace moeref::exact {

inline constexpr double kLargestNormalArgument = 24.0;

/// M(x) = e^(x^2/2) Q(x), where Q(x) = erfc(x / sqrt(2)) / 2 is the upper tail of the normal
/// distribution, for 0 <= x <= 24; relative error at most 3.5 u, u = 2^-53.
double normal_tail_ratio(double x);

/// Q(x) for 0 <= x <= 24, x a float (so that x^2 / 2 is exact); relative error at most 7 u: 2.2
/// from the exponential, 3.5 from M, 1 from the product.
inline double normal_upper_tail(float x) {
  const double wide = static_cast<double>(x);
  return exp_minus(wide * wide * 0.5) * normal_tail_ratio(wide);
}

}  // namespace moeref::exact
