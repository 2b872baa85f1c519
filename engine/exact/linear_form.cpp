#include "engine/exact/linear_form.hpp"

#include <cmath>
#include <optional>

#include "engine/exact/dyadic.hpp"
#include "engine/exact/rounding.hpp"

namespace moeref::exact {
namespace {

/// high + low, with |exact value - (high + low)| <= error. Each step adds what it drops to the
/// error, so an error of zero says that high + low is the exact value. Where the rest of a product
/// or quotient would be no double, the error is infinite.
class TrackedSum {
 public:
  void add(double term) {
    double carry;
    two_sum(high_, term, high_, carry);
    double dropped;
    two_sum(low_, carry, low_, dropped);
    widen(std::fabs(dropped));
  }

  void add_product(double left, double right) {
    const double product = left * right;
    add(product);
    add(std::fma(left, right, -product));
    check_range(left != 0.0 && right != 0.0, product);
  }

  void multiply(double factor) {
    const bool counts = high_ != 0.0 && factor != 0.0;
    const double product = high_ * factor;
    const double product_rest = std::fma(high_, factor, -product);
    const double low_product = low_ * factor;
    const double low_rest = std::fma(low_, factor, -low_product);
    const double old_error = error_;
    error_ = 0.0;
    high_ = product;
    double dropped;
    two_sum(product_rest, low_product, low_, dropped);
    widen(old_error * std::fabs(factor));
    widen(std::fabs(dropped));
    widen(std::fabs(low_rest));
    normalize();
    check_range(counts, product);
  }

  void divide(double divisor) {
    const bool counts = high_ != 0.0;
    const double quotient = high_ / divisor;
    const double remainder = std::fma(-quotient, divisor, high_);  // exact
    double rest;
    double dropped;
    two_sum(remainder, low_, rest, dropped);
    const double correction = rest / divisor;
    const double size = std::fabs(divisor);
    const double old_error = error_;
    error_ = 0.0;
    high_ = quotient;
    low_ = correction;
    widen(old_error / size);
    widen(std::fabs(dropped) / size);
    // The correction is one rounded quotient; its own remainder says whether it is exact.
    widen(std::fabs(std::fma(-correction, divisor, rest)) / size);
    normalize();
    check_range(counts, quotient);
  }

  std::optional<float> round(Format format) const {
    double high;
    double low;
    two_sum(high_, low_, high, low);
    if (error_ == 0.0) return round_to(format, round_to_odd(high, low) + 0.0);
    const std::optional<float> below = round_shifted(high, low, -error_, format);
    const std::optional<float> above = round_shifted(high, low, error_, format);
    if (!below || !above || *below != *above || *below == 0.0f) return std::nullopt;
    return below;
  }

 private:
  /// `result` of operands that are not zero.
  void check_range(bool counts, double result) {
    constexpr double kSmallest = 0x1p-900;
    if (counts && std::fabs(result) < kSmallest) error_ = HUGE_VAL;
  }

  static void two_sum(double left, double right, double& sum, double& rest) {
    const double total = left + right;
    const double right_part = total - left;
    const double left_part = total - right_part;
    rest = (left - left_part) + (right - right_part);
    sum = total;
  }

  /// round(high + low + shift); nothing if high + low and the shift are of one size.
  static std::optional<float> round_shifted(double high, double low, double shift, Format format) {
    // low + shift is rounded: one more ulp outward keeps the interval sound.
    double outward = low + shift;
    outward = std::nextafter(outward, shift > 0.0 ? HUGE_VAL : -HUGE_VAL);
    double sum;
    double rest;
    two_sum(high, outward, sum, rest);
    if (!std::isfinite(sum)) return std::nullopt;
    return round_to(format, round_to_odd(sum, rest) + 0.0);
  }

  void normalize() { two_sum(high_, low_, high_, low_); }

  void widen(double amount) {
    // Rounded sums of non-negative numbers: a relative 2^-50 above covers every rounding, also of
    // `amount` itself.
    if (amount != 0.0) error_ = (error_ + amount) * (1.0 + 0x1p-50);
  }

  double high_ = 0.0;
  double low_ = 0.0;
  double error_ = 0.0;
};

}  // namespace

void LinearForm::clear() {
  products_.clear();
  multipliers_.clear();
  divisors_.clear();
  addends_.clear();
}

float LinearForm::round(Format format) const {
  TrackedSum sum;
  for (const Product& product : products_) sum.add_product(product.left, product.right);
  for (const double factor : multipliers_) sum.multiply(factor);
  for (const double divisor : divisors_) sum.divide(divisor);
  for (const double addend : addends_) sum.add(addend);
  if (const std::optional<float> rounded = sum.round(format)) return *rounded;
  return round_by_integers(format);
}

float LinearForm::round_by_integers(Format format) const {
  Dyadic numerator;
  for (const Product& product : products_) {
    numerator += Dyadic(product.left) * Dyadic(product.right);
  }
  for (const double factor : multipliers_) numerator = numerator * Dyadic(factor);
  Dyadic denominator = Dyadic(1.0);
  for (const double divisor : divisors_) denominator = denominator * Dyadic(divisor);
  for (const double addend : addends_) numerator += Dyadic(addend) * denominator;
  if (numerator.is_zero()) return 0.0f;
  if (divisors_.empty()) return round_to(format, numerator.to_double_odd());
  return round_to(format, quotient_to_double_odd(numerator, denominator));
}

}  // namespace moeref::exact
