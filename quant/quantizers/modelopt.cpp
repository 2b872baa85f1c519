#include <algorithm>

#include "quant/gpu/log2.hpp"
#include "quant/quantizers/arithmetic.hpp"

// NVIDIA Model-Optimizer (Model-Optimizer@a2fbac7bad8a modelopt/torch/quantization/qtensor), eager
// PyTorch.

namespace moeref::quantizers {
namespace {

/// x rounded to the type of the weight.
float as(Format type, float x) {
  if (type == Format::bf16) return cast<Format::bf16>(x);
  return type == Format::f16 ? cast<Format::f16>(x) : x;
}

QuantizePlan fp8_plan(const Options& options, Format input) {
  const Torch torch = torch_on(options);
  const std::string granularity = options["granularity"];
  QuantizePlan plan;
  plan.form = granularity == "tensor"    ? fp8_form(0, 0)
              : granularity == "channel" ? fp8_form(1, 0)
                                         : fp8_form(128, 128);
  plan.nan_amax = NanAmax::propagated;
  plan.whole_blocks = false;
  plan.element = {.op = ElementOp::divide, .quotient = input, .policy = EncodePolicy::torch};
  plan.scale = [torch, input](const GlobalScale&) {
    return [torch, input](float amax) {
      const float s = as(input, torch.by_number(amax, kE4m3Max));
      return f32_scale(s, s);
    };
  };
  return plan;
}

ElementRule nvfp4_elements() {
  return {.op = ElementOp::divide, .codes = Format::e2m1, .sign = Fp4Sign::negative};
}

QuantizePlan nvfp4_plan(const Options& options, Format) {
  const Torch torch = torch_on(options);
  const float largest = options.is("e4m3_max", "256") ? 256.0f : kE4m3Max;
  const bool is_static = options.is("blocks", "static");
  QuantizePlan plan;
  plan.form = nvfp4_form(GlobalScaleOf::tensor, GlobalScaleRule::multiply);
  plan.form.global_suffix = "_scale_2";
  plan.nan_amax = NanAmax::propagated;
  plan.element = nvfp4_elements();
  plan.nan_global = NanAmax::propagated;
  plan.global = [torch, largest](float amax) { return torch.by_number(amax, kE2m1Max * largest); };
  plan.scale = [=](const GlobalScale& global) {
    return [=](float amax) {
      float p = is_static ? torch.by_number(amax, kE2m1Max) : amax / (kE2m1Max * global.stored);
      if (p == 0.0f) p = 1.0f;
      if (is_static) p = (p * largest) / torch.by_number(global.amax, kE2m1Max);
      const std::uint32_t code = torch_e4m3(torch_clamp(gpu::canonical(p), 0x1p-9f, kE4m3Max));
      return BlockScale{code, decode_e4m3(code) * global.stored};
    };
  };
  return plan;
}

/// torch.exp2 of an integer: on CUDA 2^-127 comes out one unit low, on the CPU exact.
float torch_exp2(Torch torch, int e) {
  return torch.cuda ? gpu::ex2_approx(static_cast<float>(e)) : power_of_two(e);
}

QuantizePlan mxfp4_plan(const Options& options, Format) {
  const Torch torch = torch_on(options);
  QuantizePlan plan;
  plan.form = mx_form(Format::e2m1);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide,
                  .codes = Format::e2m1,
                  .sign = Fp4Sign::not_positive,
                  .ties = Fp4Ties::toward_zero};
  plan.scale = [torch](const GlobalScale&) {
    return [torch](float amax) {
      const float v = torch.by_number(amax, kE2m1Max);
      if (v != v) return BlockScale{0, v};  // uint8(NaN)
      if (std::isinf(v)) return BlockScale{torch.cuda ? 255u : 0u, v};
      const int e = v > 0.0f ? std::max(gpu::ceil_log2(v), -127) : -127;
      return BlockScale{static_cast<std::uint32_t>(e + 127), torch_exp2(torch, e)};
    };
  };
  return plan;
}

QuantizePlan mxfp8_plan(const Options& options, Format) {
  const Torch torch = torch_on(options);
  QuantizePlan plan;
  plan.form = mx_form(Format::e4m3);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .clamp = ElementClamp::keep_nan, .limit = kE4m3Max, .policy = EncodePolicy::torch};
  plan.scale = [torch](const GlobalScale&) {
    return [torch](float amax) {
      const float v = torch.by_number(amax, kE4m3Max);
      int e = -127;  // of NaN too
      if (v > 0.0f) e = std::isinf(v) ? 127 : std::clamp(gpu::ceil_log2(v), -127, 127);
      return BlockScale{static_cast<std::uint32_t>(e + 127), torch_exp2(torch, -e)};
    };
  };
  return plan;
}

}  // namespace

extern const Quantizer modelopt_fp8{
    .name = "modelopt_fp8",
    .family = "ModelOpt",
    .summary = "E4M3 weights with a scale per tensor, channel or 128 x 128",
    .formula =
        "s = amax / 448 and y = x / s, each rounded to the weight's type; q = E4M3(y), not "
        "saturating",
    .specials =
        "zero: s = 0, 0 / 0 gives NaN codes; infinity: s = infinity, finite elements +-0, "
        "infinite ones NaN; NaN: s is NaN",
    .source = "Model-Optimizer@a2fbac7bad8a modelopt/torch/quantization/qtensor/fp8_tensor.py",
    .weights = true,
    .options = {{"granularity", {"tensor", "channel", "block"}, "block: 128 x 128, edges ragged"},
                kDeviceOption},
    .plan = fp8_plan,
};

extern const Quantizer modelopt_nvfp4{
    .name = "modelopt_nvfp4",
    .family = "ModelOpt",
    .summary = "NVFP4 weights; the global scale multiplies",
    .formula =
        "g = A / (6 * 448), A = amax of the tensor; p = amax / (6 * g), 0 -> 1; sf = "
        "E4M3(clamp(p, 2^-9, 448)); q = E2M1(x / (sf * g)), sign = y < 0",
    .specials =
        "zero block: sf 1.0 (0x38), codes 0; tiny: sf 2^-9 (0x01); zero tensor: g = 0, NaN "
        "scales; infinity: g = infinity; NaN: g is NaN",
    .source = "Model-Optimizer@a2fbac7bad8a modelopt/torch/quantization/qtensor/nvfp4_tensor.py",
    .weights = true,
    .options = {kDeviceOption,
                {"blocks",
                 {"dynamic", "static"},
                 "static: p = (amax / 6, 0 -> 1) * 448 / (A / 6), of a calibrated block quantizer"},
                {"e4m3_max", {"448", "256"}, "256: four-over-six exports"}},
    .plan = nvfp4_plan,
};

extern const Quantizer modelopt_mxfp4{
    .name = "modelopt_mxfp4",
    .family = "ModelOpt",
    .summary = "MXFP4 weights, ties toward zero, zeros are 0x8",
    .formula =
        "byte = ceil(max(log2f(amax / 6), -127)) + 127; y = x / 2^(byte - 127); q = number of "
        ".25 .75 1.25 1.75 2.5 3.5 5 below |y|, sign bit unless y > 0",
    .specials =
        "zero block: byte 0, codes 0x8; infinity: byte 0xFF (cpu 0), codes 0x8; NaN: byte 0, codes "
        "0x8. device=cuda: exp2(-127) is 2^-127 less one unit",
    .source = "Model-Optimizer@a2fbac7bad8a modelopt/torch/quantization/qtensor/mxfp4_tensor.py",
    .weights = true,
    .options = {kDeviceOption},
    .plan = mxfp4_plan,
};

extern const Quantizer modelopt_mxfp8{
    .name = "modelopt_mxfp8",
    .family = "ModelOpt",
    .summary = "MXFP8 weights, scale rounded up",
    .formula =
        "byte = clamp(ceil(log2f(amax / 448)), -127, 127) + 127; q = E4M3(clamp(x * 2^(127 - "
        "byte), 448)), not saturating",
    .specials =
        "zero block: byte 0, codes +-0; infinity: byte 0xFE; NaN in a block: byte 0, NaN 0x7F, the "
        "others +-448",
    .source = "Model-Optimizer@a2fbac7bad8a modelopt/torch/quantization/qtensor/mxfp8_tensor.py",
    .weights = true,
    .options = {kDeviceOption},
    .plan = mxfp8_plan,
};

}  // namespace moeref::quantizers
