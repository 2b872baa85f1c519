#include "quant/quantizers/arithmetic.hpp"

// vllm-project/compressed-tensors@ac8e2ba82f4e, the eager path on CUDA unless `backend` says
// triton, which the release does not use (its kernels are registered as disabled).

namespace moeref::quantizers {
namespace {

/// x rounded to the type of the weight.
float as(Format type, float x) {
  if (type == Format::bf16) return cast<Format::bf16>(x);
  return type == Format::f16 ? cast<Format::f16>(x) : x;
}

/// The normal flow initialises zero points of +0, which are added to every quotient. Where codes
/// are E2M1 that does not show, the sign being that of y < 0.
const OptionInfo kZeroPointOption{
    "zero_point", {"zero", "none"}, "none: weights without a weight_zero_point, where -0 stays"};
bool adds_zero(const Options& options) { return options.is("zero_point", "zero"); }

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
                  .adds_zero = adds_zero(options),
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
  plan.nan_global = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide,
                  .adds_zero = true,
                  .clamp = ElementClamp::keep_nan,
                  .limit = kE2m1Max,
                  .codes = Format::e2m1,
                  .sign = Fp4Sign::negative,
                  .nan = Fp4Nan::zero};
  plan.global = [input](float amax) {
    const float inverse = as(input, 1.0f / torch_max(amax, tiny(input)));
    const float global = as(input, kE4m3Max * kE2m1Max * inverse);
    return std::isfinite(global) ? global : 1.0f;  // 0 of an infinite tensor stays
  };
  const auto scale_code = [torch, input](float amax, float global) -> std::uint32_t {
    const float local = gpu::canonical(as(input, torch.by_number(amax, kE2m1Max)) * global);
    const std::uint32_t code = torch_e4m3(torch_clamp(local, -kE4m3Max, kE4m3Max));
    // 0.125, torch.finfo(float8_e4m3fn).eps
    return decode_e4m3(code) == 0.0f ? 0x20u : code;
  };
  if (triton) {
    // The zero point is added and the quotient clamped before it is rounded to bf16.
    plan.block = [scale_code](std::span<const float> block, float amax, const GlobalScale& above,
                              std::span<std::uint8_t> codes) {
      const std::uint32_t code = scale_code(amax, above.stored);
      const float s = TritonMath::div(decode_e4m3(code), above.stored);
      for (std::size_t i = 0; i < block.size(); ++i) {
        const float y = TritonMath::div(block[i], s) + 0.0f;
        const float clamped = TritonMath::min(TritonMath::max(y, -kE2m1Max), kE2m1Max);
        codes[i] = static_cast<std::uint8_t>(
            encode(Format::e2m1, cast<Format::bf16>(clamped), EncodePolicy::cuda_satfinite));
      }
      return code;
    };
    return plan;
  }
  plan.scale = [scale_code](const GlobalScale& above) {
    return [scale_code, global = above.stored](float amax) {
      const std::uint32_t code = scale_code(amax, global);
      return BlockScale{code, decode_e4m3(code) / global};
    };
  };
  return plan;
}

/// amax as a power of two: a quarter of its binade is added to its own bits, and the mantissa goes.
/// Infinity from 1.75 of the last binade on; 0 below 0.75 of the first; CUDA's NaN (0x7FFF...)
/// rolls over to -0.
float mx_power(float amax, Format input) {
  if (amax != amax) return -0.0f;
  if (input == Format::f16) {
    if (amax >= 57344.0f) return std::numeric_limits<float>::infinity();
    if (amax < 0x1p-14f) return amax < 0x1.8p-15f ? 0.0f : 0x1p-14f;
  }
  return gpu::from_bits((bits_of(amax) + 0x0020'0000u) & 0xFF80'0000u);
}

/// The scale as stored and as it divides.
BlockScale mx_scale(float amax, int emax, Format input) {
  const float power = mx_power(amax, input);
  // Byte 255 is taken for infinity and written as uint8(127 + int32(infinity)), CUDA's 0x7E.
  if (std::isinf(power)) return {0x7E, power};
  const int byte = std::max(static_cast<int>(bits_of(power) >> 23 & 0xFFu) - emax, 0);
  const float scale = as(input, power_of_two(byte - 127));
  if (scale == 0.0f) return {127, 1.0f};  // f16 has no 2^-127; 0 becomes 1
  return {static_cast<std::uint32_t>(byte), scale};
}

QuantizePlan mx_plan(Format codes, Format input, bool with_zero) {
  const int emax = codes == Format::e2m1 ? 2 : 8;
  QuantizePlan plan;
  plan.form = mx_form(codes);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .op = ElementOp::divide,
      .quotient = input,
      .adds_zero = with_zero,
      .clamp = ElementClamp::keep_nan,
      .limit = codes == Format::e2m1 ? kE2m1Max : kE4m3Max,
      .codes = codes,
      .policy = codes == Format::e2m1 ? EncodePolicy::cuda_satfinite : EncodePolicy::torch,
      .sign = Fp4Sign::negative,
      .nan = Fp4Nan::zero};
  if (codes == Format::e2m1) plan.form.codes_suffix = "_packed";
  plan.scale = [emax, input](const GlobalScale&) {
    return [emax, input](float amax) { return mx_scale(amax, emax, input); };
  };
  return plan;
}

QuantizePlan mxfp4_plan(const Options&, Format input) { return mx_plan(Format::e2m1, input, true); }
QuantizePlan mxfp8_plan(const Options& options, Format input) {
  return mx_plan(Format::e4m3, input, adds_zero(options));
}

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
                kDeviceOption,
                kZeroPointOption},
    .plan = fp8_plan,
};

extern const Quantizer compressed_tensors_nvfp4{
    .name = "compressed_tensors_nvfp4",
    .family = "compressed-tensors",
    .summary = "NVFP4 weights; the global scale divides",
    .formula =
        "g = 2688 * (1 / max(A, tiny)), both rounded to the weight's type, A = amax of the "
        "tensor; sf = E4M3(clamp(T(amax / 6) * g, 448)), 0 -> 0.125; y = x / (sf / g); q = "
        "E2M1(clamp(y, 6)), sign = y < 0; triton: `/` is div.full, y rounded to bf16, sign bit",
    .specials =
        "zero block, also tiny: sf 0.125 (0x20); -0: 0x0; zero tensor: g = 2688 / tiny, not "
        "finite -> 1 (f16: below 0.041 too); infinity: g = 0, its block sf 0x7F, the others' codes "
        "0; NaN: g = 1, its block sf 0x7F, codes 0 (triton: 0xF)",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/helpers.py "
        "calculate_qparams, generate_gparam; lifecycle/forward.py _quantize",
    .weights = true,
    .options = {kDeviceOption,
                {"backend",
                 {"eager", "triton"},
                 "triton: y is rounded to bf16; switched off in every release"}},
    .plan = nvfp4_plan,
};

extern const Quantizer compressed_tensors_mxfp4{
    .name = "compressed_tensors_mxfp4",
    .family = "compressed-tensors",
    .summary = "MXFP4 weights, amax rounded at 1.75 of its binade",
    .formula =
        "byte = field(amax + 1/4 of its binade, in the bits of T) - 2, at least 0; y = T(x / "
        "2^(byte - 127)) + 0; q = E2M1(clamp(y, 6)), sign = y < 0",
    .specials =
        "zero block: byte 0, f16 127 (2^-127 is 0 there, replaced by 1); amax from 1.75 of the "
        "last binade (f16: 57344), infinity: divided by infinity, byte 0x7E (inferred); NaN: as "
        "zero if 0x7FFF, code 0",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/"
        "mxfp_utils.py generate_mx_scales",
    .weights = true,
    .plan = mxfp4_plan,
};

extern const Quantizer compressed_tensors_mxfp8{
    .name = "compressed_tensors_mxfp8",
    .family = "compressed-tensors",
    .summary = "MXFP8 weights, amax rounded at 1.75 of its binade",
    .formula =
        "byte = field(amax + 1/4 of its binade, in the bits of T) - 8, at least 0; y = T(x / "
        "2^(byte - 127)) + 0; q = E4M3(clamp(y, 448)), not saturating",
    .specials =
        "zero block: byte 0, f16 127 (2^-127 is 0 there, replaced by 1); -0: 0x00; amax from 1.75 "
        "of the last binade (f16: 57344), infinity: divided by infinity, byte 0x7E (inferred); "
        "NaN: as zero if 0x7FFF, 0x7F. Nothing is clipped",
    .source =
        "compressed-tensors@ac8e2ba82f4e src/compressed_tensors/quantization/utils/"
        "mxfp_utils.py generate_mx_scales",
    .weights = true,
    .options = {kZeroPointOption},
    .plan = mxfp8_plan,
};

}  // namespace moeref::quantizers
