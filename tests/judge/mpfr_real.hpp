#pragma once

#include <mpfr.h>

#include <cstdint>
#include <utility>

#include "engine/exact/dyadic.hpp"

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
