#include "quant/quantizers/arithmetic.hpp"

// TensorRT-LLM's kernels that FlashInfer carries. FlashInfer builds them with -use_fast_math.

namespace moeref::quantizers {
namespace {

QuantizePlan group_plan(const Options& options, Format) {
  return with_math(options, [](auto math) {
    using Math = decltype(math);
    constexpr bool kFast = Math::kMultiply == ElementOp::multiply_ftz;
    QuantizePlan plan;
    plan.form = fp8_form(1, 128);
    plan.element = {.op = kFast ? ElementOp::multiply_ftz : ElementOp::divide};
    plan.scale = [](const GlobalScale&) {
      return [](float amax) {
        const float s = Math::max(Math::div(amax, kE4m3Max), gpu::kSmallestNormal);
        return f32_scale(s, kFast ? Math::rcp(s) : s);
      };
    };
    return plan;
  });
}

QuantizePlan token_plan(const Options& options, Format input) {
  const bool row_wise = options.is("scales", "row_wise");
  const bool in_16_bits = input != Format::f32;
  const float least = input == Format::bf16  ? cast<Format::bf16>(1e-6f)
                      : input == Format::f16 ? cast<Format::f16>(1e-6f)
                                             : 1e-6f;
  return with_math(options, [&](auto math) {
    using Math = decltype(math);
    constexpr float kMostFactor = kE4m3Max * 512.0f;
    QuantizePlan plan;
    plan.form = fp8_form(1, 0);
    plan.element = {.op = Math::kMultiply, .quotient = Format::bf16};
    // The clamp to -FLT_MAX and FLT_MAX in the input's type, which are infinities of bf16 and f16,
    // replaces a NaN by the lower one.
    const float most =
        in_16_bits ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::max();
    plan.before = [most](float x, float) { return gpu::min_num(gpu::max_num(x, -most), most); };
    plan.scale = [=](const GlobalScale&) {
      return [=](float amax) {
        const float a = Math::max(amax, least);
        float s = Math::div(a, kE4m3Max);
        float m = Math::div(kE4m3Max, a);
        if (row_wise) {
          s = Math::max(s, 1.0f / kMostFactor);
          m = Math::min(m, kMostFactor);
        }
        return f32_scale(s, m);
      };
    };
    return plan;
  });
}

}  // namespace

extern const Quantizer trtllm_fp8_group{
    .name = "trtllm_fp8_group",
    .family = "TRTLLM",
    .summary = "E4M3 per 128 columns of a token, after the activation of the FP8 block MoE",
    .formula =
        "s = max(amax / 448, FLT_MIN); q = E4M3(x / s); fast: amax * RN(1/448), x * "
        "rcp.approx(s)",
    .specials =
        "zero: s = FLT_MIN, codes +-0; infinity: s = infinity, finite elements +-0, infinite "
        "ones NaN; NaN element: 0x7F, not in amax",
    .source =
        "flashinfer@fb28d7242b35 csrc/fused_moe/trtllm_backend/trtllm_fused_moe_dev_kernel.cu "
        "activationDeepSeekKernel",
    .activations = true,
    .options = {kMathOption},
    .plan = group_plan,
};

extern const Quantizer trtllm_fp8_token{
    .name = "trtllm_fp8_token",
    .family = "TRTLLM",
    .summary = "E4M3, a scale per token; products are rounded to bf16 first",
    .formula =
        "a = max(amax, T(1e-6)), T = the input's type; s = a / 448, m = 448 / a; row_wise: s "
        ">= 1 / (448 * 512), m <= 448 * 512; q = E4M3(bf16(x * m))",
    .specials =
        "zero: s of 1e-6, codes +-0; infinity or NaN in a row: NaN counts as -infinity, s = "
        "infinity, finite elements +-0, the bad ones 0x7F; f32: they count as +-FLT_MAX",
    .source =
        "flashinfer@fb28d7242b35 csrc/nv_internal/tensorrt_llm/kernels/quantization.cuh "
        "perTokenQuantization",
    .activations = true,
    .options = {kMathOption,
                {"scales", {"plain", "row_wise"}, "row_wise: QuantMode::hasFp8RowWise"}},
    .plan = token_plan,
};

}  // namespace moeref::quantizers
