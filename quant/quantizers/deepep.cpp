#include "quant/quantizers/arithmetic.hpp"

namespace moeref::quantizers {
namespace {

constexpr float kLeastAmax = 1e-4f;

QuantizePlan dispatch_plan(const Options& options, Format) {
  const bool ue8m0 = options.is("scale", "ue8m0");
  QuantizePlan plan;
  plan.form = fp8_form(1, 128);
  plan.scale = [ue8m0](const GlobalScale&) {
    return [ue8m0](float amax) {
      const float a = gpu::max_num(kLeastAmax, amax);
      const float s = a * (1.0f / kE4m3Max);
      if (!ue8m0) return f32_scale(s, kE4m3Max / a);
      const int e = exponent_above(s);
      return f32_scale(power_bits(e), power_bits(-e));
    };
  };
  return plan;
}

QuantizePlan torch_plan(const Options& options, Format) {
  const bool compiled = options.is("torch", "compiled");
  QuantizePlan plan;
  plan.form = fp8_form(1, 128);
  plan.nan_amax = NanAmax::propagated;
  plan.whole_blocks = false;
  plan.element = {.policy = EncodePolicy::torch};
  plan.scale = [compiled](const GlobalScale&) {
    return [compiled](float amax) {
      const float a = torch_max(amax, kLeastAmax);
      const float m = compiled ? gpu::div_full(1.0f, a) * kE4m3Max : Torch::number_by(kE4m3Max, a);
      return f32_scale(a * (1.0f / kE4m3Max), m);
    };
  };
  return plan;
}

}  // namespace

extern const Quantizer deepep_fp8_group{
    .name = "deepep_fp8_group",
    .family = "DeepEP",
    .summary = "E4M3 per 128 columns of a token, in the low-latency dispatch",
    .formula =
        "a = max(1e-4, amax); s = a * RN(1/448); m = 448 / a; ue8m0 (round_scale): s = 2^e at "
        "or above, m = 2^-e; q = E4M3(x * m)",
    .specials =
        "zero: s of 1e-4 (2^-22), codes +-0; infinity with ue8m0: s = infinity, m = "
        "-infinity, finite elements 448 with the sign flipped, zeros NaN; NaN element: 0x7F, "
        "not in amax",
    .source = "DeepEP@dd758caf4518 csrc/kernels/legacy/utils.cuh calculate_fp8_scales",
    .activations = true,
    .options = {{"scale", {"f32", "ue8m0"}, "ue8m0: round_scale, powers of two"}},
    .plan = dispatch_plan,
};

extern const Quantizer deepep_torch_fp8_group{
    .name = "deepep_torch_fp8_group",
    .family = "DeepEP",
    .summary = "E4M3 per 128 columns of a token: the Python helper",
    .formula =
        "a = max(amax, 1e-4); s = a * RN(1/448); m = (1 / a) * 448; q = E4M3(x * m), not "
        "saturating; compiled: 1 / a is div.full",
    .specials =
        "zero: s of 1e-4, codes +-0; infinity: s = infinity, finite elements +-0, infinite "
        "ones NaN; NaN: the whole group NaN",
    .source = "DeepEP@dd758caf4518 deep_ep/utils/math.py per_token_cast_to_fp8",
    .activations = true,
    .options = {{"torch", {"compiled", "eager"}, "DeepEP compiles it (torch.compile)"}},
    .plan = torch_plan,
};

}  // namespace moeref::quantizers
