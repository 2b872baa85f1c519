#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "engine/exact/dyadic.hpp"
#include "quant/dtype.hpp"

namespace moeref::exact {

/// An interval of the real line, middle +- radius, that is proved to hold the exact value of an
/// expression. Every operation takes the number of significant bits to work with and widens the
/// radius by what it cuts off. The slow, certain path of functions with no exact result: evaluate
/// with more bits until the rounding is certain (Ziv).
///
/// A ball may know more about its value than the interval says: that it is strictly positive or
/// strictly negative though the interval touches zero (exp(-2^100) lies in (0, 2^-2^39]).
class Ball {
 public:
  Ball() = default;
  explicit Ball(double value) : middle_(value) {}             ///< exact; finite
  explicit Ball(Dyadic value) : middle_(std::move(value)) {}  ///< exact
  Ball(Dyadic middle, Dyadic radius) : middle_(std::move(middle)), radius_(std::move(radius)) {}

  const Dyadic& middle() const { return middle_; }
  const Dyadic& radius() const { return radius_; }
  bool is_exact() const { return radius_.is_zero(); }
  bool contains_zero() const;
  /// -1 or 1 if the value is proved to be negative or positive, 0 if it is zero or its sign is not
  /// known.
  int sign() const;
  bool is_zero() const { return is_exact() && middle_.is_zero(); }  ///< the value is exactly zero
  /// The same interval, with the sign (-1 or 1) that the caller has proved.
  Ball with_sign(int sign) const;
  /// Not above (not below) any value that the ball may have: middle -+ radius, moved outward if
  /// that number would be absurdly long, and to zero if the sign is known.
  Dyadic low() const;
  Dyadic high() const;

 private:
  Dyadic middle_;
  Dyadic radius_;       ///< never negative; a few bits only
  int known_sign_ = 0;  ///< proved otherwise than by the interval
};

/// middle +- radius with the middle cut to `bits` and the radius rounded up to a few bits. With
/// radius 0 the result is exact if the middle has no more than `bits`.
Ball rounded(const Dyadic& middle, const Dyadic& radius, int bits);
/// |x| rounded up to 32 significant bits.
Dyadic upper_bound(const Dyadic& x);
/// numerator / denominator rounded up to 32 significant bits; numerator >= 0, denominator > 0.
Dyadic upper_quotient(const Dyadic& numerator, const Dyadic& denominator);

Ball negate(const Ball& x);
Ball scale(const Ball& x, std::int64_t power_of_two);  ///< x * 2^power_of_two, exact
Ball add(const Ball& x, const Ball& y, int bits);
Ball subtract(const Ball& x, const Ball& y, int bits);
Ball multiply(const Ball& x, const Ball& y, int bits);
/// y must not contain zero (std::domain_error: the caller raises the precision or handles zero
/// first).
Ball divide(const Ball& x, const Ball& y, int bits);
Ball square_root(const Ball& x,
                 int bits);  ///< the value is >= 0, though the interval may reach lower

/// e^x for any x up to 2^40; below -2^40 the result is the interval (0, 2^-(2^39)]. It is always
/// known to be positive. std::overflow_error above 2^40: write the expression with a negative
/// argument instead (as `sigmoid`, `tanh`, `softplus` and a softmax with its maximum taken out do).
Ball exp(const Ball& x, int bits);
/// ln(1 + x), relatively accurate for small x. std::domain_error if the interval reaches -1.
Ball log1p(const Ball& x, int bits);
/// ln(1 + e^x) for any x, without overflow; always known to be positive.
Ball softplus(const Ball& x, int bits);
/// 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.
Ball erf(const Ball& x, int bits);
/// 1 - erf(x), relatively accurate for large x; always known to be positive.
Ball erfc(const Ball& x, int bits);
Ball pi(int bits);
Ball log_of_two(int bits);
/// 1 / (1 + exp(-x)), without cancellation for either sign; always known to be positive.
Ball sigmoid(const Ball& x, int bits);
/// tanh(x) = 1 - 2 / (exp(2 x) + 1), accurate for small x too.
Ball tanh(const Ball& x, int bits);

/// The value rounded once to `format` (f32, bf16, f16), if every number in the ball rounds to the
/// same one. A value that is exactly zero gives +0. One that is not, but rounds to zero, keeps its
/// sign as in IEEE 754; so an interval [0, tiny] is certain (+0 either way), and [-tiny, 0] only if
/// the value is known to be negative. Above the largest finite number: infinity.
std::optional<float> round_if_certain(const Ball& x, Format format);

/// Evaluates with `first_bits` bits, then twice as many, ... until the rounding is certain. The
/// expression must be exact, or not lie exactly on a rounding boundary. A std::domain_error from
/// `evaluate` counts as not certain. std::logic_error after 2^16 bits.
float round_correctly(const std::function<Ball(int bits)>& evaluate, Format format = Format::f32,
                      int first_bits = 64);

}  // namespace moeref::exact
