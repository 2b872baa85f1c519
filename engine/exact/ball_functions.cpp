#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <stdexcept>

#include "engine/exact/ball.hpp"

// Every function splits into two parts: its value at the middle M of the operand (an exact number),
// by a series in fixed point with a counted error; and the change of the value over the radius, by
// a bound of the derivative.

namespace moeref::exact {
namespace {

/// exp saturates where the argument reaches this power of two.
constexpr std::int64_t kHugeExponent = 40;
constexpr double kOneOverLn2 = 1.4426950408889634;

Dyadic power(std::int64_t exponent) { return Dyadic::power_of_two(exponent); }

/// x cut toward zero to a multiple of 2^place: less than one such unit off.
Dyadic cut_at(const Dyadic& x, std::int64_t place) {
  if (x.is_zero()) return x;
  const std::int64_t bits = x.exponent() - place + 1;
  return bits <= 0 ? Dyadic() : x.truncated(bits);
}

/// x / divisor cut toward zero to a multiple of 2^place, for a small divisor.
Dyadic divided_at(const Dyadic& x, std::int64_t divisor, std::int64_t place) {
  if (x.is_zero()) return x;
  const Dyadic by = Dyadic::from_integer(divisor);
  const std::int64_t bits = x.exponent() - by.exponent() - place + 1;
  if (bits <= 0) return {};
  bool inexact = false;
  return cut_at(floor_quotient(x, by, bits, &inexact), place);
}

int bit_length(std::int64_t n) {
  return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n)));
}

/// The sum over n >= 0 of (+-1)^n / ((2 n + 1) base^(2 n + 1)), base >= 5, in units of 2^place; N
/// terms are not zero. The error is at most 3 N + 2 units: a power carries e <= e' / base^2 + 1 < 2
/// units, its division one more, and the rest of the series, which starts below 2 units, less
/// than 2.
Dyadic inverse_series(std::int64_t base, bool alternating, std::int64_t place,
                      std::int64_t* terms) {
  Dyadic sum;
  Dyadic base_power = divided_at(Dyadic(1.0), base, place);
  std::int64_t n = 0;
  for (; !base_power.is_zero(); ++n) {
    const Dyadic term = divided_at(base_power, 2 * n + 1, place);
    sum += alternating && n % 2 == 1 ? -term : term;
    base_power = divided_at(base_power, base * base, place);
  }
  *terms = n;
  return sum;
}

/// A constant by an integer combination of inverse series (Machin's form).
struct MachinTerm {
  std::int64_t factor;
  std::int64_t base;
};

template <std::size_t kCount>
Ball machin(const MachinTerm (&form)[kCount], bool alternating, int bits) {
  const std::int64_t place = -std::int64_t{bits} - 32;
  Dyadic sum;
  std::int64_t units = 0;
  for (const MachinTerm& part : form) {
    std::int64_t terms = 0;
    sum +=
        Dyadic::from_integer(part.factor) * inverse_series(part.base, alternating, place, &terms);
    units += std::abs(part.factor) * (3 * terms + 2);
  }
  return rounded(sum, Dyadic::from_integer(units).scaled(place), bits + 16);
}

/// The last value of a constant, computed with at least the bits asked for. One for each thread: a
/// constant does not depend on who computed it.
template <typename Compute>
Ball cached(Ball& value, int& have, int bits, Compute compute) {
  if (have < bits) {
    have = std::max(256, static_cast<int>(std::bit_ceil(static_cast<unsigned>(bits))));
    value = compute(have);
  }
  return rounded(value.middle(), value.radius(), bits);
}

/// e^r for |r| <= 1, with an error of at most 2^-accuracy.
///
/// With s = r / 2^h cut to units of 2^place (|s| <= 1/4), the terms t_n = s^n / n! come from
/// t_(n-1) by a product and a division, each cut by less than a unit: their errors obey e_n <=
/// e_(n-1) / 4 + 2 < 4. So N terms are 4 N units off, the rest of the series (its first term below
/// 5 units) 10, and the cut of r counts 2. Relative to e^s >= 0.77 that is at most d = 8 N + 24
/// units. Each of h squarings doubles the relative error and adds one cut, at most 4 units relative
/// to e^r >= 0.36: below 2^h (d + 4) (1 + tiny) units at the end, times e^r < 4. Hence the place.
/// The loop ends by itself: t_n < 4^-n falls below a unit for n = accuracy + 64.
Dyadic exp_reduced(const Dyadic& r, int accuracy) {
  const int halvings = 2 + static_cast<int>(std::sqrt(static_cast<double>(accuracy)) / 2);
  const int terms = accuracy + 64;
  const std::int64_t place = -(std::int64_t{accuracy} + bit_length(8 * terms + 28) + halvings + 3);
  const Dyadic s = cut_at(r.scaled(-halvings), place);
  Dyadic sum(1.0);
  Dyadic term(1.0);
  for (int n = 1; n <= terms; ++n) {
    term = divided_at(cut_at(term * s, place), n, place);
    if (term.is_zero()) break;
    sum += term;
  }
  for (int i = 0; i < halvings; ++i) sum = cut_at(sum * sum, place);
  return sum;
}

/// e^M at an exact M, |M| < 2^40.
Ball exp_at(const Dyadic& m, int bits) {
  if (m.is_zero()) return Ball(1.0);
  // |e^M - 1| <= 2 |M|.
  if (m.exponent() < -bits - 2) return Ball(Dyadic(1.0), power(m.exponent() + 2)).with_sign(1);
  // Any k with |M - k ln 2| <= 1 will do, so a double is enough to find it.
  const auto k = static_cast<std::int64_t>(std::floor(m.to_double_odd() * kOneOverLn2 + 0.5));
  // |k| < 2^41 and ln 2 within 2^-(bits + 55): k ln 2 within 2^-(bits + 14), e^r less than 3 times
  // that. Together with the series below 2^-(bits + 3).
  const Dyadic r = m - Dyadic::from_integer(k) * log_of_two(bits + 56).middle();
  return scale(rounded(exp_reduced(r, bits + 4), power(-bits - 3), bits + 2), k).with_sign(1);
}

/// 0 < value <= bound.
Ball positive_up_to(const Dyadic& bound) {
  const Dyadic half = upper_bound(bound).scaled(-1);
  return Ball(half, half).with_sign(1);
}

/// The ball of a function whose value at the middle is `value` and which moves by at most `spread`.
Ball widened(const Ball& value, const Dyadic& spread, int bits) {
  if (spread.is_zero()) return rounded(value.middle(), value.radius(), bits);
  return add(value, Ball(Dyadic(), upper_bound(spread)), bits);
}

/// ln(1 + d) for |d| < 2^-16, as 2 artanh(t), t = d / (2 + d).
Ball log1p_series(const Ball& d, int bits) {
  if (d.is_zero()) return {};
  const Ball t = divide(d, add(Ball(2.0), d, bits), bits);
  const Ball square = multiply(t, t, bits);
  Ball sum = t;
  Ball odd_power = t;
  for (std::int64_t n = 3;; n += 2) {
    odd_power = multiply(odd_power, square, bits);
    const Dyadic bound = upper_bound(odd_power.middle()) + odd_power.radius();
    // |t^2| < 1/2: the rest of the series is below twice its first term, here below |t^n|.
    if (bound.is_zero() || bound.exponent() < t.high().exponent() - bits - 2) {
      return scale(widened(sum, bound, bits), 1);
    }
    sum = add(sum, divide(odd_power, Ball(Dyadic::from_integer(n)), bits), bits);
  }
}

/// ln(f) to about 40 bits for f in [0.7, 1.5]: only a starting point, its error is measured.
double rough_log(double f) {
  const double t = (f - 1.0) / (f + 1.0);  // |t| <= 0.2
  double sum = 0.0;
  for (int n = 19; n >= 1; n -= 2) sum = sum * t * t + 1.0 / n;
  return 2.0 * t * sum;
}

/// ln(1 + M) at an exact M > -1, not small.
Ball log1p_at(const Dyadic& m, int bits) {
  const int digits = bits + 32;  // ln(1 + M) may be as small as 2^-20
  const Ball y = add(Ball(1.0), Ball(m), digits);
  // y = f 2^k, f in [0.75, 1.5]; ln f = L + ln(1 + d) with d = f e^-L - 1, whatever L is.
  std::int64_t k = y.middle().exponent();
  if (compare(y.middle().scaled(-k), Dyadic(1.5)) > 0) ++k;
  const Ball f = scale(y, -k);
  const Ball rough(rough_log(f.middle().to_double_odd()));
  const Ball d = subtract(multiply(f, exp(negate(rough), digits), digits), Ball(1.0), digits);
  const Ball log_f = add(rough, log1p_series(d, digits), digits);
  return add(log_f, multiply(Ball(Dyadic::from_integer(k)), log_of_two(digits), digits), bits);
}

/// S = x + x (2 x^2) / 3 + x (2 x^2)^2 / (3 5) + ..., so that erf(x) = 2 / sqrt(pi) e^(-x^2) S, x >
/// 0.
///
/// All cuts are downward. With t_n the exact terms, q_n = t_(n+1) / t_n and D_n the deficit of a
/// computed term, D_(n+1) <= q_n D_n + q_n t_n 2^-w (2 x^2 cut to w bits) + 2 units, a unit being
/// at most x 2^-w. So D_n <= n 2^-w t_n + 2 units * sum over k <= n of t_n / t_k. As q falls, the
/// sum over n >= k of t_n / t_k is at most S / x; all D_n together are at most 3 (N + 1) 2^-w S.
/// The sum stops at a computed zero with q <= 1/2: the rest is at most 2 t_N = 2 D_N. In all 9 (N +
/// 1) 2^-w, relative to S; relative to the computed sum at most twice that.
Ball erf_series(const Dyadic& x, int bits) {
  const int w = bits + 32;
  const std::int64_t place = x.exponent() - w;
  const Dyadic twice_square = (x * x).scaled(1).truncated(w);
  Dyadic term = cut_at(x, place);
  Dyadic sum = term;
  std::int64_t n = 0;
  const auto ratio_small = [&] {
    return compare(twice_square.scaled(2), Dyadic::from_integer(2 * n + 3)) <= 0;
  };
  while (!(term.is_zero() && ratio_small())) {
    term = divided_at(cut_at(term * twice_square, place), 2 * n + 3, place);
    sum += term;
    ++n;
  }
  const Dyadic relative = Dyadic::from_integer(18 * (n + 1)).scaled(-w);
  return rounded(sum, upper_bound(sum) * relative, bits + 8);
}

/// e^(-x^2) as a bound, for x >= 0.
Dyadic gauss_bound(const Dyadic& x) {
  if (x.is_zero()) return Dyadic(1.0);
  const Dyadic below = x.truncated(32);
  return upper_bound(exp(Ball(-(below * below)), 32).high());
}

/// About log2(e^(x^2)), or far above any precision.
double gauss_bits(const Dyadic& x) {
  if (x.exponent() > 20) return 1e12;
  const double value = x.to_double_odd();
  return value * value * kOneOverLn2;
}

/// erf at an exact x > 0.
Ball erf_at(const Dyadic& x, int bits) {
  // 0 < 1 - erf(x) <= e^(-x^2).
  if (gauss_bits(x) > bits + 8) return Ball(Dyadic(1.0), gauss_bound(x));
  const int digits = bits + 8;
  const Ball product = multiply(erf_series(x, digits), exp(Ball(-(x * x)), digits), digits);
  return divide(scale(product, 1), square_root(pi(digits), digits), bits);
}

/// erfc at an exact x with e^(-x^2) below 2^-bits, by the asymptotic series
/// e^(-x^2) / (x sqrt(pi)) * (1 - 1/(2 x^2) + 1 3/(2 x^2)^2 - ...): its error is at most the first
/// term left out (NIST Handbook of Mathematical Functions, 7.12(i)).
Ball erfc_tail(const Dyadic& x, int bits) {
  const int digits = bits + 8;
  const Ball step = negate(divide(Ball(0.5), Ball(x * x), digits));
  Ball sum(1.0);
  Ball term(1.0);
  for (std::int64_t n = 0;; ++n) {
    const Ball next =
        multiply(term, multiply(step, Ball(Dyadic::from_integer(2 * n + 1)), digits), digits);
    const Dyadic size = upper_bound(next.middle()) + next.radius();
    const bool falling = compare(size, term.middle().absolute()) < 0;
    if (!falling || size.exponent() < -digits) {
      sum = widened(sum, size, digits);
      break;
    }
    sum = add(sum, next, digits);
    term = next;
  }
  const Ball below = multiply(Ball(x), square_root(pi(digits), digits), digits);
  return multiply(divide(exp(Ball(-(x * x)), digits), below, digits), sum, bits);
}

Ball erfc_at(const Dyadic& x, int bits) {
  if (x.is_zero()) return Ball(1.0);
  if (x.sign() < 0) return add(Ball(1.0), erf_at(-x, bits + 2), bits);
  const double tail_bits = gauss_bits(x);
  if (tail_bits > bits + 16) return erfc_tail(x, bits);
  // erfc(x) is about e^(-x^2): as many more bits cancel.
  const int digits = bits + static_cast<int>(tail_bits) + 16;
  return subtract(Ball(1.0), erf_at(x, digits), bits);
}

/// tanh at an exact x > 0.
Ball tanh_at(const Dyadic& x, int bits) {
  // x - x^3 / 3 < tanh(x) < x.
  if (x.exponent() < -bits) return Ball(x, upper_bound(x * x * x));
  const int digits = bits + 8 + static_cast<int>(std::max<std::int64_t>(0, -x.exponent()));
  const Ball e = exp(Ball(-x.scaled(1)), digits);
  return divide(subtract(Ball(1.0), e, digits), add(Ball(1.0), e, digits), bits);
}

}  // namespace

Ball log_of_two(int bits) {
  // ln 2 = 18 artanh(1/26) - 2 artanh(1/4801) + 8 artanh(1/8749).
  static constexpr MachinTerm kForm[] = {{18, 26}, {-2, 4801}, {8, 8749}};
  thread_local Ball value;
  thread_local int have = 0;
  return cached(value, have, bits, [](int b) { return machin(kForm, false, b); });
}

Ball pi(int bits) {
  // Machin: pi = 16 arctan(1/5) - 4 arctan(1/239).
  static constexpr MachinTerm kForm[] = {{16, 5}, {-4, 239}};
  thread_local Ball value;
  thread_local int have = 0;
  return cached(value, have, bits, [](int b) { return machin(kForm, true, b); });
}

Ball exp(const Ball& x, int bits) {
  const Dyadic high = x.high();
  if (!high.is_zero() && high.exponent() >= kHugeExponent) {
    if (high.sign() > 0) throw std::overflow_error("exp of a number above 2^40");
    // e^x <= 2^x for x < 0.
    return positive_up_to(power(-(std::int64_t{1} << (kHugeExponent - 1))));
  }
  const bool wide = compare(x.radius(), Dyadic(0.5)) > 0;
  if (wide) return positive_up_to(exp_at(high, 32).high());
  // |e^(M + a) - e^M| <= e^M (e^|a| - 1) <= 2 |a| e^M for |a| <= 1. A radius below 1/2 cannot bring
  // the middle to 2^40 and beyond from a smaller high end.
  const Ball value = exp_at(x.middle(), bits);
  return widened(value, upper_bound(value.high()) * x.radius().scaled(1), bits).with_sign(1);
}

Ball log1p(const Ball& x, int bits) {
  if (x.is_zero()) return {};
  const Dyadic low = x.low();
  if (compare(low, Dyadic(-1.0)) <= 0) throw std::domain_error("log1p of a ball that reaches -1");
  const Dyadic size = upper_bound(x.middle()) + x.radius();
  if (size.exponent() < -18) {
    return widened(log1p_series(x, bits + 8), Dyadic(), bits).with_sign(x.sign());
  }
  // The derivative 1 / (1 + x) is at most 1 / low for low > 0.
  const Ball value = log1p_at(x.middle(), bits + 2);
  if (x.is_exact()) return rounded(value.middle(), value.radius(), bits).with_sign(x.sign());
  const Dyadic slope = compare(low, Dyadic(1.0)) > 0 ? low : low + Dyadic(1.0);
  return widened(value, upper_quotient(x.radius(), slope), bits).with_sign(x.sign());
}

Ball softplus(const Ball& x, int bits) {
  if (x.middle().sign() < 0) return log1p(exp(x, bits + 4), bits).with_sign(1);
  return add(x, log1p(exp(negate(x), bits + 4), bits + 4), bits).with_sign(1);
}

Ball erf(const Ball& x, int bits) {
  const Dyadic& m = x.middle();
  Ball value;
  if (!m.is_zero()) value = erf_at(m.absolute(), bits + 2);
  if (m.sign() < 0) value = negate(value);
  // The derivative is at most 2 / sqrt(pi) < 1.25.
  return widened(value, Dyadic(1.25) * x.radius(), bits).with_sign(x.sign());
}

Ball erfc(const Ball& x, int bits) {
  const Ball value = erfc_at(x.middle(), bits + 2);
  if (x.is_exact()) return rounded(value.middle(), value.radius(), bits).with_sign(1);
  // The derivative is at most 1.25 e^(-l^2), l the distance of the interval from zero.
  const Dyadic low = x.low();
  const Dyadic slope = low.sign() > 0 ? gauss_bound(low) : Dyadic(1.0);
  return widened(value, Dyadic(1.25) * slope * x.radius(), bits).with_sign(1);
}

Ball sigmoid(const Ball& x, int bits) {
  const int digits = bits + 4;
  if (x.middle().sign() >= 0) {
    const Ball e = exp(negate(x), digits);
    return divide(Ball(1.0), add(Ball(1.0), e, digits), bits).with_sign(1);
  }
  const Ball e = exp(x, digits);
  return divide(e, add(Ball(1.0), e, digits), bits).with_sign(1);
}

Ball tanh(const Ball& x, int bits) {
  const Dyadic& m = x.middle();
  Ball value;
  if (!m.is_zero()) value = tanh_at(m.absolute(), bits + 2);
  if (m.sign() < 0) value = negate(value);
  // The derivative is at most 1.
  return widened(value, x.radius(), bits).with_sign(x.sign());
}

}  // namespace moeref::exact
