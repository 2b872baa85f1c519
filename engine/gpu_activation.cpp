#include "engine/gpu_activation.hpp"

#include "quant/gpu/functions.hpp"

namespace moeref::gpu {
namespace {

float clamped(float x, float limit) { return max_ftz(min_ftz(x, limit), -limit); }

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

}  // namespace moeref::gpu
