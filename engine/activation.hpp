#pragma once

#include <cstdint>
#include <span>

#include "quant/moe_layer.hpp"

namespace moeref {

/// Parameters of one expert's activation. alpha and beta must be finite, limit >= 0 (infinity =
/// none); whoever reads them from a file rejects others.
struct ActivationParameters {
  ActivationForm form = ActivationForm::swiglu;
  float alpha = 1.0f;
  float beta = 0.0f;
  float limit = kNoLimit;
};

/// The parameters that hold for `expert` (counted from the layer's first expert).
ActivationParameters parameters_for(const Activation& activation, std::int64_t expert);

/// The activation of one (gate, up) pair, correctly rounded to `output` (f32, bf16, f16; as f32)
/// from the exact value of the formula in `ActivationForm`: alpha, beta and limit are the f32
/// numbers, sqrt(2/pi) the real number, 0.044715 the decimal one. Non-gated forms ignore `gate`.
///
/// A result that is exactly zero is +0; one that is not zero but rounds to zero keeps its sign.
/// Finite operands never give NaN. Operands that are not finite follow the formula step by step in
/// IEEE arithmetic with sigma(-inf) = 0, sigma(inf) = 1, erf and tanh(+-inf) = +-1, every step on
/// finite numbers exact (so it neither over- nor underflows): inf * 0 is NaN, so silu(-inf) is NaN
/// as in every framework, and NaN goes through clamps. Any NaN is the canonical one, 0x7FC00000.
float activate(const ActivationParameters& parameters, float gate, float up,
               Format output = Format::f32);

/// The same of pairs side by side, faster: gate, up and out [n]; `gate` may be empty where the form
/// ignores it. Error: MOEREF_ISA names kernels that are not available.
void activate_all(const ActivationParameters& parameters, std::span<const float> gate,
                  std::span<const float> up, Format output, std::span<float> out);

/// How a value of `activate` was found, for tests and measurements.
enum class ActivationLevel : std::uint8_t {
  direct,          ///< exact product, zero, infinity, NaN, or far below the smallest number
  doubles,         ///< double arithmetic and its rounding test
  double_doubles,  ///< double-double arithmetic and its rounding test
  exact,           ///< balls of growing precision
};

struct TracedActivation {
  float value;
  ActivationLevel level;
};

TracedActivation activate_traced(const ActivationParameters& parameters, float gate, float up,
                                 Format output = Format::f32);

}  // namespace moeref
