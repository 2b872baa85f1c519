#include "tests/judge/rounded_functions.hpp"

#include <mpfr.h>

#include "tests/judge/mpfr_real.hpp"

namespace moeref::judge {
namespace {

/// So many that a second rounding shows only for arguments no f32 has.
constexpr mpfr_prec_t kDigits = 150;

}  // namespace

float nearest_exp(float x) {
  MpfrReal value(kDigits, static_cast<double>(x));
  mpfr_exp(value.get(), value.get(), MPFR_RNDN);
  return value.to_float();
}

float nearest_log1p(double x) {
  MpfrReal value(kDigits, x);
  mpfr_log1p(value.get(), value.get(), MPFR_RNDN);
  return value.to_float();
}

float nearest_tanh(float x) {
  MpfrReal value(kDigits, static_cast<double>(x));
  mpfr_tanh(value.get(), value.get(), MPFR_RNDN);
  return value.to_float();
}

}  // namespace moeref::judge
