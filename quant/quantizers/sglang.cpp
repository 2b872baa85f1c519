#include <algorithm>

#include "quant/error.hpp"
#include "quant/gpu/log2.hpp"
#include "quant/quantizers/arithmetic.hpp"

// FP8 activation quantizers of sgl-kernel and SGLang's jit kernels. `fast` is sgl-kernel's SM90
// library (H100, H200), `precise` its SM100 library.

namespace moeref::quantizers {
namespace {

/// clamp(x * (1 / s)); NaN becomes 448.
template <typename Math>
ElementRule clamped_product() {
  return {.op = Math::kMultiply, .clamp = ElementClamp::high_first, .limit = kE4m3Max};
}

QuantizePlan static_plan(const Options& options, Format) {
  const auto plan_for = [](auto math, ElementClamp clamp) {
    using Math = decltype(math);
    QuantizePlan plan;
    plan.form = fp8_form(0, 0);
    plan.form.global = GlobalScaleOf::given;
    plan.element = clamped_product<Math>();
    plan.element.clamp = clamp;
    plan.scale = [](const GlobalScale& global) {
      return [s = global.stored](float) { return f32_scale(s, Math::rcp(s)); };
    };
    return plan;
  };
  if (options.is("math", "triton")) return plan_for(TritonMath{}, ElementClamp::low_first);
  if (options.is("math", "fast")) return plan_for(FastMath{}, ElementClamp::high_first);
  return plan_for(PreciseMath{}, ElementClamp::high_first);
}

/// Of a whole tensor or of each row: s = amax / 448, factor 1 / s. A zero amax gives the factor
/// infinity, so 0 * infinity = NaN -> 448, or 0 where the kernel looks for it.
template <typename Math>
QuantizePlan dynamic_plan(std::int64_t rows, bool zero_factor) {
  QuantizePlan plan;
  plan.form = fp8_form(rows, 0);
  plan.element = clamped_product<Math>();
  plan.scale = [zero_factor](const GlobalScale&) {
    return [zero_factor](float amax) {
      const float s = Math::div(amax, kE4m3Max);
      return f32_scale(s, zero_factor && Math::is_zero(s) ? 0.0f : Math::rcp(s));
    };
  };
  return plan;
}

QuantizePlan tensor_plan(const Options& options, Format) {
  return with_math(options, [](auto math) { return dynamic_plan<decltype(math)>(0, false); });
}

QuantizePlan token_plan(const Options& options, Format) {
  const bool zero_factor = options.is("kernel", "warp");
  return with_math(options,
                   [&](auto math) { return dynamic_plan<decltype(math)>(1, zero_factor); });
}

template <typename Math>
BlockScale group_scale(const std::string& version, bool ue8m0, bool rounds_scale_only, float a) {
  if (version == "v0") {
    const float s = Math::div(a, kE4m3Max);
    return f32_scale(s, Math::kMultiply == ElementOp::multiply_ftz ? Math::rcp(s) : s);
  }
  const float s = Math::mul(a, 1.0f / kE4m3Max);
  const float m = version == "v3" ? Math::mul(kE4m3Max, Math::rcp(a)) : Math::div(kE4m3Max, a);
  if (!ue8m0) return f32_scale(s, m);
  const int e = exponent_above(s);
  return f32_scale(power_bits(e), rounds_scale_only ? m : power_bits(-e));
}

QuantizePlan group_plan(const Options& options, Format input) {
  const std::string version = options["version"];
  const std::string scale = options["scale"];
  const bool ue8m0 = scale != "f32";
  const bool rounds_scale_only = scale == "ue8m0_rowmajor";
  if (ue8m0 && version == "v0") {
    fail("sglang_fp8_group", "version=v0 has f32 scales only; choose v1, v2 or v3");
  }
  if (rounds_scale_only && version != "v2") {
    fail("sglang_fp8_group", "scale=ue8m0_rowmajor is what version=v2 does; choose it");
  }
  const float eps = options.number("eps");
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    QuantizePlan plan;
    plan.form = fp8_form(1, columns(options, "group"));
    plan.element = {.op = Math::kMultiply};
    if (version == "v0" && Math::kMultiply == ElementOp::multiply) {
      plan.element.op = ElementOp::divide;
    }
    if (version == "v0" || version == "v2") {
      plan.element.clamp = ElementClamp::low_first;
      plan.element.limit = kE4m3Max;
    }
    const bool in_16_bits = version == "v3" && ue8m0 && input != Format::f32;
    if (in_16_bits) {
      // __hmul2, which does not flush.
      plan.element.op = ElementOp::multiply;
      plan.element.quotient = input;
    }
    plan.scale = [=](const GlobalScale&) {
      return [=](float amax) {
        BlockScale result =
            group_scale<Math>(version, ue8m0, rounds_scale_only, Math::max(eps, amax));
        if (in_16_bits && input == Format::f16) result.factor = cast<Format::f16>(result.factor);
        return result;
      };
    };
    return plan;
  });
}

/// tl.exp2(tl.ceil(tl.log2(s))).
float power_above(float s) {
  if (!std::isfinite(s) || s == 0.0f) return s;
  return gpu::ex2_approx_ftz(static_cast<float>(gpu::ceil_log2(s)));
}

QuantizePlan triton_group_plan(const Options& options, Format) {
  const bool divides = options.is("form", "div");
  const bool ue8m0 = options.is("scale", "ue8m0");
  QuantizePlan plan;
  plan.form = fp8_form(1, columns(options, "group"));
  plan.element = {.op = divides ? ElementOp::divide_full : ElementOp::multiply,
                  .clamp = ElementClamp::low_first,
                  .limit = kE4m3Max};
  const float eps = options.number("eps");
  plan.scale = [divides, ue8m0, eps](const GlobalScale&) {
    return [divides, ue8m0, eps](float amax) {
      const float s = TritonMath::div(TritonMath::max(amax, eps), kE4m3Max);
      const float stored = ue8m0 ? power_above(s) : s;
      return f32_scale(stored, divides ? stored : TritonMath::rcp(stored));
    };
  };
  return plan;
}

QuantizePlan hopper_moe_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = fp8_form(1, 128);
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      const float least = TritonMath::max(amax, 1e-4f);
      return f32_scale(TritonMath::div(least, kE4m3Max), TritonMath::div(kE4m3Max, least));
    };
  };
  return plan;
}

QuantizePlan nvfp4_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::given, GlobalScaleRule::divide);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = {.codes = Format::e2m1};
  plan.scale = [](const GlobalScale& global) {
    return [g = global.stored](float amax) {
      const auto rcp = gpu::rcp_approx_ftz;
      const std::uint32_t code = e4m3(PreciseMath::mul(g, PreciseMath::mul(amax, rcp(kE2m1Max))));
      const float d = decode_e4m3(code);
      return BlockScale{code, d == 0.0f ? 0.0f : rcp(PreciseMath::mul(d, rcp(g)))};
    };
  };
  return plan;
}

QuantizePlan input_to_float8_plan(const Options&, Format) {
  QuantizePlan plan;
  plan.form = fp8_form(0, 0);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .clamp = ElementClamp::keep_nan, .limit = kE4m3Max, .policy = EncodePolicy::torch};
  plan.scale = [](const GlobalScale&) {
    return [](float amax) {
      const float m = Torch::number_by(kE4m3Max, torch_max(amax, 1e-12f));
      return f32_scale(1.0f / m, m);
    };
  };
  return plan;
}

/// Every step in bf16: the rounding of log2 takes some amax just above a power of two for it.
QuantizePlan mxfp4_plan(const Options& options, Format) {
  const Torch torch = torch_on(options);
  const auto bf16 = [](float x) { return cast<Format::bf16>(x); };
  QuantizePlan plan;
  plan.form = mx_form(Format::e2m1);
  plan.nan_amax = NanAmax::propagated;
  plan.before = [bf16](float x, float) { return bf16(x); };
  plan.element = {.op = ElementOp::divide,
                  .quotient = Format::bf16,
                  .codes = Format::e2m1,
                  .sign = Fp4Sign::not_positive,
                  .ties = Fp4Ties::toward_zero};
  plan.scale = [torch, bf16](const GlobalScale&) {
    return [torch, bf16](float amax) {
      const float d = bf16(torch.by_number(amax, kE2m1Max));
      if (d != d) return BlockScale{0, d};  // uint8(NaN)
      if (std::isinf(d)) return BlockScale{torch.cuda ? 255u : 0u, d};
      const int e = d > 0.0f ? std::max(gpu::ceil_log2_bf16(d), -127) : -127;
      const float factor =
          bf16(torch.cuda ? gpu::ex2_approx(static_cast<float>(e)) : power_of_two(e));
      return BlockScale{static_cast<std::uint32_t>(e + 127), factor};
    };
  };
  return plan;
}

}  // namespace

constexpr std::string_view kTensorSpecials =
    "zero: s = 0, every code 0x7E (0 * infinity); infinity: s = infinity, finite elements 0, "
    "infinite ones 448; NaN element: +448 (0x7E), not in amax";

extern const Quantizer sglang_fp8_static{
    .name = "sglang_fp8_static",
    .family = "SGLang",
    .summary = "E4M3 under one calibrated scale (vLLM's scaled_fp8_quant: math=precise)",
    .formula =
        "r = 1 / s; q = E4M3(max(min(x * r, 448), -448)); triton: min(max()), 1 / s is "
        "div.full",
    .specials = "s = 0: zeros 448; infinite elements +-448; NaN: +448 (0x7E), triton -448 (0xFE)",
    .source =
        "sglang sgl-kernel/csrc/gemm/per_tensor_quant_fp8.cu@28f9412d; triton: "
        "@008601fa0ff2 python/sglang/srt/layers/quantization/fp8_kernel.py _static_quant_fp8",
    .activations = true,
    .options = {{"math",
                 {"fast", "precise", "triton"},
                 "fast: sgl-kernel's SM90 library; precise: its SM100 library, vLLM"}},
    .plan = static_plan,
};

extern const Quantizer sglang_fp8_tensor{
    .name = "sglang_fp8_tensor",
    .family = "SGLang",
    .summary = "E4M3 with the scale of the whole tensor (vLLM's: math=precise)",
    .formula =
        "s = amax / 448 (fast: * RN(1/448)); r = 1 / s; q = E4M3(max(min(x * r, 448), -448))",
    .specials = kTensorSpecials,
    .source = "sglang sgl-kernel/csrc/gemm/per_tensor_quant_fp8.cu@28f9412d",
    .activations = true,
    .options = {kMathOption},
    .plan = tensor_plan,
};

extern const Quantizer sglang_fp8_token{
    .name = "sglang_fp8_token",
    .family = "SGLang",
    .summary = "E4M3, a scale per token",
    .formula =
        "s = amax / 448 (fast: * RN(1/448)); r = 1 / s (warp: s == 0 ? 0 : 1 / s); "
        "q = E4M3(max(min(x * r, 448), -448))",
    .specials =
        "zero row: s = 0, small_batch every code 0x7E (0 * infinity), warp codes +-0; "
        "infinity: s = infinity, finite elements +-0, infinite ones 448; NaN element: +448 "
        "(0x7E), not in amax",
    .source = "sglang sgl-kernel/csrc/gemm/per_token_quant_fp8.cu@0490047ffa35",
    .activations = true,
    .options = {kMathOption,
                {"kernel",
                 {"small_batch", "warp"},
                 "warp: the one for tokens >= 16 * the number of SMs"}},
    .plan = token_plan,
};

extern const Quantizer sglang_fp8_group{
    .name = "sglang_fp8_group",
    .family = "SGLang",
    .summary = "E4M3, a scale per group of columns of a token: sgl-kernel v0 to v2, jit v3",
    .formula =
        "a = max(eps, amax).  v0: s = a / 448; q = E4M3(clamp(x / s)).  v1, v2: s = a * "
        "RN(1/448); m = 448 / a; q = E4M3(x * m), v2 clamped.  v3: m = 448 * (1 / a).  "
        "ue8m0: s = 2^ceil(log2 s) by the bits, m = 1 / s; v3: x * m in the input's type; "
        "ue8m0_rowmajor: m = 448 / a, s alone is rounded",
    .specials =
        "zero: s of eps, codes +-0 (v3 ue8m0 f16: 0x7F); infinity with ue8m0: factor "
        "-infinity, finite elements 448 with the sign flipped, zeros NaN; NaN element: 0x7F, "
        "v0 and v2 -448 (0xFE), not in amax",
    .source =
        "sglang sgl-kernel/csrc/gemm/per_token_group_quant_8bit.cu@9e738dba (v0), "
        "@00568d901494 (v1), per_token_group_quant_8bit_v2.cu@037cd6ea3466 (v2), "
        "python/sglang/jit_kernel/csrc/gemm/per_token_group_quant_v3.cuh@a08ae1db57ca (v3)",
    .activations = true,
    .options = {{"version", {"v1", "v0", "v2", "v3"}, "of the kernel; v0 divides"},
                {"scale",
                 {"f32", "ue8m0", "ue8m0_rowmajor"},
                 "ue8m0: powers of two; ue8m0_rowmajor (v2): rounded only where stored"},
                {"group", {"N", "128"}, "columns of a group: 16, 32, 64, 128"},
                kEpsOption,
                kMathOption},
    .plan = group_plan,
};

extern const Quantizer sglang_triton_fp8_group{
    .name = "sglang_triton_fp8_group",
    .family = "SGLang",
    .summary = "E4M3, a scale per group of columns of a token: the Triton kernels",
    .formula =
        "s = max(amax, eps) / 448; mulinv: q = E4M3(clamp(x * (1 / s))); div: "
        "E4M3(clamp(x / s)); ue8m0: s = 2^ceil(log2f(s)) first; `/` is div.full",
    .specials =
        "zero: s of eps, codes +-0; infinity: s = infinity, finite elements +-0, infinite "
        "ones -448; NaN element: -448 (0xFE), not in amax",
    .source =
        "sglang@008601fa0ff2 python/sglang/srt/layers/quantization/fp8_kernel.py "
        "_per_token_group_quant_8bit",
    .activations = true,
    .options = {{"form", {"mulinv", "div"}, "mulinv: row-major scales; div: column-major"},
                {"scale", {"f32", "ue8m0"}, "ue8m0: powers of two"},
                {"group", {"N", "128"}, "columns of a group"},
                kEpsOption},
    .plan = triton_group_plan,
};

extern const Quantizer sglang_fp8_hopper_moe{
    .name = "sglang_fp8_hopper_moe",
    .family = "SGLang",
    .summary = "E4M3 per 128 columns of a token, for the grouped GEMM on Hopper: a Triton kernel",
    .formula = "a = max(amax, 1e-4); s = a / 448; m = 448 / a; q = E4M3(x * m); `/` is div.full",
    .specials =
        "zero: s of 1e-4, codes +-0; infinity: s = infinity, finite elements +-0, infinite "
        "ones 0x7F; NaN element: 0x7F, not in amax",
    .source =
        "sglang@0499419ecba5 python/sglang/srt/layers/quantization/fp8_kernel.py "
        "_per_token_group_quant_fp8_hopper_moe_mn_major",
    .activations = true,
    .plan = hopper_moe_plan,
};

extern const Quantizer sglang_fp8_input{
    .name = "sglang_fp8_input",
    .family = "SGLang",
    .summary = "E4M3 with the scale of the whole tensor: the PyTorch helper input_to_float8",
    .formula =
        "m = (1 / max(amax, 1e-12)) * 448; q = E4M3(clamp(x * m)), not saturating; s = 1 / m",
    .specials =
        "zero: s of 1e-12, codes +-0; infinity: m = 0, s = infinity, finite elements +-0, "
        "infinite ones NaN; NaN: all NaN",
    .source =
        "sglang@002ed7e465ec python/sglang/srt/layers/quantization/fp8_utils.py "
        "input_to_float8",
    .weights = true,
    .activations = true,
    .plan = input_to_float8_plan,
};

extern const Quantizer sglang_nvfp4{
    .name = "sglang_nvfp4",
    .family = "SGLang",
    .summary = "NVFP4 under a calibrated global scale: SGLang's and vLLM's own kernels",
    .formula =
        "sf = E4M3(g * (amax * rcp.approx(6))); o = sf != 0 ? rcp.approx(sf * rcp.approx(g)) : "
        "0; q = E2M1(x * o)",
    .specials =
        "zero and tiny: sf 0, codes +-0; infinity: sf 0x7E; NaN element: +6, not in amax; all "
        "NaN: sf 0x7F",
    .source =
        "sglang@0fb8f05e3d75 python/sglang/jit_kernel/csrc/gemm/nvfp4/"
        "nvfp4_quant_kernels.cuh; vllm@20b4ad8eb933 csrc/quantization/fp4/nvfp4_utils.cuh",
    .activations = true,
    .inputs = {Format::bf16, Format::f16},
    .plan = nvfp4_plan,
};

extern const Quantizer sglang_mxfp4{
    .name = "sglang_mxfp4",
    .family = "SGLang",
    .summary = "MXFP4 of FP8 block weights (dequantize --to bf16 first), every step in bf16",
    .formula =
        "w = bf16(x); d = bf16(amax / 6); e = ceil(max(bf16(log2f(d)), -127)); y = bf16(w / "
        "2^e); q = number of .25 .75 1.25 1.75 2.5 3.5 5 below |y|, sign bit unless y > 0",
    .specials =
        "zero: byte 0, codes 0x8; d a little above 2^k: byte of 2^k, elements saturate; "
        "infinity: byte 0xFF (cpu 0), codes 0x8; NaN: byte 0, codes 0x8",
    .source =
        "sglang@002ed7e465ec python/sglang/srt/layers/quantization/fp8_utils.py "
        "quantize_block_fp8_weight_to_mxfp4; mxfp4_tensor.py@12c024459221 MXFP4QuantizeUtil",
    .weights = true,
    .options = {kDeviceOption},
    .plan = mxfp4_plan,
};

}  // namespace moeref::quantizers
