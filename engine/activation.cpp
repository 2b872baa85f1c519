#include "engine/activation.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "engine/activation_gates.hpp"
#include "engine/exact/rounding.hpp"

namespace moeref {
namespace {

using exact::Ball;
using exact::DoubleDouble;
using exact::Dyadic;
using gates::ErfGate;
using gates::kUnit;
using gates::Range;
using gates::SigmoidGate;
using gates::TanhGate;

constexpr int kMostBits = 1 << 16;

TracedActivation direct(float value) { return {value, ActivationLevel::direct}; }

TracedActivation direct_nan() { return direct(exact::canonical_nan()); }

bool same_bits(float x, float y) {
  return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
}

/// A double rounded once to the output type.
float round_once(Format output, double value) {
  return output == Format::f32 ? static_cast<float>(value) : exact::round_to(output, value);
}

/// The product of two floats (48 bits, so exact in double) rounded once; an exact zero is +0.
TracedActivation exact_product(Format output, float x, float y) {
  const double product = static_cast<double>(x) * y;
  if (std::isnan(product)) return direct_nan();
  return direct(product == 0.0 ? 0.0f : round_once(output, product));
}

/// The value of `product` less a part between 0 and 2^-400 of it, rounded. The product has at most
/// 302 bits, and so no rounding boundary within 2^-302 of it but itself: any part that small does.
float round_just_below(Format output, const Dyadic& product) {
  const Dyadic part = Dyadic::power_of_two(product.exponent() - 400);
  const Dyadic below = product - (product.sign() < 0 ? -part : part);
  return exact::round_to(output, below.to_double_odd());
}

/// g S(g) w from balls. It is not a rounding boundary unless S is exact (alpha g = 0), because S is
/// transcendental.
template <typename Gate>
float round_exactly(Format output, const Gate& gate, float g, DoubleDouble w) {
  const Dyadic product = Dyadic(static_cast<double>(g)) * (Dyadic(w.hi) + Dyadic(w.lo));
  if (gate.range(g) == Range::saturated) return round_just_below(output, product);
  constexpr int kFirstBits = 128;
  return exact::round_correctly(
      [&](int bits) { return exact::multiply(Ball(product), gate.ball(g, bits), bits); }, output,
      kFirstBits);
}

/// Whether hi + lo, known to a relative error, rounds to one number; if so, that number.
bool rounds_alike(Format output, DoubleDouble value, double error, float* result) {
  const double spread = std::fabs(value.hi) * error;
  const DoubleDouble low = exact::quick_two_sum(value.hi, value.lo - spread);
  const DoubleDouble high = exact::quick_two_sum(value.hi, value.lo + spread);
  *result = exact::round_to(output, exact::round_to_odd(low.hi, low.lo));
  return same_bits(*result, exact::round_to(output, exact::round_to_odd(high.hi, high.lo)));
}

/// g S(g) w for finite g and w, rounded once.
///
/// |g w| is zero or within [2^-298, 2^257), and S above 2^-433 where it is computed, so no step
/// leaves the normal doubles.
template <typename Gate>
TracedActivation gated_product(Format output, const Gate& gate, float g, DoubleDouble w) {
  if (g == 0.0f || w.hi == 0.0) return direct(0.0f);
  const double product = g * w.hi;
  const Range range = gate.range(g);
  // Below 2^257 2^-420: far under half of the smallest subnormal.
  if (range == Range::vanishing) return direct(std::copysign(0.0f, static_cast<float>(product)));

  // Rounded w, g w and the result: 3 u; 2 u more for the products that make the two ends.
  const gates::Estimate s = range == Range::inside ? gate.estimate(g) : gates::Estimate{1.0, kUnit};
  const double value = product * s.value;
  const double error = s.error + 6 * kUnit;
  const float rounded = round_once(output, value * (1.0 - error));
  if (same_bits(rounded, round_once(output, value * (1.0 + error)))) {
    return {rounded, ActivationLevel::doubles};
  }
  if constexpr (Gate::kHasFineEstimate) {
    if (range == Range::inside) {
      // g w: 2 u^2, the product 5 u^2, the ends 2 u^2.
      const gates::FineEstimate fine = gate.fine_estimate(g);
      const DoubleDouble fine_value =
          exact::multiply(exact::multiply(w, static_cast<double>(g)), fine.value);
      float result = 0.0f;
      if (rounds_alike(output, fine_value, fine.error + 16 * kUnit * kUnit, &result)) {
        return {result, ActivationLevel::double_doubles};
      }
    }
  }
  return {round_exactly(output, gate, g, w), ActivationLevel::exact};
}

/// g S(g) w where g or w is not finite: only zero, sign and infinity count, S being 0 and 1 at the
/// ends that `slope` (the sign of dS/dg) points away from and to, and positive between.
TracedActivation special_product(Format output, double g, double slope, double w) {
  const double direction = slope * g;  // NaN for inf * 0
  double s = 0.5;
  if (std::isnan(direction)) s = direction;
  if (std::isinf(direction)) s = direction > 0.0 ? 1.0 : 0.0;
  const double value = g * s * w;
  return std::isnan(value) ? direct_nan() : direct(round_once(output, value));
}

template <typename Gate>
TracedActivation product_form(Format output, const Gate& gate, float g, float slope, float up,
                              float beta) {
  const DoubleDouble w = exact::two_sum(up, beta);
  if (!std::isfinite(g) || !std::isfinite(up)) return special_product(output, g, slope, w.hi);
  return gated_product(output, gate, g, w);
}

/// min(x, limit) and clamp(x, -limit, limit); NaN stays.
float capped(float x, float limit) { return x > limit ? limit : x; }
float clamped(float x, float limit) { return x > limit ? limit : (x < -limit ? -limit : x); }

/// Whether g sigma(g) > limit for finite g > limit >= 0. The two are never equal: the left side is
/// transcendental.
bool silu_exceeds(float g, float limit, ActivationLevel* level) {
  const SigmoidGate gate(1.0f);
  *level = ActivationLevel::doubles;
  if (gate.range(g) == Range::saturated) return true;  // g is at least an ulp above the limit
  const gates::Estimate s = gate.estimate(g);
  const double value = g * s.value;
  const double spread = value * (s.error + 3 * kUnit);
  if (value - spread > limit) return true;
  if (value + spread < limit) return false;
  *level = ActivationLevel::exact;
  for (int bits = 128; bits <= kMostBits; bits *= 2) {
    const Ball silu = exact::multiply(Ball(static_cast<double>(g)), gate.ball(g, bits), bits);
    const int sign = exact::subtract(silu, Ball(static_cast<double>(limit)), bits).sign();
    if (sign != 0) return sign > 0;
  }
  throw std::logic_error("silu_clamp_after: silu(gate) cannot be told from the limit");
}

TracedActivation swiglu(Format output, const ActivationParameters& p, float gate, float up) {
  return product_form(output, SigmoidGate(p.alpha), capped(gate, p.limit), p.alpha,
                      clamped(up, p.limit), p.beta);
}

TracedActivation silu_clamp_after(Format output, const ActivationParameters& p, float gate,
                                  float up) {
  const float u = clamped(up, p.limit);
  if (std::isinf(gate) && gate > 0.0f) return exact_product(output, p.limit, u);
  if (!(gate > p.limit)) return product_form(output, SigmoidGate(1.0f), gate, 1.0f, u, 0.0f);
  ActivationLevel level{};
  if (!silu_exceeds(gate, p.limit, &level)) {
    return product_form(output, SigmoidGate(1.0f), gate, 1.0f, u, 0.0f);
  }
  TracedActivation result = exact_product(output, p.limit, u);
  result.level = std::max(result.level, level);
  return result;
}

TracedActivation relu2(Format output, float up) {
  if (std::isnan(up)) return direct_nan();
  return up > 0.0f ? exact_product(output, up, up) : direct(0.0f);
}

}  // namespace

ActivationParameters parameters_for(const Activation& activation, std::int64_t expert) {
  const auto one = [expert](const std::vector<float>& each, float for_all) {
    return each.empty() ? for_all : each.at(static_cast<std::size_t>(expert));
  };
  return {activation.form, one(activation.alphas, activation.alpha),
          one(activation.betas, activation.beta), one(activation.limits, activation.limit)};
}

TracedActivation activate_traced(const ActivationParameters& p, float gate, float up,
                                 Format output) {
  switch (p.form) {
    case ActivationForm::swiglu:
      return swiglu(output, p, gate, up);
    case ActivationForm::silu_clamp_after:
      return silu_clamp_after(output, p, gate, up);
    case ActivationForm::geglu_erf:
      return product_form(output, ErfGate(), gate, 1.0f, up, 0.0f);
    case ActivationForm::geglu_tanh:
      return product_form(output, TanhGate(), gate, 1.0f, up, 0.0f);
    case ActivationForm::relu2:
      return relu2(output, up);
    case ActivationForm::silu:
      return product_form(output, SigmoidGate(1.0f), up, 1.0f, 1.0f, 0.0f);
    case ActivationForm::gelu_erf:
      return product_form(output, ErfGate(), up, 1.0f, 1.0f, 0.0f);
    case ActivationForm::gelu_tanh:
      return product_form(output, TanhGate(), up, 1.0f, 1.0f, 0.0f);
  }
  throw std::logic_error("activate: unknown activation form");
}

float activate(const ActivationParameters& parameters, float gate, float up, Format output) {
  return activate_traced(parameters, gate, up, output).value;
}

}  // namespace moeref
