#pragma once

#include <mpfr.h>

#include <cstdint>

#include "engine/activation.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::judge {

/// The activation by MPFR: the formulas as the header `quant/moe_layer.hpp` states them, with as
/// many bits as the rounding needs, rounded once to f32, bf16 or f16. Shares no arithmetic with the
/// engine. Remembers the last gate's function value, so loop over the ups inside.
class ActivationJudge {
 public:
  explicit ActivationJudge(const ActivationParameters& parameters, Format output = Format::f32)
      : p_(parameters), output_(output) {}

  float operator()(float gate, float up);

 private:
  /// The function S of g * S(g) * w, as 128 or more bits say.
  enum class Kind {
    vanishing,  ///< below 2^-600
    exact,      ///< 1/2
    regular,    ///< to a relative 2^-(bits - 32)
    saturated,  ///< above 1 - 2^-600
  };

  float special(float g, float w_sign_only) const;
  float common_rounding(const MpfrReal& value, mpfr_prec_t slack) const;
  float rounded_product(float g, const MpfrReal& w);
  bool silu_exceeds_limit(float g);
  Kind gate_function(float g, mpfr_prec_t bits, MpfrReal* s) const;
  Kind sigmoid(float alpha, float g, mpfr_prec_t bits, MpfrReal* s) const;
  static Kind normal(float g, mpfr_prec_t bits, MpfrReal* s);
  static Kind tanh_normal(float g, mpfr_prec_t bits, MpfrReal* s);

  ActivationParameters p_;
  Format output_;
  MpfrReal last_s_{128};
  Kind last_kind_ = Kind::exact;
  float last_gate_ = 0.0f;
  bool has_last_ = false;
};

}  // namespace moeref::judge
