#pragma once

#include <mpfr.h>

#include <bit>
#include <cstdint>
#include <utility>

#include "engine/exact/dyadic.hpp"
#include "quant/dtype.hpp"

namespace moeref::judge {

/// An MPFR number that frees itself. An independent judge of moeref's own arithmetic; tests only.
class MpfrReal {
 public:
  explicit MpfrReal(mpfr_prec_t precision) { mpfr_init2(value_, precision); }
  MpfrReal(mpfr_prec_t precision, double value) : MpfrReal(precision) {
    mpfr_set_d(value_, value, MPFR_RNDN);
  }
  MpfrReal(const MpfrReal& other) : MpfrReal(mpfr_get_prec(other.value_)) {
    mpfr_set(value_, other.value_, MPFR_RNDN);
  }
  MpfrReal& operator=(const MpfrReal& other) {
    if (this != &other) {
      mpfr_set_prec(value_, mpfr_get_prec(other.value_));
      mpfr_set(value_, other.value_, MPFR_RNDN);
    }
    return *this;
  }
  ~MpfrReal() { mpfr_clear(value_); }

  mpfr_ptr get() { return value_; }
  mpfr_srcptr get() const { return value_; }
  /// This number rounded to another precision.
  MpfrReal rounded(mpfr_prec_t precision, mpfr_rnd_t rounding) const {
    MpfrReal result(precision);
    mpfr_set(result.value_, value_, rounding);  // a macro that must not see a temporary
    return result;
  }
  int sign() const { return mpfr_sgn(value_); }
  /// Rounded to nearest even, subnormals and infinity included.
  float to_float() const { return mpfr_get_flt(value_, MPFR_RNDN); }

 private:
  mpfr_t value_;
};

/// number / divisor in one rounding to nearest even to f32, bf16 or f16, subnormals and infinity
/// included; NaN as 0x7FC00000.
inline float round_quotient(mpfr_srcptr number, mpfr_srcptr divisor, Format format) {
  struct Target {
    mpfr_prec_t bits;
    mpfr_exp_t smallest;  // MPFR exponent of the smallest subnormal
    mpfr_exp_t largest;
  };
  const Target target = format == Format::f32    ? Target{24, -148, 128}
                        : format == Format::bf16 ? Target{8, -132, 128}
                                                 : Target{11, -23, 16};
  MpfrReal rounded(target.bits);
  int ternary = mpfr_div(rounded.get(), number, divisor, MPFR_RNDN);
  if (mpfr_nan_p(rounded.get()) != 0) return std::bit_cast<float>(0x7FC0'0000u);
  const mpfr_exp_t low = mpfr_get_emin();
  const mpfr_exp_t high = mpfr_get_emax();
  mpfr_set_emin(target.smallest);
  mpfr_set_emax(target.largest);
  ternary = mpfr_check_range(rounded.get(), ternary, MPFR_RNDN);
  mpfr_subnormalize(rounded.get(), ternary, MPFR_RNDN);
  const float value = rounded.to_float();
  mpfr_set_emin(low);
  mpfr_set_emax(high);
  return value;
}

/// The number in one rounding to f32, bf16 or f16.
inline float round_to(const MpfrReal& number, Format format) {
  const MpfrReal one(2, 1.0);
  return round_quotient(number.get(), one.get(), format);
}

/// The exact value; the precision is what the number needs.
inline MpfrReal exact_real(const exact::Dyadic& x) {
  constexpr std::int64_t kPiece = 50;
  const std::int64_t bits = x.is_zero() ? 2 : x.significant_bits() + 2;
  MpfrReal sum(static_cast<mpfr_prec_t>(bits), 0.0);
  MpfrReal piece(64);
  for (exact::Dyadic rest = x; !rest.is_zero();) {
    const exact::Dyadic leading = rest.truncated(kPiece);
    const std::int64_t exponent = leading.exponent();
    mpfr_set_d(piece.get(), leading.scaled(-exponent).to_double_odd(), MPFR_RNDN);
    mpfr_mul_2si(piece.get(), piece.get(), exponent, MPFR_RNDN);
    mpfr_add(sum.get(), sum.get(), piece.get(), MPFR_RNDN);
    rest -= leading;
  }
  return sum;
}

}  // namespace moeref::judge
