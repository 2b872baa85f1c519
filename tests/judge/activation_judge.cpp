#include "tests/judge/activation_judge.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace moeref::judge {
namespace {

constexpr mpfr_prec_t kFirstBits = 128;
constexpr mpfr_prec_t kMostBits = 40000;
constexpr mpfr_prec_t kExactBits = 1200;  ///< holds every product and sum of a few floats
/// Beyond +-1000 e^-|z| is below 2^-1400, out of reach of every rounding boundary (302 bits).
constexpr double kFar = 1000.0;

float canonical(float x) { return std::isnan(x) ? std::bit_cast<float>(0x7FC00000u) : x; }
float plus_zero(float x) { return x == 0.0f ? 0.0f : x; }

bool same(float x, float y) {
  return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
}

MpfrReal exact_product(const MpfrReal& x, float y) {
  MpfrReal product(kExactBits);
  if (mpfr_mul_d(product.get(), x.get(), static_cast<double>(y), MPFR_RNDN) != 0) {
    throw std::logic_error("judge: a product of floats was not exact");
  }
  return product;
}

MpfrReal sum(float x, float y) {
  MpfrReal result(kExactBits, static_cast<double>(x));
  if (mpfr_add_d(result.get(), result.get(), static_cast<double>(y), MPFR_RNDN) != 0) {
    throw std::logic_error("judge: a sum of floats was not exact");
  }
  return result;
}

float min_or_nan(float x, float limit) { return std::isnan(x) ? x : std::min(x, limit); }
float clamp_or_nan(float x, float limit) {
  return std::isnan(x) ? x : std::max(std::min(x, limit), -limit);
}

}  // namespace

/// The common value of value (1 - 2^-slack) and value (1 + 2^-slack) in the output format, or NaN.
float ActivationJudge::common_rounding(const MpfrReal& value, mpfr_prec_t slack) const {
  const mpfr_prec_t bits = mpfr_get_prec(value.get()) + 8;
  MpfrReal spread(bits);
  MpfrReal end(bits);
  mpfr_mul_2si(spread.get(), value.get(), -static_cast<long>(slack), MPFR_RNDA);
  mpfr_sub(end.get(), value.get(), spread.get(), MPFR_RNDN);
  const float low = round_to(end, output_);
  mpfr_add(end.get(), value.get(), spread.get(), MPFR_RNDN);
  const float high = round_to(end, output_);
  return same(low, high) ? low : std::numeric_limits<float>::quiet_NaN();
}

ActivationJudge::Kind ActivationJudge::sigmoid(float alpha, float g, mpfr_prec_t bits,
                                               MpfrReal* s) const {
  const double z = static_cast<double>(alpha) * g;  // exact: 48 bits
  if (z == 0.0) return Kind::exact;
  if (z > kFar) return Kind::saturated;
  if (z < -kFar) return Kind::vanishing;
  MpfrReal value(bits, -z);
  mpfr_exp(value.get(), value.get(), MPFR_RNDN);
  mpfr_add_ui(value.get(), value.get(), 1, MPFR_RNDN);
  mpfr_ui_div(value.get(), 1, value.get(), MPFR_RNDN);
  *s = value;
  return Kind::regular;
}

ActivationJudge::Kind ActivationJudge::normal(float g, mpfr_prec_t bits, MpfrReal* s) {
  if (g > 40.0f) return Kind::saturated;
  if (g < -40.0f) return Kind::vanishing;
  // The relative error of x grows by 2 x^2 < 2^11 in erfc.
  MpfrReal root(bits + 16);
  mpfr_sqrt_ui(root.get(), 2, MPFR_RNDN);
  MpfrReal x(bits + 16, -static_cast<double>(g));
  mpfr_div(x.get(), x.get(), root.get(), MPFR_RNDN);
  MpfrReal value(bits);
  mpfr_erfc(value.get(), x.get(), MPFR_RNDN);
  mpfr_div_2ui(value.get(), value.get(), 1, MPFR_RNDN);
  *s = value;
  return Kind::regular;
}

ActivationJudge::Kind ActivationJudge::tanh_normal(float g, mpfr_prec_t bits, MpfrReal* s) {
  const double rough = 0.8 * (g + 0.0447 * std::pow(static_cast<double>(g), 3));
  if (rough > 500.0) return Kind::saturated;
  if (rough < -500.0) return Kind::vanishing;
  // 1 + tanh(y) loses 2 |y| / ln 2 bits for y < 0.
  const auto cancelled = static_cast<mpfr_prec_t>(std::max(0.0, -3.0 * rough));
  const mpfr_prec_t work = bits + cancelled + 64;
  MpfrReal y(work);
  mpfr_set_str(y.get(), "0.044715", 10, MPFR_RNDN);
  for (int i = 0; i < 3; ++i) mpfr_mul_d(y.get(), y.get(), static_cast<double>(g), MPFR_RNDN);
  mpfr_add_d(y.get(), y.get(), static_cast<double>(g), MPFR_RNDN);
  MpfrReal factor(work);
  mpfr_const_pi(factor.get(), MPFR_RNDN);
  mpfr_ui_div(factor.get(), 2, factor.get(), MPFR_RNDN);
  mpfr_sqrt(factor.get(), factor.get(), MPFR_RNDN);
  mpfr_mul(y.get(), y.get(), factor.get(), MPFR_RNDN);
  mpfr_tanh(y.get(), y.get(), MPFR_RNDN);
  mpfr_add_ui(y.get(), y.get(), 1, MPFR_RNDN);
  mpfr_div_2ui(y.get(), y.get(), 1, MPFR_RNDN);
  *s = y.rounded(bits, MPFR_RNDN);
  return Kind::regular;
}

ActivationJudge::Kind ActivationJudge::gate_function(float g, mpfr_prec_t bits, MpfrReal* s) const {
  switch (p_.form) {
    case ActivationForm::swiglu:
      return sigmoid(p_.alpha, g, bits, s);
    case ActivationForm::geglu_erf:
    case ActivationForm::gelu_erf:
      return normal(g, bits, s);
    case ActivationForm::geglu_tanh:
    case ActivationForm::gelu_tanh:
      return tanh_normal(g, bits, s);
    default:
      return sigmoid(1.0f, g, bits, s);
  }
}

/// g S(g) w with the infinities in it, step by step; a finite argument of S is brought near zero,
/// as only zero and infinity matter then.
float ActivationJudge::special(float g, float w) const {
  const float slope = p_.form == ActivationForm::swiglu ? p_.alpha : 1.0f;
  MpfrReal value(64, static_cast<double>(slope));
  mpfr_mul_d(value.get(), value.get(), static_cast<double>(g), MPFR_RNDN);
  if (mpfr_number_p(value.get()) != 0) mpfr_set_ui(value.get(), 0, MPFR_RNDN);
  mpfr_neg(value.get(), value.get(), MPFR_RNDN);
  mpfr_exp(value.get(), value.get(), MPFR_RNDN);
  mpfr_add_ui(value.get(), value.get(), 1, MPFR_RNDN);
  mpfr_ui_div(value.get(), 1, value.get(), MPFR_RNDN);
  mpfr_mul_d(value.get(), value.get(), static_cast<double>(g), MPFR_RNDN);
  mpfr_mul_d(value.get(), value.get(), static_cast<double>(w), MPFR_RNDN);
  return canonical(value.to_float());
}

float ActivationJudge::rounded_product(float g, const MpfrReal& w) {
  const MpfrReal product = exact_product(w, g);
  if (product.sign() == 0) return 0.0f;
  for (mpfr_prec_t bits = kFirstBits; bits <= kMostBits; bits *= 4) {
    MpfrReal s(bits);
    Kind kind = Kind::exact;
    if (bits == kFirstBits && has_last_ && same(last_gate_, g)) {
      kind = last_kind_;
      s = last_s_;
    } else {
      kind = gate_function(g, bits, &s);
      if (bits == kFirstBits) {
        has_last_ = true;
        last_gate_ = g;
        last_kind_ = kind;
        last_s_ = s;
      }
    }
    MpfrReal value(kExactBits);
    switch (kind) {
      case Kind::vanishing:  // |product| < 2^257
        return std::copysign(0.0f, static_cast<float>(product.sign()));
      case Kind::saturated: {
        MpfrReal below = product.rounded(kExactBits, MPFR_RNDN);
        mpfr_nexttoward(below.get(), MpfrReal(2, 0.0).get());
        return round_to(below, output_);
      }
      case Kind::exact:
        mpfr_div_2ui(value.get(), product.get(), 1, MPFR_RNDN);
        return round_to(value, output_);
      case Kind::regular: {
        MpfrReal regular(bits);
        mpfr_mul(regular.get(), product.get(), s.get(), MPFR_RNDN);
        const float result = common_rounding(regular, bits - 40);
        if (!std::isnan(result)) return result;
      }
    }
  }
  throw std::logic_error("judge: not enough bits");
}

bool ActivationJudge::silu_exceeds_limit(float g) {
  if (!(g > p_.limit)) return false;
  for (mpfr_prec_t bits = kFirstBits; bits <= kMostBits; bits *= 4) {
    MpfrReal value(bits);
    const Kind kind = sigmoid(1.0f, g, bits, &value);
    if (kind == Kind::saturated) return true;
    mpfr_mul_d(value.get(), value.get(), static_cast<double>(g), MPFR_RNDN);
    MpfrReal spread(bits);
    mpfr_mul_2si(spread.get(), value.get(), -static_cast<long>(bits - 40), MPFR_RNDN);
    MpfrReal distance(bits);
    mpfr_sub_d(distance.get(), value.get(), static_cast<double>(p_.limit), MPFR_RNDN);
    if (mpfr_cmpabs(distance.get(), spread.get()) > 0) return distance.sign() > 0;
  }
  throw std::logic_error("judge: not enough bits");
}

float ActivationJudge::operator()(float gate, float up) {
  if (p_.form == ActivationForm::relu2) {
    if (std::isnan(up)) return canonical(up);
    const float relu = std::max(up, 0.0f);
    return plus_zero(
        round_to(exact_product(MpfrReal(64, static_cast<double>(relu)), relu), output_));
  }
  float g = is_gated(p_.form) ? gate : up;
  float u = is_gated(p_.form) ? up : 1.0f;
  float beta = 0.0f;
  if (p_.form == ActivationForm::swiglu) {
    g = min_or_nan(g, p_.limit);
    u = clamp_or_nan(u, p_.limit);
    beta = p_.beta;
  }
  if (p_.form == ActivationForm::silu_clamp_after) u = clamp_or_nan(u, p_.limit);
  if (p_.form == ActivationForm::silu_clamp_after && g > 0.0f) {
    const float infinity = std::numeric_limits<float>::infinity();
    if (g == infinity || silu_exceeds_limit(g)) {
      MpfrReal value(64, static_cast<double>(p_.limit));
      mpfr_mul_d(value.get(), value.get(), static_cast<double>(u), MPFR_RNDN);
      if (mpfr_zero_p(value.get()) != 0) return 0.0f;
      return round_to(value, output_);
    }
  }
  if (!std::isfinite(g) || !std::isfinite(u)) return special(g, u + beta);
  return rounded_product(g, sum(u, beta));
}

}  // namespace moeref::judge
