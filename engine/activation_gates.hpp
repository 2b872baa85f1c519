#pragma once

#include <cmath>

#include "engine/exact/ball.hpp"
#include "engine/exact/fast_exp.hpp"
#include "engine/exact/fast_normal.hpp"

// The three functions S that turn a gate g into g * S(g): sigma(alpha g), the normal distribution
// Phi(g) = (1 + erf(g / sqrt(2))) / 2, and its tanh approximation, which is a sigma too, because
// (1 + tanh(y)) / 2 = sigma(2 y). Each knows S in three precisions. All have 0 < S < 1 for a finite
// g.

namespace moeref::gates {

inline constexpr double kUnit = 0x1p-53;

/// S(g) = value (1 + d), |d| <= error.
struct Estimate {
  double value;
  double error;
};
struct FineEstimate {
  exact::DoubleDouble value;
  double error;
};

/// What is known of S without computing it.
enum class Range {
  vanishing,  ///< S < 2^-420
  inside,
  saturated,  ///< 1 - S < 2^-420
};

inline constexpr double kSaturation = exact::kLargestExpArgument;  // e^-300 < 2^-432

inline Range sigmoid_range(double z) {
  if (z < -kSaturation) return Range::vanishing;
  return z > kSaturation ? Range::saturated : Range::inside;
}

/// sigma(z) for |z| <= 300, relative error at most 5.3 u: exp 2.2 u, the sum and the quotient 1 u
/// each, and at most half of the exponential's error again from 1 + e, as e <= 1.
inline double sigmoid(double z) {
  const double e = exact::exp_minus(std::fabs(z));
  return (z < 0.0 ? e : 1.0) / (1.0 + e);
}

/// sigma(z) for |z| <= 300, relative error at most 34 u^2: exp 10, its part in 1 + e 5 and the sum
/// 2, the quotient 16.
inline exact::DoubleDouble sigmoid(exact::DoubleDouble z) {
  const bool negative = z.hi < 0.0;
  const exact::DoubleDouble size = negative ? exact::DoubleDouble{-z.hi, -z.lo} : z;
  const exact::DoubleDouble e = exact::exp_minus(size);
  return exact::divide(negative ? e : exact::DoubleDouble{1.0, 0.0}, exact::add(e, 1.0));
}

/// sigma(alpha g). alpha and g are floats, so their product is an exact double.
class SigmoidGate {
 public:
  explicit SigmoidGate(float alpha) : alpha_(alpha) {}
  static constexpr bool kHasFineEstimate = true;
  static constexpr double kError = 6 * kUnit;

  Range range(float g) const { return sigmoid_range(alpha_ * g); }
  Estimate estimate(float g) const { return {sigmoid(alpha_ * g), kError}; }
  FineEstimate fine_estimate(float g) const {
    return {sigmoid(exact::DoubleDouble{alpha_ * g, 0.0}), 34 * kUnit * kUnit};
  }
  exact::Ball ball(float g, int bits) const {
    return exact::sigmoid(exact::Ball(alpha_ * g), bits);
  }

 private:
  double alpha_;
};

/// sigma(2 sqrt(2/pi) (g + k g^3)): the real number sqrt(2/pi) and the decimal number k = 0.044715.
class TanhGate {
 public:
  static constexpr bool kHasFineEstimate = true;

  Range range(float g) const { return sigmoid_range(argument(g)); }

  /// Relative error at most 8 u: five operations and two constants with 1 u each; both terms have
  /// the sign of g. g^2 alone is exact.
  static double argument(double g) { return kFactor.hi * (g + kCubicFactor.hi * (g * g * g)); }
  /// Of sigma(z). d ln(sigma) / d ln(z) = z sigma(-z) is at most |z| for z < 0 and at most 0.28 for
  /// z > 0: that much of the argument's 8 u comes on top.
  static double error(double z) { return (z < 0.0 ? 6.0 - 8.5 * z : 9.0) * kUnit; }

  Estimate estimate(float g) const {
    const double z = argument(g);
    return {sigmoid(z), error(z)};
  }

  FineEstimate fine_estimate(float g) const {
    const exact::DoubleDouble z = fine_argument(g);
    return {sigmoid(z), (36 + 16 * std::fabs(z.hi)) * kUnit * kUnit};
  }

  exact::Ball ball(float g, int bits) const {
    const int digits = bits + 16;
    const exact::Dyadic gate{static_cast<double>(g)};
    const exact::Ball k = exact::divide(exact::Ball(8943.0), exact::Ball(200000.0), digits);
    const exact::Ball cubic = exact::multiply(exact::Ball(gate * gate * gate), k, digits);
    const exact::Ball sum = exact::add(exact::Ball(gate), cubic, digits);
    const exact::Ball root =
        exact::square_root(exact::divide(exact::Ball(2.0), exact::pi(digits), digits), digits);
    return exact::sigmoid(exact::scale(exact::multiply(root, sum, digits), 1), bits);
  }

 private:
  static constexpr exact::DoubleDouble kCubicFactor{0x1.6e4e26d4801f7p-5, 0x1.441355475a31ap-59};
  static constexpr exact::DoubleDouble kFactor{0x1.9884533d43651p+0, -0x1.cbc0d30ebfd15p-54};

  /// Relative error at most 16 u^2: the cube 2, two constants with 1 and products with 5 each, the
  /// sum 2; g^2 is exact.
  static exact::DoubleDouble fine_argument(float g) {
    const double gate = g;
    const exact::DoubleDouble cube = exact::two_product(gate * gate, gate);
    return exact::multiply(exact::add(exact::multiply(cube, kCubicFactor), gate), kFactor);
  }
};

/// Phi(g).
class ErfGate {
 public:
  /// The first level fails about once in 10^6, so there is nothing to gain from a second one.
  static constexpr bool kHasFineEstimate = false;

  /// 1 - Phi(24) < 2^-420.
  Range range(float g) const {
    if (g < -kLargest) return Range::vanishing;
    return g > kLargest ? Range::saturated : Range::inside;
  }

  /// Tail: 7 u. 1 - tail: at most as much again, as tail <= 1/2, and one rounding.
  Estimate estimate(float g) const {
    const double tail = exact::normal_upper_tail(std::fabs(g));
    return {g < 0.0f ? tail : 1.0 - tail, 8 * kUnit};
  }

  exact::Ball ball(float g, int bits) const {
    const exact::Ball root = exact::square_root(exact::Ball(0.5), bits + 8);
    const exact::Ball x = exact::multiply(exact::Ball(-static_cast<double>(g)), root, bits + 8);
    return exact::scale(exact::erfc(x, bits), -1);
  }

 private:
  static constexpr float kLargest = static_cast<float>(exact::kLargestNormalArgument);
};

}  // namespace moeref::gates
