#include "engine/exact/dyadic.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

namespace moeref::exact {
namespace {

__extension__ using Wide = unsigned __int128;
using Limbs = std::vector<std::uint64_t>;

constexpr std::int64_t kLimbBits = 64;
constexpr std::int64_t kLongestSum = std::int64_t{1} << 34;

std::int64_t size_of(const Limbs& limbs) { return static_cast<std::int64_t>(limbs.size()); }

/// The magnitude times 2^shift in `size` limbs; no set bit may be lost.
Limbs shifted_left(const Limbs& limbs, std::int64_t shift, std::size_t size) {
  Limbs result(size, 0);
  const auto skip = static_cast<std::size_t>(shift / kLimbBits);
  const auto bits = static_cast<unsigned>(shift % kLimbBits);
  for (std::size_t i = 0; i < limbs.size(); ++i) {
    result[i + skip] |= limbs[i] << bits;
    if (bits == 0) continue;
    const std::uint64_t carried = limbs[i] >> (kLimbBits - bits);
    if (carried != 0) result[i + skip + 1] |= carried;
  }
  return result;
}

/// Limbs that hold every bit from 2^lowest up to 2^highest and a carry above.
std::size_t limbs_between(std::int64_t lowest, std::int64_t highest) {
  const std::int64_t bits = highest - lowest + 2;
  if (bits > kLongestSum) {
    throw std::length_error("Dyadic: a sum of more than 2^34 bits");
  }
  return static_cast<std::size_t>(bits / kLimbBits + 1);
}

/// numerator -= factor * denominator at limb `at`; returns whether the difference went below zero.
bool subtract_multiple(Limbs& numerator, std::size_t at, const Limbs& denominator,
                       std::uint64_t factor) {
  std::uint64_t carry = 0;
  std::uint64_t borrow = 0;
  for (std::size_t i = 0; i < denominator.size(); ++i) {
    const Wide product = static_cast<Wide>(factor) * denominator[i] + carry;
    carry = static_cast<std::uint64_t>(product >> kLimbBits);
    const Wide difference =
        static_cast<Wide>(numerator[at + i]) - static_cast<std::uint64_t>(product) - borrow;
    numerator[at + i] = static_cast<std::uint64_t>(difference);
    borrow = static_cast<std::uint64_t>(difference >> kLimbBits) & 1;
  }
  const std::size_t top = at + denominator.size();
  const Wide difference = static_cast<Wide>(numerator[top]) - carry - borrow;
  numerator[top] = static_cast<std::uint64_t>(difference);
  return (difference >> kLimbBits) != 0;
}

void add_back(Limbs& numerator, std::size_t at, const Limbs& denominator) {
  std::uint64_t carry = 0;
  for (std::size_t i = 0; i < denominator.size(); ++i) {
    const Wide sum = static_cast<Wide>(numerator[at + i]) + denominator[i] + carry;
    numerator[at + i] = static_cast<std::uint64_t>(sum);
    carry = static_cast<std::uint64_t>(sum >> kLimbBits);
  }
  numerator[at + denominator.size()] += carry;
}

/// One limb of the quotient, at most two too large before `subtract_multiple` and `add_back`
/// (Knuth, The Art of Computer Programming 2, 4.3.1, algorithm D, step D3).
std::uint64_t estimate_quotient_limb(const Limbs& numerator, std::size_t at,
                                     const Limbs& denominator) {
  const std::size_t n = denominator.size();
  const std::uint64_t leading = denominator[n - 1];
  const Wide top = (static_cast<Wide>(numerator[at + n]) << kLimbBits) | numerator[at + n - 1];
  Wide estimate = top / leading;
  Wide rest = top % leading;
  const auto too_large = [&] {
    if ((estimate >> kLimbBits) != 0) return true;
    if (n == 1) return false;
    return estimate * denominator[n - 2] > ((rest << kLimbBits) | numerator[at + n - 2]);
  };
  while (too_large()) {
    --estimate;
    rest += leading;
    if ((rest >> kLimbBits) != 0) break;
  }
  return static_cast<std::uint64_t>(estimate);
}

/// Divides in place: `numerator` becomes the remainder, the quotient is returned. The denominator's
/// top bit must be set, the numerator must have a zero limb on top.
Limbs divide_in_place(Limbs& numerator, const Limbs& denominator) {
  const std::size_t n = denominator.size();
  assert(numerator.size() > n);
  Limbs quotient(numerator.size() - n, 0);
  for (std::size_t at = quotient.size(); at-- > 0;) {
    std::uint64_t limb = estimate_quotient_limb(numerator, at, denominator);
    if (subtract_multiple(numerator, at, denominator, limb)) {
      --limb;
      add_back(numerator, at, denominator);
    }
    quotient[at] = limb;
  }
  return quotient;
}

}  // namespace

Dyadic::Dyadic(double value) {
  assert(std::isfinite(value));
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const auto biased = static_cast<std::int64_t>((bits >> 52) & 0x7FF);
  const std::uint64_t fraction = bits & 0xFFFFFFFFFFFFFull;
  const std::uint64_t significand = biased == 0 ? fraction : fraction | (1ull << 52);
  if (significand == 0) return;
  negative_ = (bits >> 63) != 0;
  exponent_ = std::max<std::int64_t>(biased, 1) - 1075;
  limbs_ = {significand};
}

Dyadic Dyadic::from_integer(std::int64_t value) {
  Dyadic result;
  if (value == 0) return result;
  result.negative_ = value < 0;
  const auto bits = static_cast<std::uint64_t>(value);
  result.limbs_ = {value < 0 ? ~bits + 1 : bits};
  return result;
}

Dyadic Dyadic::power_of_two(std::int64_t exponent) { return from_integer(1).scaled(exponent); }

std::int64_t Dyadic::exponent() const {
  assert(!is_zero());
  return exponent_ + kLimbBits * size_of(limbs_) - 1 - std::countl_zero(limbs_.back());
}

std::int64_t Dyadic::lowest_exponent() const {
  assert(!is_zero());
  return exponent_ + std::countr_zero(limbs_.front());
}

void Dyadic::normalize() {
  while (!limbs_.empty() && limbs_.back() == 0) limbs_.pop_back();
  std::size_t zeros = 0;
  while (zeros < limbs_.size() && limbs_[zeros] == 0) ++zeros;
  if (zeros != 0) {
    limbs_.erase(limbs_.begin(), limbs_.begin() + static_cast<std::ptrdiff_t>(zeros));
    exponent_ += kLimbBits * static_cast<std::int64_t>(zeros);
  }
  if (limbs_.empty()) {
    negative_ = false;
    exponent_ = 0;
  }
}

Dyadic Dyadic::operator-() const {
  Dyadic result = *this;
  if (!result.is_zero()) result.negative_ = !result.negative_;
  return result;
}

Dyadic Dyadic::absolute() const {
  Dyadic result = *this;
  result.negative_ = false;
  return result;
}

std::uint64_t Dyadic::window_from_top(std::size_t index) const {
  if (index >= limbs_.size()) return 0;
  const auto shift = static_cast<unsigned>(std::countl_zero(limbs_.back()));
  const std::size_t at = limbs_.size() - 1 - index;
  std::uint64_t window = limbs_[at] << shift;
  if (shift != 0 && at > 0) window |= limbs_[at - 1] >> (kLimbBits - shift);
  return window;
}

int Dyadic::compare_magnitude(const Dyadic& left, const Dyadic& right) {
  if (left.is_zero() || right.is_zero()) {
    return static_cast<int>(right.is_zero()) - static_cast<int>(left.is_zero());
  }
  const std::int64_t left_exponent = left.exponent();
  const std::int64_t right_exponent = right.exponent();
  if (left_exponent != right_exponent) return left_exponent < right_exponent ? -1 : 1;
  const std::size_t windows = std::max(left.limbs_.size(), right.limbs_.size());
  for (std::size_t i = 0; i < windows; ++i) {
    const std::uint64_t a = left.window_from_top(i);
    const std::uint64_t b = right.window_from_top(i);
    if (a != b) return a < b ? -1 : 1;
  }
  return 0;
}

int compare(const Dyadic& left, const Dyadic& right) {
  if (left.sign() != right.sign()) return left.sign() < right.sign() ? -1 : 1;
  const int magnitude = Dyadic::compare_magnitude(left, right);
  return left.negative_ ? -magnitude : magnitude;
}

Limbs Dyadic::limbs_from(std::int64_t exponent, std::size_t size) const {
  return shifted_left(limbs_, exponent_ - exponent, size);
}

void Dyadic::add_magnitude(const Dyadic& other) {
  const std::int64_t lowest = std::min(exponent_, other.exponent_);
  const std::size_t size = limbs_between(lowest, std::max(exponent(), other.exponent()));
  Limbs sum = limbs_from(lowest, size);
  const Limbs addend = other.limbs_from(lowest, size);
  std::uint64_t carry = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const Wide limb = static_cast<Wide>(sum[i]) + addend[i] + carry;
    sum[i] = static_cast<std::uint64_t>(limb);
    carry = static_cast<std::uint64_t>(limb >> kLimbBits);
  }
  assert(carry == 0);
  limbs_ = std::move(sum);
  exponent_ = lowest;
  normalize();
}

void Dyadic::subtract_magnitude(const Dyadic& other) {
  const std::int64_t lowest = std::min(exponent_, other.exponent_);
  const std::size_t size = limbs_between(lowest, exponent());
  Limbs difference = limbs_from(lowest, size);
  const Limbs subtrahend = other.limbs_from(lowest, size);
  std::uint64_t borrow = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const Wide limb = static_cast<Wide>(difference[i]) - subtrahend[i] - borrow;
    difference[i] = static_cast<std::uint64_t>(limb);
    borrow = static_cast<std::uint64_t>(limb >> kLimbBits) & 1;
  }
  assert(borrow == 0);
  limbs_ = std::move(difference);
  exponent_ = lowest;
  normalize();
}

Dyadic& Dyadic::operator+=(const Dyadic& other) {
  if (other.is_zero()) return *this;
  if (is_zero()) return *this = other;
  if (negative_ == other.negative_) {
    add_magnitude(other);
  } else if (compare_magnitude(*this, other) >= 0) {
    subtract_magnitude(other);
  } else {
    Dyadic larger = other;
    larger.subtract_magnitude(*this);
    *this = std::move(larger);
  }
  return *this;
}

Dyadic& Dyadic::operator-=(const Dyadic& other) { return *this += -other; }

Dyadic operator*(const Dyadic& left, const Dyadic& right) {
  Dyadic product;
  if (left.is_zero() || right.is_zero()) return product;
  product.negative_ = left.negative_ != right.negative_;
  product.exponent_ = left.exponent_ + right.exponent_;
  product.limbs_.assign(left.limbs_.size() + right.limbs_.size(), 0);
  for (std::size_t i = 0; i < left.limbs_.size(); ++i) {
    std::uint64_t carry = 0;
    for (std::size_t j = 0; j < right.limbs_.size(); ++j) {
      // At most (2^64 - 1)^2 + 2 (2^64 - 1) = 2^128 - 1.
      const Wide limb =
          static_cast<Wide>(left.limbs_[i]) * right.limbs_[j] + product.limbs_[i + j] + carry;
      product.limbs_[i + j] = static_cast<std::uint64_t>(limb);
      carry = static_cast<std::uint64_t>(limb >> kLimbBits);
    }
    product.limbs_[i + right.limbs_.size()] = carry;
  }
  product.normalize();
  return product;
}

Dyadic Dyadic::scaled(std::int64_t power) const {
  Dyadic result = *this;
  if (!result.is_zero()) result.exponent_ += power;
  return result;
}

Dyadic Dyadic::truncated(std::int64_t bits) const {
  assert(bits > 0);
  if (is_zero()) return *this;
  const std::int64_t cut = exponent() - bits + 1 - exponent_;  // bits below this index go
  if (cut <= 0) return *this;
  Dyadic result = *this;
  const auto whole = static_cast<std::size_t>(cut / kLimbBits);
  std::fill_n(result.limbs_.begin(), whole, 0);
  result.limbs_[whole] &= ~std::uint64_t{0} << (cut % kLimbBits);
  result.normalize();
  return result;
}

double Dyadic::to_double_odd() const {
  if (is_zero()) return 0.0;
  const std::int64_t top = exponent();
  const double sign = negative_ ? -1.0 : 1.0;
  if (top > 1023) return sign * std::numeric_limits<double>::max();
  if (top < -1074) return sign * std::numeric_limits<double>::denorm_min();
  const std::int64_t kept = std::min<std::int64_t>(53, top + 1075);  // fewer in the subnormals
  const std::uint64_t window = window_from_top(0);
  std::uint64_t significand = window >> (kLimbBits - kept);
  if (lowest_exponent() < top - kept + 1) significand |= 1;
  // The hidden bit adds one to the exponent field; a subnormal has field 0 and no hidden bit.
  const std::uint64_t field = kept == 53 ? static_cast<std::uint64_t>(top + 1022) : 0;
  const std::uint64_t magnitude = (field << 52) + significand;
  return std::bit_cast<double>(magnitude | (negative_ ? 1ull << 63 : 0));
}

Dyadic floor_quotient(const Dyadic& numerator, const Dyadic& denominator, std::int64_t bits,
                      bool* inexact) {
  assert(!denominator.is_zero() && bits > 0);
  *inexact = false;
  Dyadic result;
  if (numerator.is_zero()) return result;

  // Integers N * 2^shift and D with a quotient of at least `bits` bits; D's top bit is set.
  const std::int64_t lift = std::countl_zero(denominator.limbs_.back());
  const Limbs divisor = shifted_left(denominator.limbs_, lift, denominator.limbs_.size());
  const std::int64_t have = numerator.exponent() - numerator.exponent_ + 1;
  const std::int64_t need = kLimbBits * size_of(divisor) + bits;
  const std::int64_t shift = std::max<std::int64_t>(0, need - have);
  const std::int64_t limbs = std::max(size_of(divisor), (have + shift) / kLimbBits + 1) + 1;
  Limbs rest = shifted_left(numerator.limbs_, shift, static_cast<std::size_t>(limbs));

  result.limbs_ = divide_in_place(rest, divisor);
  result.negative_ = numerator.negative_ != denominator.negative_;
  result.exponent_ = numerator.exponent_ - shift - (denominator.exponent_ - lift);
  result.normalize();
  const Dyadic kept = result.truncated(bits);
  *inexact = std::any_of(rest.begin(), rest.end(), [](std::uint64_t limb) { return limb != 0; }) ||
             !(kept == result);
  return kept;
}

double quotient_to_double_odd(const Dyadic& numerator, const Dyadic& denominator) {
  constexpr std::int64_t kBits = 64;
  bool inexact = false;
  Dyadic quotient = floor_quotient(numerator, denominator, kBits, &inexact);
  if (inexact) {
    // Any bit below the 64 kept ones stands for what was cut: the truncation sees the same.
    const Dyadic below = Dyadic::power_of_two(quotient.exponent() - kBits - 1);
    quotient += quotient.sign() < 0 ? -below : below;
  }
  return quotient.to_double_odd();
}

}  // namespace moeref::exact
