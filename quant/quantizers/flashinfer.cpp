#include "quant/error.hpp"
#include "quant/quantizers/nvfp4_parts.hpp"

// FlashInfer's CUDA quantizers (flashinfer@fb28d7242b35
// csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh), stand-alone and inside the CUTLASS
// MoE. The reciprocal is explicit PTX, so it is approximate in a build without fast math too.

namespace moeref::quantizers {
namespace {

const OptionInfo kBuildOption{
    "math",
    {"fast", "precise"},
    "how the source was compiled; FlashInfer itself always uses -use_fast_math (fast)"};
const std::vector<Format> kHalfInputs{Format::bf16, Format::f16};

template <typename Math>
BlockScale nvfp4_scale(float amax, float g, bool exact) {
  const bool zero = Math::is_zero(amax);
  float s = 0.0f;
  if (!exact) {
    s = Math::mul(g, Math::mul(amax, rcp_a(kE2m1Max)));
  } else if (!zero) {
    s = Math::mul(amax, Math::mul(g, 1.0f / kE2m1Max));
  }
  const std::uint32_t code = e4m3(s);
  return {code, zero ? 0.0f : nvfp4_factor<Math>(decode_e4m3(code), g, exact)};
}

QuantizePlan nvfp4_plan(const Options& options, Format) {
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    const bool exact = options.is("quant_math", "exact");
    const bool inverted = options.is("global_scale", "inverted");
    QuantizePlan plan;
    plan.form = nvfp4_form(GlobalScaleOf::given,
                           inverted ? GlobalScaleRule::multiply : GlobalScaleRule::divide);
    plan.nan_amax = NanAmax::ignored_unless_all;
    plan.element = fp4_elements<Math>();
    const auto as_passed = [exact, inverted](float global) {
      if (!inverted) return global;
      return exact ? rcp_rn<Math>(global) : rcp_a(global);
    };
    if (options.is("four_over_six", "on")) {
      plan.block = [choose = FourOverSix<Math>(options), as_passed](
                       std::span<const float> block, float amax, const GlobalScale& global,
                       std::span<std::uint8_t> codes) {
        return choose(block, amax, as_passed(global.stored), 0.0f, codes);
      };
      return plan;
    }
    plan.scale = [exact, as_passed](const GlobalScale& global) {
      return [exact, g = as_passed(global.stored)](float amax) {
        return nvfp4_scale<Math>(amax, g, exact);
      };
    };
    return plan;
  });
}

/// The f16 and bf16 kernel: g from the amax of the row, then blocks as under a given scale.
QuantizePlan nvfp4_token_half_plan(const Options& options) {
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    const bool exact = options.is("quant_math", "exact");
    const bool four_over_six = options.is("four_over_six", "on");
    const float inverse = 1.0f / ((options.is("e4m3_max", "256") ? 256.0f : kE4m3Max) * kE2m1Max);
    // g, the scale that the row's elements are encoded with.
    const auto encode_scale = [=](float row_amax) {
      if (!exact) return rcp_a(Math::mul(row_amax, inverse));
      constexpr float kMax = std::numeric_limits<float>::max();
      if (Math::is_zero(row_amax)) return four_over_six ? 0.0f : kMax;
      const float g = Math::min(div_rn<Math>(rcp_rn<Math>(inverse), row_amax), kMax);
      return Math::is_zero(g) ? 1.0f : g;
    };
    QuantizePlan plan;
    plan.form = nvfp4_form(GlobalScaleOf::row, GlobalScaleRule::multiply);
    plan.nan_amax = NanAmax::ignored_unless_all;
    plan.nan_global = NanAmax::ignored;
    plan.element = fp4_elements<Math>();
    plan.global = [=](float row_amax) {
      if (!exact) return Math::mul(row_amax, inverse);
      const float g = encode_scale(row_amax);
      return Math::is_zero(g) ? 0.0f : rcp_rn<Math>(g);
    };
    if (four_over_six) {
      plan.block = [choose = FourOverSix<Math>(options), encode_scale](
                       std::span<const float> block, float amax, const GlobalScale& global,
                       std::span<std::uint8_t> codes) {
        return choose(block, amax, encode_scale(global.amax), global.amax, codes);
      };
    } else {
      plan.scale = [exact, encode_scale](const GlobalScale& global) {
        return [exact, g = encode_scale(global.amax)](float amax) {
          return nvfp4_scale<Math>(amax, g, exact);
        };
      };
    }
    return plan;
  });
}

/// The f32 kernel: elements are scaled before the block scale is rounded.
QuantizePlan nvfp4_token_f32_plan(const Options& options) {
  if (options.is("four_over_six", "on")) {
    fail("flashinfer_nvfp4_token", "four_over_six=on is not for f32 numbers; give bf16 or f16");
  }
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    const float inverse = 1.0f / ((options.is("e4m3_max", "256") ? 256.0f : kE4m3Max) * kE2m1Max);
    QuantizePlan plan;
    plan.form = nvfp4_form(GlobalScaleOf::row, GlobalScaleRule::multiply);
    plan.element = fp4_elements<Math>();
    plan.global = [inverse](float row_amax) { return Math::mul(row_amax, inverse); };
    plan.scale = [](const GlobalScale& global) {
      return [t = global.stored](float amax) {
        const float local = Math::is_zero(amax) ? 0.0f : Math::mul(kE2m1Max, rcp_a(amax));
        return BlockScale{e4m3(rcp_a(Math::mul(t, local))), local};
      };
    };
    return plan;
  });
}

QuantizePlan nvfp4_token_plan(const Options& options, Format input) {
  return input == Format::f32 ? nvfp4_token_f32_plan(options) : nvfp4_token_half_plan(options);
}

QuantizePlan mxfp4_plan(const Options& options, Format) {
  return with_math(options, [](auto math) {
    using Math = decltype(math);
    QuantizePlan plan;
    plan.form = mx_form(Format::e2m1);
    plan.nan_amax = NanAmax::ignored_unless_all;
    plan.element = fp4_elements<Math>();
    plan.scale = [](const GlobalScale&) {
      return [](float amax) {
        const float v = Math::mul(amax, rcp_a(kE2m1Max));
        const std::uint32_t byte = e8m0_up(v);
        if (Math::is_zero(v)) return BlockScale{byte, 0.0f};
        const int exponent = 127 - static_cast<int>(byte);
        return BlockScale{byte, byte == 0 ? 1.0f : Math::exp2(static_cast<float>(exponent))};
      };
    };
    return plan;
  });
}

QuantizePlan mxfp8_plan(const Options& options, Format) {
  return with_math(options, [](auto math) {
    using Math = decltype(math);
    QuantizePlan plan;
    plan.form = mx_form(Format::e4m3);
    plan.nan_amax = NanAmax::ignored_unless_all;
    plan.element = {.op = Math::kMultiply, .clamp = ElementClamp::high_first, .limit = kE4m3Max};
    plan.scale = [](const GlobalScale&) {
      return [](float amax) {
        const std::uint32_t byte = e8m0_up(Math::mul(amax, rcp_a(kE4m3Max)));
        const float d = decode(Format::e8m0, byte);
        return BlockScale{byte, Math::is_zero(d) ? 0.0f : rcp_a(d)};
      };
    };
    return plan;
  });
}

/// The helper of the tests on the host: another byte at the ends of the range, no clamp.
QuantizePlan mxfp8_host_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = mx_form(Format::e4m3);
  plan.block = [](std::span<const float> block, float, const GlobalScale&,
                  std::span<std::uint8_t> codes) {
    // std::max(|x|, amax): a NaN becomes amax, and whatever follows takes its place.
    float amax = 0.0f;
    for (const float x : block) amax = std::fabs(x) < amax ? amax : std::fabs(x);
    const std::uint32_t bits = bits_of(amax * (1.0f / kE4m3Max));
    const std::uint32_t exponent = bits >> 23 & 0xFFu;
    const std::uint32_t mantissa = bits & 0x007F'FFFFu;
    const bool up = mantissa != 0 && exponent != 0xFE && !(exponent == 0 && mantissa <= 0x40'0000u);
    const std::uint32_t byte = (exponent + (up ? 1u : 0u)) & 0xFFu;  // that of a NaN wraps to 0
    const float m = byte == 0 ? 1.0f : power_of_two(127 - static_cast<int>(byte));
    for (std::size_t i = 0; i < block.size(); ++i) {
      codes[i] = static_cast<std::uint8_t>(e4m3(block[i] * m));
    }
    return byte;
  };
  return plan;
}

QuantizePlan fp8_to_fp4_plan(const Options& options, Format) {
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    const bool e8m0 = options.is("scale", "ue8m0");
    QuantizePlan plan;
    plan.form = nvfp4_form(GlobalScaleOf::given, GlobalScaleRule::divide);
    if (e8m0) {
      plan.form.scales = Format::e8m0;
      plan.form.block_cols = 32;
    }
    plan.nan_amax = NanAmax::ignored_unless_all;
    plan.element = fp4_elements<Math>();
    plan.before = [](float x, float g) {
      return cast<Format::f16>(Math::mul(x, Math::mul(kE2m1Max, rcp_a(g))));
    };
    plan.scale = [e8m0](const GlobalScale& global) {
      return [e8m0, g = global.stored](float amax) {
        const float s = Math::mul(g, Math::mul(amax, rcp_a(kE2m1Max)));
        const std::uint32_t code = e8m0 ? e8m0_up(s) : e4m3(s);
        const float d = decode(e8m0 ? Format::e8m0 : Format::e4m3, code);
        return BlockScale{code, Math::is_zero(s) ? 0.0f : Math::mul(g, rcp_a(d))};
      };
    };
    return plan;
  });
}

QuantizePlan fp8_group_sm90_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = fp8_form(1, 128);
  plan.element = {.op = ElementOp::multiply_ftz};
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      // Compared in the type of the numbers, where subnormals are not zero.
      const float m = amax == 0.0f ? 1.0f : FastMath::div(kE4m3Max, amax);
      return f32_scale(FastMath::rcp(m), m);
    };
  };
  return plan;
}

QuantizePlan fp8_token_moe_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = fp8_form(1, 0);
  plan.element = {.op = ElementOp::multiply_ftz};
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      const float m = FastMath::is_zero(amax) ? 1.0f : FastMath::div(kE4m3Max, amax);
      return f32_scale(FastMath::rcp(m), m);
    };
  };
  return plan;
}

QuantizePlan fp8_static_moe_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = fp8_form(0, 0);
  plan.form.global = GlobalScaleOf::given;
  plan.form.global_rule = GlobalScaleRule::divide;
  plan.element = {.op = ElementOp::multiply_ftz};
  plan.scale = [](const GlobalScale& global) {
    return [g = global.stored](float) { return f32_scale(1.0f, g); };
  };
  return plan;
}

}  // namespace

extern const Quantizer flashinfer_fp8_static_moe{
    .name = "flashinfer_fp8_static_moe",
    .family = "FlashInfer",
    .summary = "E4M3 of the CUTLASS MoE's second GEMM under a calibrated factor g",
    .formula = "q = E4M3(g * x), .ftz, no clamp; g is 1 / a2",
    .specials = "zero: +-0; infinity: +-448; NaN: 0x7F",
    .source =
        "flashinfer@fb28d7242b35 csrc/fused_moe/cutlass_backend/"
        "cutlass_fused_moe_kernels.cuh doActivationKernel",
    .activations = true,
    .plan = fp8_static_moe_plan,
};

extern const Quantizer flashinfer_nvfp4{
    .name = "flashinfer_nvfp4",
    .family = "FlashInfer",
    .summary = "NVFP4 under a calibrated global scale g = 448 * 6 / amax",
    .formula =
        "fast: s = g * (amax * rcp.approx(6)); sf = E4M3(s); o = amax != 0 ? rcp.approx(sf * "
        "rcp.approx(g)) : 0; q = E2M1(x * o).  exact: s = amax * (g * RN(1/6)); o = min(1 / (sf * "
        "(1 / g)), FLT_MAX).  four_over_six: s6 = s (exact: RN(amax / 6) * g), s4 = s6 * 1.5, the "
        "one with the smaller sum of |q * sf / g - x| (mse: squares), 6 if equal",
    .specials =
        "zero: sf 0, codes 0x0 or 0x8 by sign; tiny (s <= 2^-10): sf 0, fast: every element +-6, "
        "zeros +6, exact: elements times FLT_MAX; infinity: sf 0x7E; NaN element: +6, not in amax; "
        "all NaN: sf 0x7F. math=fast: a bf16 subnormal amax counts as 0",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/"
        "quantization_utils.cuh cvt_warp_fp16_to_fp4",
    .activations = true,
    .inputs = kHalfInputs,
    .options = {kQuantMathOption,
                kBuildOption,
                {"global_scale", {"plain", "inverted"}, "inverted: 1 / g is passed"},
                kFourOverSixOption,
                kErrorOption,
                kErrorMathOption,
                {"elements_per_thread", {"16", "8"}, "of four_over_six: 8 adds two partial sums"}},
    .plan = nvfp4_plan,
};

extern const Quantizer flashinfer_nvfp4_token{
    .name = "flashinfer_nvfp4_token",
    .family = "FlashInfer",
    .summary = "NVFP4 under a scale per token; the stored token scale multiplies",
    .formula =
        "fast: t = A * RN(1 / 2688), A = amax of the row; g = rcp.approx(t).  exact: g = A != 0 ? "
        "min((1 / RN(1/2688)) / A, FLT_MAX) : FLT_MAX (four_over_six: 0), 0 -> 1; t = 1 / g.  Then "
        "blocks as flashinfer_nvfp4; four_over_six: error of ((q * sf) * A) / 2688 - x.  f32 "
        "input: l = 6 * rcp.approx(amax), 0 of a zero block; q = E2M1(x * l); sf = "
        "E4M3(rcp.approx(t * "
        "l))",
    .specials =
        "zero row: t = 0; fast: every sf NaN (0x7F), codes +-0; exact: sf 0; four_over_six: sf 0, "
        "codes 0; f32: sf 0x7E. Infinite row: fast t = infinity, every code 7; exact g = 1. NaN: "
        "not in A, +6; an all-NaN row counts as zero",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/quantization.cuh "
        "nvfp4QuantAndPerTokenScaleKernel, nvfp4QuantAndPerTokenScaleFP32Kernel",
    .activations = true,
    .options = {kQuantMathOption, kBuildOption, kE4m3MaxOption, kFourOverSixOption, kErrorOption,
                kErrorMathOption},
    .plan = nvfp4_token_plan,
};

extern const Quantizer flashinfer_mxfp4{
    .name = "flashinfer_mxfp4",
    .family = "FlashInfer",
    .summary = "MXFP4, scale rounded up",
    .formula =
        "v = amax * rcp.approx(6); byte = E8M0 up(v), saturating; o = v != 0 ? (byte == 0 ? "
        "1 : 2^(127 - byte)) : 0; q = E2M1(x * o)",
    .specials =
        "zero: byte 0, codes 0x0 or 0x8 by sign; infinity: byte 0xFE, o = 2^-127 (0 with "
        "math=fast); NaN element: +6, not in amax; all NaN: byte 0xFF",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/"
        "quantization_utils.cuh cvt_warp_fp16_to_fp4",
    .activations = true,
    .inputs = kHalfInputs,
    .options = {kBuildOption},
    .plan = mxfp4_plan,
};

extern const Quantizer flashinfer_mxfp8{
    .name = "flashinfer_mxfp8",
    .family = "FlashInfer",
    .summary = "MXFP8, scale rounded up",
    .formula =
        "byte = E8M0 up(amax * rcp.approx(448)), saturating; o = 2^(byte - 127) != 0 ? "
        "rcp.approx(2^(byte - 127)) : 0; q = E4M3(max(min(x * o, 448), -448))",
    .specials =
        "zero: byte 0; byte 0: math=fast codes +-0, precise o = infinity; infinity: byte "
        "0xFE, o = 0, finite elements +-0, infinite ones 448; NaN element: +448 (0x7E), not "
        "in amax; all NaN: byte 0xFF",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/"
        "quantization_utils.cuh cvt_warp_fp16_to_mxfp8",
    .activations = true,
    .inputs = kHalfInputs,
    .options = {kBuildOption},
    .plan = mxfp8_plan,
};

extern const Quantizer flashinfer_mxfp8_host{
    .name = "flashinfer_mxfp8_host",
    .family = "FlashInfer",
    .summary = "MXFP8 as FlashInfer's own tests do it on the host",
    .formula =
        "v = amax * RN(1/448); byte = field + 1 if any mantissa bit, not from 0xFE, from 0 "
        "above 2^-127; m = byte == 0 ? 1 : 2^(127 - byte); q = E4M3(x * m)",
    .specials =
        "zero: byte 0, codes +-0; infinity: byte 0xFF, m = 2^-128; NaN element: 0x7F, amax "
        "starts anew after it; NaN last: byte 0",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/thop/fp8Quantize.cpp "
        "mxfp8_quantize_host",
    .activations = true,
    .plan = mxfp8_host_plan,
};

extern const Quantizer flashinfer_fp8_to_fp4{
    .name = "flashinfer_fp8_to_fp4",
    .family = "FlashInfer",
    .summary = "E4M3 codes to NVFP4 or MXFP4, through f16",
    .formula =
        "h = f16(x * (6 * rcp.approx(g))); s = g * (amax(h) * rcp.approx(6)); sf = E4M3(s), "
        "ue8m0: E8M0 up(s); o = s != 0 ? g * rcp.approx(sf) : 0; q = E2M1(h * o)",
    .specials = "zero: sf 0, codes +-0; sf 0 of s != 0: o = infinity; NaN code: +6, not in amax",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/"
        "quantization_utils.cuh cvt_warp_fp8_to_fp4",
    .activations = true,
    .inputs = {Format::e4m3},
    .options = {{"scale", {"e4m3", "ue8m0"}, "e4m3: per 16; ue8m0: per 32"}, kBuildOption},
    .plan = fp8_to_fp4_plan,
};

extern const Quantizer flashinfer_fp8_group_sm90{
    .name = "flashinfer_fp8_group_sm90",
    .family = "FlashInfer",
    .summary = "E4M3 per 128 columns of a token, inside the SM90 block-scale GEMM",
    .formula =
        "m = amax != 0 ? 448 * rcp.approx(amax) : 1; s = rcp.approx(m); q = E4M3(x * m), "
        "all .ftz",
    .specials =
        "zero: s = 1, codes +-0; bf16 subnormal amax: m = infinity, s = 0, codes 0x7F; "
        "infinity: m = 0, s = infinity, finite elements +-0, infinite ones NaN; NaN element: "
        "0x7F, not in amax",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/cutlass_kernels/"
        "fp8_blockscale_gemm/fp8_blockscale_gemm_kernel.cuh scale_1x128_kernel",
    .activations = true,
    .inputs = kHalfInputs,
    .plan = fp8_group_sm90_plan,
};

extern const Quantizer flashinfer_fp8_token_moe{
    .name = "flashinfer_fp8_token_moe",
    .family = "FlashInfer",
    .summary = "E4M3 per token of the CUTLASS MoE's second GEMM (residual factor 1)",
    .formula =
        "m = amax > 0 ? 448 * rcp.approx(amax) : 1; s = rcp.approx(m); q = E4M3(m * x), all "
        ".ftz",
    .specials = "zero: s = 1, codes +-0; infinity: m = 0; NaN element: 0x7F, not in amax",
    .source =
        "flashinfer@fb28d7242b35 csrc/fused_moe/cutlass_backend/"
        "cutlass_fused_moe_kernels.cuh doActivationKernel",
    .activations = true,
    .plan = fp8_token_moe_plan,
};

}  // namespace moeref::quantizers
