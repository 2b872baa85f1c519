#pragma once

#include <cstdint>
#include <vector>

namespace moeref::exact {

/// An exact number m * 2^e of any size. The engine's last word: what the fast paths cannot prove is
/// decided here. Only finite values exist; zero has no sign. Exponents stay within +-2^62.
class Dyadic {
 public:
  Dyadic() = default;
  explicit Dyadic(double value);  ///< exact; `value` must be finite
  static Dyadic from_integer(std::int64_t value);
  static Dyadic power_of_two(std::int64_t exponent);

  int sign() const { return limbs_.empty() ? 0 : (negative_ ? -1 : 1); }
  bool is_zero() const { return limbs_.empty(); }
  /// floor(log2(|x|)); the value must not be zero.
  std::int64_t exponent() const;
  /// Exponent of the lowest set bit; the value must not be zero.
  std::int64_t lowest_exponent() const;
  std::int64_t significant_bits() const { return exponent() - lowest_exponent() + 1; }

  Dyadic operator-() const;
  Dyadic absolute() const;
  /// The sum is exact, so it is as long as the exponents lie apart: std::length_error above 2^34
  /// bits.
  Dyadic& operator+=(const Dyadic& other);
  Dyadic& operator-=(const Dyadic& other);
  friend Dyadic operator+(Dyadic left, const Dyadic& right) { return left += right; }
  friend Dyadic operator-(Dyadic left, const Dyadic& right) { return left -= right; }
  friend Dyadic operator*(const Dyadic& left, const Dyadic& right);
  Dyadic scaled(std::int64_t power_of_two) const;  ///< x * 2^power_of_two
  /// The value cut toward zero to its `bits` leading bits; exact if it has no more.
  Dyadic truncated(std::int64_t bits) const;

  /// -1, 0, 1 as left <, ==, > right.
  friend int compare(const Dyadic& left, const Dyadic& right);
  friend bool operator==(const Dyadic& left, const Dyadic& right) {
    return compare(left, right) == 0;
  }
  friend bool operator<(const Dyadic& left, const Dyadic& right) {
    return compare(left, right) < 0;
  }

  /// Rounded to a double by round-to-odd (truncate, then set the last bit if anything was cut):
  /// rounding that double once more to a type of at most 51 bits, subnormals included, gives the
  /// correctly rounded value of x. |x| above the double range gives +-DBL_MAX, a non-zero |x| below
  /// it the smallest subnormal.
  double to_double_odd() const;

 private:
  void normalize();
  /// Bits [64 * index, 64 * index + 64) counted down from the leading bit; zeros below the end.
  std::uint64_t window_from_top(std::size_t index) const;
  static int compare_magnitude(const Dyadic& left, const Dyadic& right);
  void add_magnitude(const Dyadic& other);
  void subtract_magnitude(const Dyadic& other);  ///< |other| <= |*this|
  std::vector<std::uint64_t> limbs_from(std::int64_t exponent, std::size_t size) const;

  bool negative_ = false;
  std::int64_t exponent_ = 0;         ///< weight of bit 0 of limbs_[0]
  std::vector<std::uint64_t> limbs_;  ///< little-endian magnitude, no zero limb at either end
  friend Dyadic floor_quotient(const Dyadic&, const Dyadic&, std::int64_t, bool*);
};

int compare(const Dyadic& left, const Dyadic& right);

/// numerator / denominator cut toward zero to `bits` significant bits; `*inexact` says whether
/// anything was cut. The denominator must not be zero.
Dyadic floor_quotient(const Dyadic& numerator, const Dyadic& denominator, std::int64_t bits,
                      bool* inexact);
/// numerator / denominator rounded to odd like `to_double_odd`. The denominator must not be zero.
double quotient_to_double_odd(const Dyadic& numerator, const Dyadic& denominator);

}  // namespace moeref::exact
