#include "engine/routing_scores.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include "engine/exact/ball.hpp"
#include "engine/exact/dyadic.hpp"
#include "engine/exact/fast_exp.hpp"
#include "engine/exact/rounding.hpp"

namespace moeref {
namespace {

using exact::Ball;
using exact::Dyadic;

static_assert(std::numeric_limits<double>::is_iec559 && std::numeric_limits<float>::is_iec559);

/// Half an ulp of 1: the relative error of one double operation.
constexpr double kUnit = 0x1p-53;

// ------------------------------------------------------------------ double arithmetic with a bound

/// exp(-a), a >= 0, off by less than 3 units of 2^-53; 0 above 300: e^-300 times any f32 is below
/// 2^-300 and rounds to 0, and beside a sum of at least 1 it is far below every bound used here.
double exp_minus(double a) { return a > exact::kLargestExpArgument ? 0.0 : exact::exp_minus(a); }

constexpr int kAtanhTerms = 17;
constexpr std::array<double, kAtanhTerms> kInverseOddNumbers = [] {
  std::array<double, kAtanhTerms> table{};
  for (int i = 0; i < kAtanhTerms; ++i) {
    table[static_cast<std::size_t>(i)] = 1.0 / (2.0 * i + 1.0);
  }
  return table;
}();

/// log(1 + t), 0 <= t <= 1, off by less than 12 units of 2^-53 beside the error of t, which it does
/// not enlarge. 2 atanh(s), s = t / (2 + t) <= 1/3, as 2 s (1 + s^2/3 + s^4/5 + ...): s is off by 2
/// units, which atanh enlarges by at most 1.1; the series of positive terms is cut at 9^-17 / 35 <
/// 2^-58; s^2 <= 1/9 damps the errors inside Horner's scheme to less than 3; the last product
/// adds 1.
double fast_log1p(double t) {
  const double s = t / (2.0 + t);
  const double square = s * s;
  double sum = 0.0;
  for (int i = kAtanhTerms - 1; i >= 0; --i) {
    sum = kInverseOddNumbers[static_cast<std::size_t>(i)] + square * sum;
  }
  return 2.0 * s * sum;
}

/// The f32 to which everything within `relative_error` of `value` rounds, if there is one. Two
/// units pay for the rounding of 1 + margin and of the product.
std::optional<float> certain_f32(double value, double relative_error) {
  const double margin = relative_error + 2 * kUnit;
  const float low = exact::round_to(Format::f32, value * (1.0 - margin));
  const float high = exact::round_to(Format::f32, value * (1.0 + margin));
  if (low != high) return std::nullopt;
  return low;
}

// --------------------------------------------------------------------------- certain arithmetic

float quotient(const Dyadic& numerator, const Dyadic& denominator) {
  return exact::round_to(Format::f32, exact::quotient_to_double_odd(numerator, denominator));
}

/// One element of a softmax. exp(d_i) / sum_j exp(d_j) with rational d_j is rational only if all
/// d_j are equal (Lindemann-Weierstrass), so that every other element is off the rounding
/// boundaries.
float certain_softmax_element(std::span<const float> logits, float largest, float logit,
                              float factor) {
  std::map<float, std::int64_t> counts;  // distinct finite logits
  for (const float z : logits) {
    if (std::isfinite(z)) ++counts[z];
  }
  if (counts.size() == 1) {
    return quotient(Dyadic(factor), Dyadic::from_integer(counts.begin()->second));
  }
  const auto difference = [largest](float z) { return Ball(Dyadic(z) - Dyadic(largest)); };
  return exact::round_correctly([&](int bits) {
    Ball sum;
    for (const auto& [z, count] : counts) {
      const Ball term = exact::exp(difference(z), bits);
      sum = exact::add(sum, exact::multiply(term, Ball(Dyadic::from_integer(count)), bits), bits);
    }
    const Ball numerator = exact::multiply(exact::exp(difference(logit), bits), Ball(factor), bits);
    return exact::divide(numerator, sum, bits);
  });
}

}  // namespace

float sigmoid_times(float logit, float factor) {
  if (logit == 0.0f) return 0.5f * factor;  // the one rational value; exact: factor >= 2^-64
  if (factor == 1.0f && std::fabs(logit) <= 0x1p-15f &&
      std::trunc(logit * 0x1p24f) == logit * 0x1p24f) {
    // sigma(z) = 1/2 + z/4 - z^3/48 + ...: the first two terms are a multiple of 2^-26, as all f32
    // and midpoints here are, and the rest, below 2^-50, pulls toward 1/2. So a step of a double in
    // that direction rounds as sigma(z) does. Without this every such midpoint would go the slow
    // way.
    return static_cast<float>(std::nextafter(0.5 + 0.25 * static_cast<double>(logit), 0.5));
  }
  // 1 / (1 + t) or t / (1 + t): 3 units for t, 1 + 3 / 2 for the sum, 1 for the quotient, 1 for the
  // product.
  constexpr double kError = 8 * kUnit;
  const double t = exp_minus(std::fabs(static_cast<double>(logit)));
  const double sigma = (logit > 0.0f ? 1.0 : t) / (1.0 + t);
  if (const auto sure = certain_f32(sigma * factor, kError)) return *sure;
  return exact::round_correctly([&](int bits) {
    return exact::multiply(exact::sigmoid(Ball(logit), bits), Ball(factor), bits);
  });
}

float rounded_exp(float x) {
  if (x == 0.0f) return 1.0f;  // the one rational value
  // Beyond these even infinity and the smallest subnormal are far away.
  if (x > 100.0f) return std::numeric_limits<float>::infinity();
  if (x < -150.0f) return 0.0f;
  constexpr double kError = 5 * kUnit;  // 3 units for exp(-|x|), 1 for its reciprocal
  const double below = exact::exp_minus(std::fabs(static_cast<double>(x)));
  if (const auto sure = certain_f32(x < 0.0f ? below : 1.0 / below, kError)) return *sure;
  return exact::round_correctly([x](int bits) { return exact::exp(Ball(x), bits); });
}

float rounded_tanh(float x) {
  const double size = std::fabs(static_cast<double>(x));
  if (size == 0.0) return x;
  if (size > 20.0) return std::copysign(1.0f, x);  // 1 - tanh is below 2^-56
  double tanh = 0.0;
  double error = 0.0;
  if (size < 0x1p-10) {
    // x - x^3/3 + 2 x^5/15; what is left out is below x^7/18 < 2^-64 x.
    const double square = size * size;
    tanh = size + size * (square * (square * (2.0 / 15) - 1.0 / 3));
    error = 3 * kUnit;
  } else {
    // (1 - t) / (1 + t), t = exp(-2 x) off by 3 units, which the difference enlarges: it is at
    // least 0.8 x for x <= 1/2 and 1/2 beyond. Then 3 roundings.
    const double t = exact::exp_minus(2.0 * size);
    tanh = (1.0 - t) / (1.0 + t);
    error = (4.0 / std::min(size, 0.5) + 8.0) * kUnit;
  }
  if (const auto sure = certain_f32(tanh, error)) return std::copysign(*sure, x);
  return exact::round_correctly([x](int bits) { return exact::tanh(Ball(x), bits); });
}

float rounded_log1p(double x) {
  if (x == 0.0) return 0.0f;
  if (x == std::numeric_limits<double>::infinity()) return std::numeric_limits<float>::infinity();
  // x <= 1: 12 units. Beyond: 1 + x rounds, then k ln 2 (2 units) and log m, 1 <= m < 2, are added.
  constexpr double kError = 16 * kUnit;
  double log = 0.0;
  if (x <= 1.0) {
    log = fast_log1p(x);
  } else {
    int exponent = 0;
    const double significand = 2.0 * std::frexp(1.0 + x, &exponent);
    constexpr double kLn2 = 0x1.62e42fefa39efp-1;
    log = static_cast<double>(exponent - 1) * kLn2 + fast_log1p(significand - 1.0);
  }
  if (const auto sure = certain_f32(log, kError)) return *sure;
  return exact::round_correctly([x](int bits) { return exact::log1p(Ball(x), bits); });
}

float sqrt_softplus(float logit) {
  // exp: 3 units, log1p: 12, the sum with the logit: 1; the root halves them and adds 1.
  constexpr double kError = 9 * kUnit;
  const double z = logit;
  // sqrt(log(1 + exp z)) <= exp(z / 2), and e^-150 is below half of the smallest subnormal, 2^-150.
  if (z < -exact::kLargestExpArgument) return 0.0f;
  const double softplus = std::max(z, 0.0) + fast_log1p(exp_minus(std::fabs(z)));
  if (const auto sure = certain_f32(std::sqrt(softplus), kError)) return *sure;
  return exact::round_correctly(
      [&](int bits) { return exact::square_root(exact::softplus(Ball(logit), bits), bits); });
}

void softmax_times(std::span<const float> logits, float factor, std::span<float> out) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> terms(logits.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    terms[i] = exp_minus(static_cast<double>(largest) - static_cast<double>(logits[i]));
    sum += terms[i];
  }
  // Numerator and sum each: 300 units for the difference, 3 for exp; then the additions, the
  // quotient and the product.
  const double error = (static_cast<double>(logits.size()) + 610.0) * kUnit;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto sure = certain_f32(terms[i] / sum * factor, error);
    out[i] = sure ? *sure : certain_softmax_element(logits, largest, logits[i], factor);
  }
}

bool shares_times(std::span<const float> scores, float epsilon, float factor,
                  std::span<float> out) {
  double sum = epsilon;
  for (const float score : scores) sum += score;
  if (sum == 0.0) return false;
  const double error = (static_cast<double>(scores.size()) + 4.0) * kUnit;
  std::optional<Dyadic> exact_sum;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double product = static_cast<double>(scores[i]) * static_cast<double>(factor);  // exact
    if (const auto sure = certain_f32(product / sum, error)) {
      out[i] = *sure;
      continue;
    }
    if (!exact_sum) {
      exact_sum = Dyadic(epsilon);
      for (const float score : scores) *exact_sum += Dyadic(score);
    }
    out[i] = quotient(Dyadic(product), *exact_sum);
  }
  return true;
}

float rounded_sum(std::span<const float> terms) {
  double sum = 0.0;
  double size = 0.0;
  for (const float term : terms) {
    sum += term;
    size += std::fabs(term);
  }
  if (size == 0.0) return 0.0f;
  if (std::isinf(size)) return static_cast<float>(sum);
  const double error = static_cast<double>(terms.size()) * kUnit * (size * (1.0 + 0x1p-30));
  if (error < std::fabs(sum)) {
    if (const auto sure = certain_f32(sum, error / std::fabs(sum) + kUnit)) return *sure;
  }
  Dyadic exact_sum;
  for (const float term : terms) exact_sum += Dyadic(term);
  return exact::round_to(Format::f32, exact_sum.to_double_odd());
}

}  // namespace moeref
