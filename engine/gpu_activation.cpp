#include "engine/gpu_activation.hpp"

#include "quant/gpu/functions.hpp"

namespace moeref::gpu {
namespace {

float clamped(float x, float limit) { return max_ftz(min_ftz(x, limit), -limit); }

/// min and clamp that let NaN through.
float capped(float x, float limit) { return x != x ? nan() : min_num(x, limit); }
float clamped_or_nan(float x, float limit) {
  return x != x ? nan() : min_num(max_num(x, -limit), limit);
}

/// tanh as 2 sigmoid(2 z) - 1, z = x / scale.
float tanh_of(float x, float scale) {
  const float inverse = rcp_approx_ftz(scale);
  const float twice = fma_ftz(inverse, x, mul_ftz(inverse, x));
  return fma_ftz(sigmoid_fast(twice), 2.0f, -1.0f);
}

}  // namespace

float flashinfer_moe_activation(MoeActivation kind, float gate, float up,
                                const ActivationParameters& parameters) {
  const float limit = parameters.limit;
  switch (kind) {
    case MoeActivation::swiglu:
      return mul_ftz(silu_fast(gate), up);
    case MoeActivation::swiglu_bias: {
      const float g = min_ftz(gate, limit);
      const float s = sigmoid_fast(mul_ftz(parameters.alpha, g));
      return mul_ftz(mul_ftz(g, s), add_ftz(parameters.beta, clamped(up, limit)));
    }
    case MoeActivation::swiglu_step:
      return mul_ftz(min_ftz(silu_fast(gate), limit), clamped(up, limit));
    case MoeActivation::relu2: {
      const float r = gate != gate ? nan() : max_ftz(gate, 0.0f);
      return mul_ftz(r, r);
    }
    case MoeActivation::situ: {
      const float v =
          mul_ftz(parameters.alpha, mul_ftz(tanh_of(gate, parameters.alpha), sigmoid_fast(gate)));
      return mul_ftz(v, mul_ftz(parameters.beta, tanh_of(up, parameters.beta)));
    }
  }
  return nan();
}

float silu_and_mul_fast(float gate, float up) { return mul_ftz(silu_fast(gate), up); }

float silu_and_mul_precise(float gate, float up) { return mul(silu_precise(gate), up); }

float silu_triton(float gate) {
  const float d = canonical(ex2_approx(mul(0.0f - gate, kLog2E)) + 1.0f);
  return mul(div_full(1.0f, d), gate);
}

float silu_clamp_after_compiled(float gate, float up, float limit) {
  const float s = capped(div_full(gate, one_plus_exp_minus(gate)), limit);
  return mul(s, clamped_or_nan(up, limit));
}

float gptoss_compiled(float gate, float up, const ActivationParameters& parameters) {
  const float g = capped(gate, parameters.limit);
  const float exponent = mul(mul(g, -parameters.alpha), kLog2E);
  const float sigmoid = div_full(1.0f, canonical(ex2_approx(exponent) + 1.0f));
  const float linear = canonical(clamped_or_nan(up, parameters.limit) + parameters.beta);
  return mul(mul(g, sigmoid), linear);
}

float relu2_plain(float x) {
  const float r = x != x ? nan() : max_num(x, 0.0f);
  return mul(r, r);
}

}  // namespace moeref::gpu
