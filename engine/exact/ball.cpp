#include "engine/exact/ball.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "engine/exact/rounding.hpp"

namespace moeref::exact {
namespace {

constexpr int kRadiusBits = 32;
/// A bound is not written out exactly if that takes more bits than this.
constexpr std::int64_t kLongestBound = 1 << 20;
constexpr int kMostBits = 1 << 16;

/// Bits from the leading one of the larger to the lowest one of either.
std::int64_t span_of_sum(const Dyadic& x, const Dyadic& y) {
  return std::max(x.exponent(), y.exponent()) - std::min(x.lowest_exponent(), y.lowest_exponent());
}

/// A number >= x + y in magnitude and on the far side, for x, y >= 0; short.
Dyadic upper_sum(const Dyadic& x, const Dyadic& y) {
  if (x.is_zero()) return upper_bound(y);
  if (y.is_zero()) return upper_bound(x);
  const Dyadic a = upper_bound(x);
  const Dyadic b = upper_bound(y);
  const bool a_larger = a.exponent() >= b.exponent();
  const Dyadic& larger = a_larger ? a : b;
  const Dyadic& smaller = a_larger ? b : a;
  const std::int64_t place = larger.exponent() - kRadiusBits + 1;
  // If the smaller one lies below the last place, a whole last place covers it.
  return larger + (smaller.exponent() < place ? Dyadic::power_of_two(place) : smaller);
}

/// middle + direction * radius, or a number beyond it in that direction. If the two lie too far
/// apart for an exact sum, the smaller one is replaced by a larger power of two near the other:
/// moving a bound outward is always sound.
Dyadic outward_bound(const Dyadic& middle, const Dyadic& radius, int direction) {
  if (radius.is_zero()) return middle;
  const auto step = [direction](const Dyadic& size) { return direction > 0 ? size : -size; };
  if (middle.is_zero() || span_of_sum(middle, radius) <= kLongestBound) {
    return middle + step(radius);
  }
  if (middle.exponent() > radius.exponent()) {
    // Still far below the middle's own last bit, or no larger than its leading bit.
    const std::int64_t place =
        std::max(radius.exponent() + 1, middle.exponent() - kLongestBound / 2);
    return middle.truncated(kLongestBound / 2) + step(Dyadic::power_of_two(place).scaled(2));
  }
  const std::int64_t place = std::max(middle.exponent() + 1, radius.exponent() - kLongestBound / 2);
  return step(radius) + step(Dyadic::power_of_two(place));
}

}  // namespace

Dyadic upper_bound(const Dyadic& x) {
  const Dyadic cut = x.absolute().truncated(kRadiusBits);
  if (x.is_zero() || x.significant_bits() <= kRadiusBits) return cut;
  return cut + Dyadic::power_of_two(cut.exponent() - kRadiusBits + 1);
}

Dyadic upper_quotient(const Dyadic& numerator, const Dyadic& denominator) {
  if (numerator.is_zero()) return {};
  bool inexact = false;
  const Dyadic cut = floor_quotient(numerator, denominator, kRadiusBits, &inexact);
  return inexact ? cut + Dyadic::power_of_two(cut.exponent() - kRadiusBits + 1) : cut;
}

Ball rounded(const Dyadic& middle, const Dyadic& radius, int bits) {
  if (middle.is_zero()) return {middle, upper_bound(radius)};
  // A middle far inside the radius says nothing: center the ball on zero.
  if (!radius.is_zero() && middle.exponent() < radius.exponent() - bits - kRadiusBits) {
    return {Dyadic(), upper_sum(middle.absolute(), radius)};
  }
  const Dyadic cut = middle.truncated(bits);
  if (cut == middle) return {cut, upper_bound(radius)};
  // What was cut is less than the last place kept.
  return {cut, upper_sum(radius, Dyadic::power_of_two(middle.exponent() - bits + 1))};
}

bool Ball::contains_zero() const {
  return known_sign_ == 0 && compare(middle_.absolute(), radius_) <= 0;
}

int Ball::sign() const {
  if (known_sign_ != 0) return known_sign_;
  return contains_zero() ? 0 : middle_.sign();
}

Ball Ball::with_sign(int sign) const {
  Ball result = *this;
  result.known_sign_ = sign;
  return result;
}

Dyadic Ball::low() const {
  Dyadic bound = outward_bound(middle_, radius_, -1);
  return known_sign_ > 0 && bound.sign() < 0 ? Dyadic() : bound;
}

Dyadic Ball::high() const {
  Dyadic bound = outward_bound(middle_, radius_, 1);
  return known_sign_ < 0 && bound.sign() > 0 ? Dyadic() : bound;
}

Ball negate(const Ball& x) { return Ball(-x.middle(), x.radius()).with_sign(-x.sign()); }

Ball scale(const Ball& x, std::int64_t power_of_two) {
  return Ball(x.middle().scaled(power_of_two), x.radius().scaled(power_of_two)).with_sign(x.sign());
}

Ball add(const Ball& x, const Ball& y, int bits) {
  if (x.is_zero()) return rounded(y.middle(), y.radius(), bits).with_sign(y.sign());
  if (y.is_zero()) return rounded(x.middle(), x.radius(), bits).with_sign(x.sign());
  const int sign = x.sign() == y.sign() ? x.sign() : 0;
  const Dyadic radius = upper_sum(x.radius(), y.radius());
  const bool swap = compare(x.middle().absolute(), y.middle().absolute()) < 0;
  const Dyadic& large = swap ? y.middle() : x.middle();
  const Dyadic& small = swap ? x.middle() : y.middle();
  // Below the kept bits the smaller middle only widens the radius; this also keeps sums short.
  if (!small.is_zero() && small.exponent() < large.exponent() - bits - 2) {
    return rounded(large, upper_sum(radius, small.absolute()), bits).with_sign(sign);
  }
  return rounded(large + small, radius, bits).with_sign(sign);
}

Ball subtract(const Ball& x, const Ball& y, int bits) { return add(x, negate(y), bits); }

Ball multiply(const Ball& x, const Ball& y, int bits) {
  if (x.is_zero() || y.is_zero()) return {};
  // |(X + a)(Y + b) - X Y| <= |X| |b| + |Y| |a| + |a| |b|.
  const Dyadic spread =
      upper_sum(upper_bound(x.middle()) * y.radius(),
                upper_sum(upper_bound(y.middle()) * x.radius(), x.radius() * y.radius()));
  return rounded(x.middle() * y.middle(), spread, bits).with_sign(x.sign() * y.sign());
}

Ball divide(const Ball& x, const Ball& y, int bits) {
  if (compare(y.middle().absolute(), y.radius()) <= 0) {
    throw std::domain_error("division by a ball that contains zero");
  }
  if (x.is_zero()) return {};
  // |(X + a) / (Y + b) - X / Y| <= (|X| |b| + |Y| |a|) / (|Y| (|Y| - |b|)).
  const Dyadic spread =
      upper_sum(upper_bound(x.middle()) * y.radius(), upper_bound(y.middle()) * x.radius());
  Dyadic radius;
  if (!spread.is_zero()) {
    const Dyadic least =
        outward_bound(y.middle().absolute().truncated(kRadiusBits), y.radius(), -1);
    const Dyadic floor =
        least.sign() > 0 ? least : outward_bound(y.middle().absolute(), y.radius(), -1);
    if (floor.sign() <= 0) throw std::domain_error("division by a ball that nearly contains zero");
    radius = upper_quotient(spread, y.middle().absolute().truncated(kRadiusBits) * floor);
  }
  bool inexact = false;
  const Dyadic quotient = floor_quotient(x.middle(), y.middle(), bits, &inexact);
  if (inexact) {
    radius = upper_sum(radius, Dyadic::power_of_two(quotient.exponent() - bits + 1));
  }
  return rounded(quotient, radius, bits).with_sign(x.sign() * y.sign());
}

Ball square_root(const Ball& x, int bits) {
  if (x.is_zero()) return {};
  const int sign = x.sign();
  if (compare(x.middle(), x.radius()) <= 0) {
    // The value lies in [0, high]: its root in [0, root of high].
    const Dyadic high = x.high();
    if (high.sign() <= 0) throw std::domain_error("square root of a negative number");
    const Dyadic bound = upper_bound(square_root(Ball(upper_bound(high)), kRadiusBits).high());
    return Ball(bound.scaled(-1), bound.scaled(-1)).with_sign(sign);
  }
  // Newton from the root of a double in [1, 4), each step with twice the bits.
  const std::int64_t half = x.middle().exponent() >> 1;
  const Dyadic value = x.middle().scaled(-2 * half);
  Dyadic root(std::sqrt(value.to_double_odd()));
  for (int right = 48; right < bits; right *= 2) {
    const int digits = std::min(2 * right, bits) + 8;
    bool inexact = false;
    root = (root + floor_quotient(value, root, digits, &inexact)).scaled(-1).truncated(digits);
  }
  // However good the root R is, |sqrt(V) - R| = |V - R^2| / (sqrt(V) + R) <= |V - R^2| / R; and for
  // another value V + a >= 0, |sqrt(V + a) - sqrt(V)| <= |a| / sqrt(V) <= |a| because V >= 1.
  const Dyadic error = upper_quotient(upper_bound(value - root * root), root);
  const Dyadic spread = x.radius().scaled(-2 * half);
  return scale(rounded(root, upper_sum(error, spread), bits).with_sign(sign), half);
}

std::optional<float> round_if_certain(const Ball& x, Format format) {
  const Dyadic low = x.low();
  const float below = round_to(format, low.to_double_odd());
  const float above = x.is_exact() ? below : round_to(format, x.high().to_double_odd());
  if (below != above) return std::nullopt;
  if (below != 0.0f) return below;
  if (x.sign() != 0) return std::copysign(0.0f, static_cast<float>(x.sign()));
  if (low.sign() >= 0) return 0.0f;
  return std::nullopt;
}

float round_correctly(const std::function<Ball(int bits)>& evaluate, Format format,
                      int first_bits) {
  for (int bits = first_bits; bits <= kMostBits; bits *= 2) {
    try {
      const std::optional<float> value = round_if_certain(evaluate(bits), format);
      if (value) return *value;
    } catch (const std::domain_error&) {
      // Too few bits to tell the operand from a point where the expression is not defined.
    }
  }
  throw std::logic_error("round_correctly: the value lies on a rounding boundary but is not exact");
}

}  // namespace moeref::exact
