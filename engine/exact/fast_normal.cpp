#include "engine/exact/fast_normal.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "engine/exact/ball.hpp"

namespace moeref::exact {
namespace {

constexpr int kIntervalsPerUnit = 16;
constexpr std::size_t kIntervals = 24 * kIntervalsPerUnit;
constexpr std::size_t kCoefficients = 10;

using Polynomial = std::array<double, kCoefficients>;

double middle_of(std::size_t interval) {
  return (static_cast<double>(interval) + 0.5) / kIntervalsPerUnit;
}

/// The Taylor coefficients of M at x.
///
/// Q' = -phi gives M' = x M - c with c = 1 / sqrt(2 pi); differentiating again and again,
/// a_(n+1) = (x a_n + a_(n-1)) / (n + 1) for a_n = M^(n)(x) / n!. An error e of a_0 grows to at
/// most e e^(x h + h^2/2) < 2.2 e in the sum of all a_n h^n, |h| <= 1/32, so 96 bits are plenty.
Polynomial taylor_at(double x) {
  constexpr int kBits = 96;
  const Ball at(x);
  const Ball square = multiply(at, at, kBits);
  const Ball root_half = square_root(Ball(0.5), kBits);
  const Ball tail = scale(erfc(multiply(at, root_half, kBits), kBits), -1);
  std::array<Ball, kCoefficients> exact;
  exact[0] = multiply(exp(scale(square, -1), kBits), tail, kBits);
  const Ball density = square_root(divide(Ball(0.5), pi(kBits), kBits), kBits);
  exact[1] = subtract(multiply(at, exact[0], kBits), density, kBits);
  for (std::size_t n = 1; n + 1 < kCoefficients; ++n) {
    const Ball sum = add(multiply(at, exact[n], kBits), exact[n - 1], kBits);
    exact[n + 1] = divide(sum, Ball(static_cast<double>(n + 1)), kBits);
  }
  Polynomial rounded;
  std::transform(exact.begin(), exact.end(), rounded.begin(),
                 [](const Ball& value) { return value.middle().to_double_odd(); });
  return rounded;
}

std::array<Polynomial, kIntervals> make_table() {
  std::array<Polynomial, kIntervals> table;
  for (std::size_t i = 0; i < kIntervals; ++i) table[i] = taylor_at(middle_of(i));
  return table;
}

}  // namespace

// M(x) = c * integral over t >= 0 of e^(-x t - t^2/2), so |a_n| / M(x) is 1 / n! times the mean of
// t^n under a density that moves to smaller t as x grows: at most its value at 0, (2^((n-1)/2)
// Gamma((n+1)/2) / n!) / sqrt(pi / 2). For n = 10 that is below 2^-11.8; with |h| <= 1/32 what the
// polynomial leaves out is below 2^-61.5 M. The rounded a_0 (toward odd: less than one ulp) gives 2
// u, the last sum 1 u, the rest, multiplied by |h| |a_1| / M <= 1/39, less than 0.2 u.
double normal_tail_ratio(double x) {
  static const std::array<Polynomial, kIntervals> table = make_table();
  const auto interval = std::min(static_cast<std::size_t>(x * kIntervalsPerUnit), kIntervals - 1);
  const Polynomial& a = table[interval];
  const double h = x - middle_of(interval);
  double sum = a[kCoefficients - 1];
  for (std::size_t n = kCoefficients - 1; n-- > 0;) sum = sum * h + a[n];
  return sum;
}

}  // namespace moeref::exact
