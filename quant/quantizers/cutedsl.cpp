#include "quant/quantizers/nvfp4_parts.hpp"

// FlashInfer's CuTe-DSL quantizers (flashinfer@fb28d7242b35
// flashinfer/quantization/quantization_cute_dsl_utils.py): the recipes of the CUDA kernels with
// other corners. Nothing flushes but the approximate reciprocal.

namespace moeref::quantizers {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
const std::vector<Format> kHalfInputs{Format::bf16, Format::f16};

/// Fast: no output scale where the stored scale is 0; exact: where amax is.
BlockScale nvfp4_scale(float amax, float g, bool exact) {
  if (!exact) {
    const std::uint32_t code = e4m3(PreciseMath::mul(g, PreciseMath::mul(amax, rcp_a(kE2m1Max))));
    const float d = decode_e4m3(code);
    return {code, d == 0.0f ? 0.0f : nvfp4_factor<PreciseMath>(d, g, false)};
  }
  const float s =
      amax == 0.0f ? 0.0f : PreciseMath::mul(amax, PreciseMath::mul(g, 1.0f / kE2m1Max));
  const std::uint32_t code = e4m3(s);
  return {code, amax == 0.0f ? 0.0f : nvfp4_factor<PreciseMath>(decode_e4m3(code), g, true)};
}

QuantizePlan nvfp4_plan(const Options& options, Format) {
  const bool exact = options.is("quant_math", "exact");
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::given, GlobalScaleRule::divide);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = fp4_elements<PreciseMath>();
  if (options.is("four_over_six", "on")) {
    plan.block = [choose = FourOverSix<PreciseMath>(options)](std::span<const float> block,
                                                              float amax, const GlobalScale& global,
                                                              std::span<std::uint8_t> codes) {
      return choose(block, amax, global.stored, 0.0f, codes);
    };
    return plan;
  }
  plan.scale = [exact](const GlobalScale& global) {
    return [exact, g = global.stored](float amax) { return nvfp4_scale(amax, g, exact); };
  };
  return plan;
}

QuantizePlan nvfp4_token_plan(const Options& options, Format) {
  const bool exact = options.is("quant_math", "exact");
  const bool four_over_six = options.is("four_over_six", "on");
  const float inverse = 1.0f / ((options.is("e4m3_max", "256") ? 256.0f : kE4m3Max) * kE2m1Max);
  const auto encode_scale = [=](float row_amax) {
    if (row_amax == 0.0f) return four_over_six ? 0.0f : kMax;
    if (!exact) return rcp_a(PreciseMath::mul(row_amax, inverse));
    const float g = PreciseMath::min(PreciseMath::div(1.0f / inverse, row_amax), kMax);
    return g == 0.0f ? 1.0f : g;
  };
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::row, GlobalScaleRule::multiply);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = fp4_elements<PreciseMath>();
  plan.global = [=](float row_amax) {
    if (row_amax == 0.0f) return 0.0f;
    return exact ? PreciseMath::rcp(encode_scale(row_amax)) : PreciseMath::mul(row_amax, inverse);
  };
  if (four_over_six) {
    plan.block = [choose = FourOverSix<PreciseMath>(options), encode_scale](
                     std::span<const float> block, float amax, const GlobalScale& global,
                     std::span<std::uint8_t> codes) {
      return choose(block, amax, encode_scale(global.amax), global.amax, codes);
    };
  } else {
    plan.scale = [exact, encode_scale](const GlobalScale& global) {
      return [exact, g = encode_scale(global.amax)](float amax) {
        return nvfp4_scale(amax, g, exact);
      };
    };
  }
  return plan;
}

/// The second quantization of the fused MoE, from f32: no global reciprocal.
QuantizePlan nvfp4_moe_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::given, GlobalScaleRule::divide);
  plan.element = fp4_elements<PreciseMath>();
  plan.scale = [](const GlobalScale& global) {
    return [g = global.stored](float amax) {
      const std::uint32_t code = e4m3(PreciseMath::mul(PreciseMath::mul(amax, rcp_a(kE2m1Max)), g));
      const float factor = PreciseMath::mul(g, rcp_a(decode_e4m3(code)));
      return BlockScale{code, PreciseMath::min(factor, kMax)};
    };
  };
  return plan;
}

QuantizePlan fp8_to_fp4_plan(const Options& options, Format) {
  const bool exact = options.is("quant_math", "exact");
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::given, GlobalScaleRule::divide);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = fp4_elements<PreciseMath>();
  plan.before = [exact](float x, float g) {
    const float inverse = exact ? PreciseMath::rcp(g) : rcp_a(g);
    return cast<Format::f16>(PreciseMath::mul(x, PreciseMath::mul(kE2m1Max, inverse)));
  };
  plan.scale = [exact](const GlobalScale& global) {
    return [exact, g = global.stored](float amax) { return nvfp4_scale(amax, g, exact); };
  };
  return plan;
}

/// 2^(byte - 127) at or above v; at most byte 254, also of NaN.
std::uint32_t byte_above(float v) {
  if (v <= 0.0f) return 0;
  const std::uint32_t exponent = bits_of(v) >> 23 & 0xFFu;
  const std::uint32_t mantissa = bits_of(v) & 0x007F'FFFFu;
  if (exponent == 0 && mantissa <= 0x0040'0000u) return 0;
  return std::min(exponent + (mantissa != 0 ? 1u : 0u), 254u);
}
/// (254 - byte) << 23: 0 for byte 254, and for byte 0 by choice.
float inverse_of(std::uint32_t byte) {
  return byte == 0 ? 0.0f : gpu::from_bits((254u - byte) << 23);
}

QuantizePlan mx_plan(Format codes) {
  const float unit = codes == Format::e2m1 ? rcp_a(kE2m1Max) : 1.0f / kE4m3Max;
  QuantizePlan plan;
  plan.form = mx_form(codes);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = codes == Format::e2m1
                     ? fp4_elements<PreciseMath>()
                     : ElementRule{.clamp = ElementClamp::high_first, .limit = kE4m3Max};
  plan.scale = [unit](const GlobalScale&) {
    return [unit](float amax) {
      const std::uint32_t byte = byte_above(PreciseMath::mul(amax, unit));
      return BlockScale{byte, inverse_of(byte)};
    };
  };
  return plan;
}

constexpr std::string_view kMxSpecials =
    "zero and byte 0: codes +-0; infinity: byte 0xFE, factor 0: finite elements +-0, infinite ones "
    "NaN and so the largest code; NaN element: the largest code, not in amax; all NaN: byte 0xFE";

}  // namespace

extern const Quantizer cutedsl_nvfp4{
    .name = "cutedsl_nvfp4",
    .family = "CuTe-DSL",
    .summary = "NVFP4 under a calibrated global scale g = 448 * 6 / amax",
    .formula =
        "fast: sf = E4M3(g * (amax * rcp.approx(6))); o = sf != 0 ? rcp.approx(sf * rcp.approx(g)) "
        ": 0; q = E2M1(x * o).  exact: sf = E4M3(amax * (g * RN(1/6))); o = amax != 0 ? min(1 / "
        "(sf * (1 / g)), FLT_MAX) : 0.  four_over_six: as flashinfer_nvfp4",
    .specials =
        "zero and (fast) tiny: sf 0, codes +-0; infinity: sf 0x7E; NaN element: +6, not in amax; "
        "all NaN: sf 0x7F",
    .source =
        "flashinfer@fb28d7242b35 flashinfer/quantization/quantization_cute_dsl_utils.py "
        "process_nvfp4_block_half, process_nvfp4_block_bfloat",
    .activations = true,
    .inputs = kHalfInputs,
    .options = {kQuantMathOption, kFourOverSixOption, kErrorOption, kErrorMathOption},
    .plan = nvfp4_plan,
};

extern const Quantizer cutedsl_nvfp4_token{
    .name = "cutedsl_nvfp4_token",
    .family = "CuTe-DSL",
    .summary = "NVFP4 under a scale per token; the stored token scale multiplies",
    .formula =
        "fast: t = A * RN(1/2688), g = rcp.approx(t); exact: g = min((1 / RN(1/2688)) / A, "
        "FLT_MAX), 0 -> 1, t = 1 / g; A = amax of the row; then blocks as cutedsl_nvfp4",
    .specials =
        "zero row: t = 0, g = FLT_MAX, sf 0, codes +-0 (four_over_six: codes 0); NaN: not in "
        "A, +6",
    .source =
        "flashinfer@fb28d7242b35 flashinfer/quantization/kernels/nvfp4_quantize.py "
        "_row_scales",
    .activations = true,
    .inputs = kHalfInputs,
    .options = {kQuantMathOption, kE4m3MaxOption, kFourOverSixOption, kErrorOption,
                kErrorMathOption},
    .plan = nvfp4_token_plan,
};

extern const Quantizer cutedsl_nvfp4_moe{
    .name = "cutedsl_nvfp4_moe",
    .family = "CuTe-DSL",
    .summary = "NVFP4 of the activation inside the fused MoE, straight from f32",
    .formula =
        "sf = E4M3((amax * rcp.approx(6)) * g); m = min(g * rcp.approx(sf), FLT_MAX); q = "
        "E2M1(x * m)",
    .specials =
        "zero: sf 0, m = FLT_MAX, codes +-0; infinity: sf 0x7E; NaN element: +6, not in amax",
    .source =
        "flashinfer@fb28d7242b35 flashinfer/fused_moe/cute_dsl/blackwell/"
        "blockscaled_contiguous_gather_grouped_gemm_swiglu_fusion.py",
    .activations = true,
    .plan = nvfp4_moe_plan,
};

extern const Quantizer cutedsl_fp8_to_fp4{
    .name = "cutedsl_fp8_to_fp4",
    .family = "CuTe-DSL",
    .summary = "E4M3 codes to NVFP4, through f16",
    .formula = "h = f16(x * (6 * rcp.approx(g))), exact: 6 * (1 / g); then blocks as cutedsl_nvfp4",
    .specials = "as cutedsl_nvfp4; NaN code: +6, not in amax",
    .source =
        "flashinfer@fb28d7242b35 flashinfer/quantization/quantization_cute_dsl_utils.py "
        "process_nvfp4_block_fp8",
    .activations = true,
    .inputs = {Format::e4m3},
    .options = {kQuantMathOption},
    .plan = fp8_to_fp4_plan,
};

extern const Quantizer cutedsl_mxfp4{
    .name = "cutedsl_mxfp4",
    .family = "CuTe-DSL",
    .summary = "MXFP4, scale rounded up",
    .formula =
        "byte = exponent at or above amax * rcp.approx(6), at most 254; m = bits((254 - byte) "
        "<< 23), 0 of byte 0; q = E2M1(x * m)",
    .specials = kMxSpecials,
    .source =
        "flashinfer@fb28d7242b35 flashinfer/quantization/quantization_cute_dsl_utils.py "
        "process_mxfp4_block_half, float_to_ue8m0_fast, ue8m0_to_inv_scale_fast",
    .activations = true,
    .inputs = kHalfInputs,
    .plan = [](const Options&, Format) { return mx_plan(Format::e2m1); },
};

extern const Quantizer cutedsl_mxfp8{
    .name = "cutedsl_mxfp8",
    .family = "CuTe-DSL",
    .summary = "MXFP8, scale rounded up",
    .formula =
        "byte = exponent at or above amax * RN(1/448), at most 254; m = bits((254 - byte) << "
        "23), 0 of byte 0; q = E4M3(max(min(x * m, 448), -448))",
    .specials = kMxSpecials,
    .source =
        "flashinfer@fb28d7242b35 flashinfer/quantization/quantization_cute_dsl_utils.py "
        "half2_to_fp8x2_scaled, float_to_ue8m0_fast, ue8m0_to_inv_scale_fast",
    .activations = true,
    .inputs = kHalfInputs,
    .plan = [](const Options&, Format) { return mx_plan(Format::e4m3); },
};

}  // namespace moeref::quantizers
