#include "quant/quantizers/arithmetic.hpp"

// vllm-project/compressed-tensors@ac8e2ba82f4e, the eager path on CUDA unless `backend` says
// triton.

namespace moeref::quantizers {
namespace {

/// x rounded to the type of the weight.
float as(Format type, float x) {
  if (type == Format::bf16) return cast<Format::bf16>(x);
  return type == Format::f16 ? cast<Format::f16>(x) : x;
}

/// torch.finfo(type).tiny
float tiny(Format type) { return info(type).min_normal; }

QuantizePlan fp8_plan(const Options& options, Format input) {
  const Torch torch = torch_on(options);
  const std::string strategy = options["strategy"];
  const float eps = std::ldexp(1.0f, 1 - info(input).significand_bits);  // torch.finfo(T).eps
  QuantizePlan plan;
  plan.form = strategy == "channel" ? fp8_form(1, 0)
              : strategy == "block" ? fp8_form(128, 128)
                                    : fp8_form(0, 0);
  plan.nan_amax = NanAmax::propagated;
  plan.whole_blocks = false;
  plan.element = {.op = ElementOp::divide,
                  .quotient = input,
                  .adds_zero = true,
                  .clamp = ElementClamp::keep_nan,
                  .limit = kE4m3Max,
                  .policy = EncodePolicy::torch};
  plan.scale = [torch, input, eps](const GlobalScale&) {
    return [torch, input, eps](float amax) {
      const float s = as(input, torch.by_number(amax, kE4m3Max));
      const float stored = s == 0.0f ? eps : s;
      return f32_scale(stored, stored);
    };
  };
  return plan;
}

QuantizePlan nvfp4_plan(const Options& options, Format input) {
  const Torch torch = torch_on(options);
  const bool triton = options.is("backend", "triton");
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::tensor, GlobalScaleRule::divide);
  plan.form.codes_suffix = "_packed";
  plan.nan_amax = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide,
                  .clamp = ElementClamp::keep_nan,
                  .limit = kE2m1Max,
                  .codes = Format::e2m1,
                  .sign = Fp4Sign::negative};
  if (triton) {
    plan.element.quotient = Format::bf16;
    plan.element.sign = Fp4Sign::bit;
  }
  plan.global = [input](float amax) {
    const float inverse = as(input, 1.0f / torch_max(amax, tiny(input)));
    const float global = as(input, kE4m3Max * kE2m1Max * inverse);
    return std::isfinite(global) ? global : 1.0f;  // 0 of an infinite tensor stays
  };
  plan.scale = [torch, input](const GlobalScale& above) {
    return [torch, input, global = above.stored](float amax) {
      const float local = as(input, torch.by_number(amax, kE2m1Max)) * global;
      std::uint32_t code = torch_e4m3(torch_clamp(local, -kE4m3Max, kE4m3Max));
      if (decode_e4m3(code) == 0.0f) code = 0x20;  // 0.125, torch.finfo(float8_e4m3fn).eps
      return BlockScale{code, decode_e4m3(code) / global};
    };
  };
  return plan;
}

/// The floor of log2 of amax, rounded at 1.75 of its binade, as a byte.
std::uint32_t mx_byte(float amax, int emax) {
  const std::uint32_t rounded = (bits_of(amax) + 0x0020'0000u) & 0x7F80'0000u;
  if (amax != amax || rounded >= kF32Infinity) return 0xFF;
  const int byte = static_cast<int>(rounded >> 23) - emax;
  return static_cast<std::uint32_t>(std::max(byte, 0));
}

QuantizePlan mx_plan(Format codes, Format input) {
  const int emax = codes == Format::e2m1 ? 2 : 8;
  QuantizePlan plan;
  plan.form = mx_form(codes);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .op = ElementOp::divide,
      .quotient = input,
      .clamp = ElementClamp::keep_nan,
      .limit = codes == Format::e2m1 ? kE2m1Max : kE4m3Max,
      .codes = codes,
      .policy = codes == Format::e2m1 ? EncodePolicy::cuda_satfinite : EncodePolicy::torch,
      .sign = Fp4Sign::negative};
  if (codes == Format::e2m1) plan.form.codes_suffix = "_packed";
  plan.scale = [emax, input](const GlobalScale&) {
    return [emax, input](float amax) {
      const std::uint32_t byte = mx_byte(amax, emax);
      return BlockScale{byte, as(input, power_of_two(static_cast<int>(byte) - 127))};
    };
  };
  return plan;
}

QuantizePlan mxfp4_plan(const Options&, Format input) { return mx_plan(Format::e2m1, input); }
QuantizePlan mxfp8_plan(const Options&, Format input) { return mx_plan(Format::e4m3, input); }

}  // namespace

extern const Quantizer compressed_tensors_fp8{
    .name = "compressed_tensors_fp8",
    .family = "compressed-tensors",
    .summary = "E4M3 weights with a scale per tensor, channel or 128 x 128",
    .formula =
        "s = T(amax / 448), 0 -> eps of T, T = the weight's type; y = T(x / s) + 0; q = "
        "E4M3(clamp(y, 448)), not saturating",
    .specials =
        "zero: s = eps (bf16 2^-7, f16 2^-10, f32 2^-23), codes 0; -0: 0x00; infinity: s = "
        "infinity, finite elements +-0, infinite ones NaN; NaN: s and all codes NaN",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/helpers.py "
        "calculate_qparams; lifecycle/forward_helpers.py _quantize",
    .weights = true,
    .options = {{"strategy", {"channel", "tensor", "block"}, "block: 128 x 128, edges ragged"},
                kDeviceOption},
    .plan = fp8_plan,
};

extern const Quantizer compressed_tensors_nvfp4{
    .name = "compressed_tensors_nvfp4",
    .family = "compressed-tensors",
    .summary = "NVFP4 weights; the global scale divides",
    .formula =
        "g = 2688 * (1 / max(A, tiny)), both rounded to the weight's type, A = amax of the "
        "tensor; sf = E4M3(clamp(T(amax / 6) * g, 448)), 0 -> 0.125; y = x / (sf / g); q = "
        "E2M1(clamp(y, 6)), sign = y < 0; triton: y rounded to bf16, sign bit kept",
    .specials =
        "zero block: sf 0.125 (0x20), codes 0; zero tensor: g = 2688 / tiny, not finite -> "
        "1; infinity and NaN: g = 1",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/helpers.py "
        "calculate_qparams, generate_gparam; lifecycle/forward.py _quantize",
    .weights = true,
    .options = {kDeviceOption, {"backend", {"eager", "triton"}, "triton: y is rounded to bf16"}},
    .plan = nvfp4_plan,
};

extern const Quantizer compressed_tensors_mxfp4{
    .name = "compressed_tensors_mxfp4",
    .family = "compressed-tensors",
    .summary = "MXFP4 weights, amax rounded at 1.75 of its binade",
    .formula =
        "byte = field(bits(amax) + 0x200000) - 2, at least 0; y = T(x / 2^(byte - 127)); q = "
        "E2M1(clamp(y, 6)), sign = y < 0",
    .specials = "zero block: byte 0, codes 0; amax in [1.75 * 2^127, 2^128): byte 0xFD of infinity",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/"
        "mxfp4_utils.py generate_mx_scales",
    .weights = true,
    .plan = mxfp4_plan,
};

extern const Quantizer compressed_tensors_mxfp8{
    .name = "compressed_tensors_mxfp8",
    .family = "compressed-tensors",
    .summary = "MXFP8 weights, amax rounded at 1.75 of its binade",
    .formula =
        "byte = field(bits(amax) + 0x200000) - 8, at least 0; y = T(x / 2^(byte - 127)); q = "
        "E4M3(clamp(y, 448)), not saturating",
    .specials =
        "zero block: byte 0, codes +-0; a block with amax above 1.75 of its binade is never "
        "clipped, below 448 * 2^e it may be",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/"
        "mxfp4_utils.py generate_mx_scales",
    .weights = true,
    .plan = mxfp8_plan,
};

}  // namespace moeref::quantizers
