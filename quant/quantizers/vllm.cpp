#include <algorithm>

#include "quant/gpu/log2.hpp"
#include "quant/quantizers/arithmetic.hpp"

namespace moeref::quantizers {
namespace {

QuantizePlan group_plan(const Options& options, Format) {
  const bool ue8m0 = options.is("scale", "ue8m0");
  const bool by_log2 = options.is("kernel", "shared_memory");
  QuantizePlan plan;
  plan.form = fp8_form(1, columns(options, "group"));
  plan.element = {.op = ElementOp::divide, .clamp = ElementClamp::low_first, .limit = kE4m3Max};
  plan.scale = [ue8m0, by_log2, eps = options.number("eps")](const GlobalScale&) {
    return [ue8m0, by_log2, eps](float amax) {
      const float s = gpu::max_num(eps, amax) / kE4m3Max;
      if (!ue8m0) return f32_scale(s, s);
      const float v = gpu::max_num(s, 1e-10f);
      const int e = by_log2 && std::isfinite(v) ? gpu::ceil_log2(v) : exponent_above(v);
      return f32_scale(power_bits(e), power_bits(e));
    };
  };
  return plan;
}

QuantizePlan token_plan(const Options& options, Format) {
  const float bound = options.number("upper_bound");
  const bool bounded = bound != 0.0f;
  QuantizePlan plan;
  plan.form = fp8_form(1, 0);
  plan.element = {.op = ElementOp::divide, .clamp = ElementClamp::high_first, .limit = kE4m3Max};
  plan.scale = [bounded, bound](const GlobalScale&) {
    return [bounded, bound](float amax) {
      constexpr float kLeast = 1.0f / (kE4m3Max * 512.0f);
      const float most = bounded ? gpu::min_num(amax, bound) : amax;
      const float s = gpu::max_num(most / kE4m3Max, kLeast);
      return f32_scale(s, s);
    };
  };
  return plan;
}

QuantizePlan mxfp4_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = mx_form(Format::e2m1);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = {.codes = Format::e2m1};
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      const std::uint32_t rounded = (bits_of(gpu::canonical(amax)) + 0x0020'0000u) & 0x7F80'0000u;
      const int byte = std::clamp(static_cast<int>(rounded >> 23) - 2, 0, 254);
      const float s = gpu::from_bits(static_cast<std::uint32_t>(byte) << 23);
      return BlockScale{static_cast<std::uint32_t>(byte), s == 0.0f ? 0.0f : 1.0f / s};
    };
  };
  return plan;
}

QuantizePlan mxfp8_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = mx_form(Format::e4m3);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide, .policy = EncodePolicy::torch};
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      if (amax != amax) return BlockScale{0, amax};  // uint8(NaN)
      const float a = torch_max(amax, gpu::kSmallestNormal);
      const int byte = std::isinf(a) ? 254 : std::clamp(gpu::floor_log2(a) + 127, 0, 254);
      return BlockScale{static_cast<std::uint32_t>(byte), power_of_two(byte - 127)};
    };
  };
  return plan;
}

}  // namespace

extern const Quantizer vllm_fp8_group{
    .name = "vllm_fp8_group",
    .family = "vLLM",
    .summary = "E4M3, a scale per group of columns of a token; true divisions",
    .formula =
        "s = max(amax, eps) / 448; ue8m0: s = 2^ceil(log2(max(s, 1e-10))) by the bits; "
        "q = E4M3(clamp(x / s))",
    .specials =
        "zero: codes +-0, s = eps / 448 (ue8m0 at least 2^-33); infinity: s = infinity, finite "
        "elements +-0, infinite ones -448; NaN element: -448 (0xFE), not in amax",
    .source = "vllm@0f5257e24511 csrc/quantization/w8a8/fp8/per_token_group_quant.cu",
    .activations = true,
    .options = {{"group", {"N", "128"}, "columns of a group"},
                {"scale", {"f32", "ue8m0"}, "f32: as it is; ue8m0: rounded up to a power of two"},
                {"kernel",
                 {"registers", "shared_memory"},
                 "shared_memory takes ceil(log2f), registers (group 128, 16-bit input) the bits"},
                kEpsOption},
    .plan = group_plan,
};

extern const Quantizer vllm_fp8_token{
    .name = "vllm_fp8_token",
    .family = "vLLM",
    .summary = "E4M3, a scale per token, never below 1 / (448 * 512)",
    .formula = "s = max(min(amax, upper_bound) / 448, 1 / (448 * 512)); q = E4M3(clamp(x / s))",
    .specials =
        "zero: codes +-0, the least scale; infinity: s = infinity, finite elements +-0, "
        "infinite ones 448 (NaN before the clamp); NaN element: 448 (0x7E), not in amax",
    .source =
        "vllm@0f5257e24511 csrc/quantization/w8a8/fp8/common.cu "
        "dynamic_per_token_scaled_fp8_quant_kernel",
    .activations = true,
    .options = {{"upper_bound", {"X", "0"}, "scale_ub, the largest amax; 0 = none"}},
    .plan = token_plan,
};

extern const Quantizer vllm_mxfp4{
    .name = "vllm_mxfp4",
    .family = "vLLM",
    .summary = "MXFP4 of the experts' kernel: amax rounded at 1.75 of its binade",
    .formula =
        "r = bits(amax) + 0x200000, mantissa masked; byte = clamp(field(r) - 2, 0, 254); o = "
        "byte != 0 ? 1 / 2^(byte - 127) : 0; q = E2M1(x * o)",
    .specials =
        "zero and byte 0: codes +-0; infinity: byte 253; NaN element: +6, not in amax; all "
        "NaN: byte 0, codes 7",
    .source = "vllm@0f25e05008ce csrc/libtorch_stable/quantization/fp4/mxfp4_experts_quant.cu",
    .activations = true,
    .inputs = {Format::bf16, Format::f16},
    .plan = mxfp4_plan,
};

extern const Quantizer vllm_mxfp8{
    .name = "vllm_mxfp8",
    .family = "vLLM",
    .summary = "MXFP8 of the PyTorch fallback: elements stay below 2",
    .formula =
        "byte = clamp(floor(log2f(max(amax, 2^-126))) + 127, 0, 254); q = E4M3(x / 2^(byte - "
        "127))",
    .specials =
        "zero: byte 1, codes +-0; infinity: byte 254, infinite elements NaN; NaN: byte 0, "
        "codes NaN",
    .source = "vllm@00134422a11d vllm/model_executor/layers/quantization/utils/mxfp8_utils.py",
    .weights = true,
    .activations = true,
    .plan = mxfp8_plan,
};

}  // namespace moeref::quantizers
