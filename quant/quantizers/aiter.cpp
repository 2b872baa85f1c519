#include <algorithm>

#include "quant/gpu/log2.hpp"
#include "quant/quantizers/arithmetic.hpp"
#include "quant/quantizers/mx_rules.hpp"

// AMD aiter@e4048607a535: Triton kernels, HIP kernels and PyTorch helpers. Not here: the HIP
// kernels per token and per tensor, whose v_rcp_f32 nobody has measured.

namespace moeref::quantizers {
namespace {

/// The exponent of a Triton block: amax rounded at 1.75 of its binade, floor(log2), clamped.
int triton_exponent(float amax, int emax) {
  const std::uint32_t rounded = (bits_of(gpu::canonical(amax)) + 0x0020'0000u) & 0xFF80'0000u;
  if ((rounded & 0x7FFF'FFFFu) == 0) return -127;  // also NaN, which rolls over to -0
  if (rounded >= kF32Infinity) return 127;
  return std::clamp(static_cast<int>(rounded >> 23) - 127 - emax, -127, 127);
}

QuantizePlan triton_plan(const Options& options, Format codes) {
  const bool nvidia = options.is("device", "nvidia");
  const bool byte_trap = nvidia && codes == Format::e2m1;
  const int emax = mx_emax(codes);
  QuantizePlan plan;
  plan.form = mx_form(codes);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = {.codes = codes, .policy = EncodePolicy::cuda_satfinite, .nan = Fp4Nan::bits};
  plan.scale = [=](const GlobalScale&) {
    return [=](float amax) {
      const int e = triton_exponent(amax, emax);
      const int stored = byte_trap ? std::max(e, 0) : e;
      const float factor = nvidia ? gpu::ex2_approx_ftz(static_cast<float>(-e)) : power_of_two(-e);
      return BlockScale{static_cast<std::uint32_t>(stored + 127), factor};
    };
  };
  return plan;
}

Format fp8_elements(const Options& options) { return *parse_format(options["elements"]); }
const OptionInfo kFp8Option{"elements", {"e4m3", "e4m3fnuz"}, "e4m3fnuz: gfx942, max 240"};

QuantizePlan hip_group_plan(const Options& options, Format) {
  const bool ue8m0 = options.is("scale", "ue8m0");
  const Format codes = fp8_elements(options);
  const float largest = info(codes).max_finite;
  QuantizePlan plan;
  plan.form = {.codes = codes,
               .scales = ue8m0 ? Format::e8m0 : Format::f32,
               .block_rows = 1,
               .block_cols = columns(options, "group")};
  plan.element = {.clamp = ElementClamp::low_first,
                  .limit = largest,
                  .codes = codes,
                  .policy = EncodePolicy::ml_dtypes_saturate};
  plan.scale = [=](const GlobalScale&) {
    return [=](float amax) {
      const float v = gpu::max_num(1e-10f, amax) * (1.0f / largest);
      if (!ue8m0) return f32_scale(v, 1.0f / v);
      const std::uint32_t field = bits_of(v) >> 23;
      const bool up = field < 255 && (bits_of(v) & 0x007F'FFFFu) != 0;
      const std::uint32_t byte = field + (up ? 1u : 0u);
      return BlockScale{byte, 1.0f / gpu::from_bits(byte << 23)};
    };
  };
  return plan;
}

/// The header's Even takes 2 from the exponent field, also from that of infinity; the kernel for
/// weights has its own, which ends at 2^127.
std::uint32_t hip_even_byte(float amax, bool weights) {
  const std::uint32_t field = (bits_of(amax) + 0x0020'0000u) >> 23;
  if (weights && field == 0xFF) return 254;
  return field >= 2 ? field - 2 : 0;
}

QuantizePlan hip_mxfp4_plan(const Options& options, Format) {
  const MxRule rule = options.is("rule", "floor")  ? MxRule::floor
                      : options.is("rule", "even") ? MxRule::even
                      : options.is("rule", "ceil") ? MxRule::ceil
                                                   : MxRule::rceil;
  const bool weights = options.is("kernel", "weights");
  const float least = weights ? 0.0f : 1e-10f;
  QuantizePlan plan;
  plan.form = mx_form(Format::e2m1);
  plan.element = {.op = ElementOp::divide, .codes = Format::e2m1};
  plan.scale = [rule, weights, least](const GlobalScale&) {
    return [rule, weights, least](float amax) {
      const float a = gpu::max_num(least, amax);
      const float unit = 1.0f / kE2m1Max;
      const std::uint32_t field = bits_of(a * unit) >> 23;
      const bool up = field < 255 && (bits_of(a * unit) & 0x007F'FFFFu) != 0;
      const std::uint32_t byte = rule == MxRule::rceil  ? field + (up ? 1u : 0u)
                                 : rule == MxRule::even ? hip_even_byte(a, weights)
                                                        : mx_scale_byte(a, rule, Format::e2m1);
      return BlockScale{byte, byte == 0 ? 0x1p-127f : gpu::from_bits(byte << 23)};
    };
  };
  return plan;
}

QuantizePlan torch_fp8_plan(const Options& options, std::int64_t rows, bool guarded) {
  const Torch torch = torch_on(options);
  const Format codes = fp8_elements(options);
  QuantizePlan plan;
  plan.form = {.codes = codes, .scales = Format::f32, .block_rows = rows, .block_cols = 0};
  plan.nan_amax = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide, .codes = codes, .policy = EncodePolicy::torch};
  plan.scale = [torch, guarded, largest = info(codes).max_finite](const GlobalScale&) {
    return [torch, guarded, largest](float amax) {
      const float s = torch.by_number(amax, largest);
      const float stored = guarded && s == 0.0f ? 1.0f : s;
      return f32_scale(stored, stored);
    };
  };
  return plan;
}

QuantizePlan torch_mx_plan(const Options& options, Format codes, bool f32_scales) {
  const Torch torch = torch_on(options);
  QuantizePlan plan;
  plan.form = mx_form(codes);
  if (f32_scales) plan.form.scales = Format::f32;
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .op = ElementOp::divide,
      .codes = codes,
      .policy = codes == Format::e2m1 ? EncodePolicy::cuda_satfinite : EncodePolicy::torch,
      .nan = Fp4Nan::bits};
  plan.scale = [=](const GlobalScale&) {
    return [=](float amax) {
      if (f32_scales) {
        const float s = torch.by_number(amax, power_of_two(mx_emax(codes)));
        return f32_scale(s, s);
      }
      const float v = torch.by_number(amax, info(codes).max_finite);
      const std::uint32_t field = bits_of(v) >> 23 & 0xFFu;
      const bool up = field != 0xFF && (bits_of(v) & 0x007F'FFFFu) != 0;
      const std::uint32_t byte = field + (up ? 1u : 0u);
      return BlockScale{byte, decode_e8m0(static_cast<std::uint8_t>(byte), E8M0Decoder::aiter)};
    };
  };
  return plan;
}

const OptionInfo kGpuOption{
    "device",
    {"amd", "nvidia"},
    "nvidia: exp2(-127) is 0, and the bytes of MXFP4 are 127 + max(e, 0), as measured there"};

}  // namespace

extern const Quantizer aiter_triton_mxfp4{
    .name = "aiter_triton_mxfp4",
    .family = "aiter",
    .summary = "MXFP4 of the Triton kernel: amax rounded at 1.75 of its binade",
    .formula =
        "r = bits(amax) + 0x200000, mantissa masked; e = clamp(floor(log2 r) - 2, -127, 127); "
        "byte = e + 127; q = E2M1(x * 2^-e) by integer rounding to even",
    .specials =
        "zero: byte 0, codes +-0; amax >= 0x7F600000 and infinity: byte 254; NaN element: "
        "code 2 to 4 by its bits, not in amax; all NaN: byte 0",
    .source = "aiter@e4048607a535 aiter/ops/triton/_triton_kernels/quant/quant.py _mxfp4_quant_op",
    .weights = true,
    .activations = true,
    .options = {kGpuOption},
    .plan = [](const Options& options, Format) { return triton_plan(options, Format::e2m1); },
};

extern const Quantizer aiter_triton_mxfp8{
    .name = "aiter_triton_mxfp8",
    .family = "aiter",
    .summary = "MXFP8 of the Triton kernel: amax rounded at 1.75 of its binade",
    .formula =
        "r = bits(amax) + 0x200000, mantissa masked; e = clamp(floor(log2 r) - 8, -127, 127); "
        "byte = e + 127; q = E4M3(x * 2^-e)",
    .specials =
        "zero: byte 0, codes +-0; amax >= 0x7F600000 and infinity: byte 254; NaN element: "
        "0x7F, not in amax; all NaN: byte 0",
    .source = "aiter@e4048607a535 aiter/ops/triton/_triton_kernels/quant/quant.py _mxfp8_quant_op",
    .activations = true,
    .options = {kGpuOption},
    .plan = [](const Options& options, Format) { return triton_plan(options, Format::e4m3); },
};

extern const Quantizer aiter_hip_fp8_group{
    .name = "aiter_hip_fp8_group",
    .family = "aiter",
    .summary = "FP8 per group of columns of the HIP kernel",
    .formula =
        "s = max(1e-10, amax) * RN(1 / max); ue8m0: field(s) + 1 if any mantissa bit; m = 1 / "
        "s; q = FP8(med3(x * m, -max, max))",
    .specials =
        "zero: s of 1e-10 (ue8m0 byte 85, e4m3fnuz 86), codes +-0; infinity: m = 0, finite "
        "elements 0; NaN, also infinity * 0: -max (inferred), not in amax",
    .source =
        "aiter@e4048607a535 csrc/kernels/quant_kernels.cu "
        "dynamic_per_group_scaled_quant_kernel",
    .activations = true,
    .options = {kFp8Option,
                {"scale", {"f32", "ue8m0"}, "ue8m0: powers of two, rounded up"},
                {"group", {"N", "128"}, "columns of a group: 32, 64, 128"}},
    .plan = hip_group_plan,
};

extern const Quantizer aiter_hip_mxfp4{
    .name = "aiter_hip_mxfp4",
    .family = "aiter",
    .summary = "MXFP4 of the HIP kernels; the hardware converts with the scale (gfx950)",
    .formula =
        "a = amax, kernel=group: max(1e-10, amax); byte by the rule, rceil: a * RN(1/6) "
        "rounded up; q = E2M1(x / 2^(byte - 127))",
    .specials =
        "zero: byte 0, kernel=group byte 92; codes +-0; infinity: byte 0xFF (even: 0xFD, "
        "kernel=weights 0xFE); NaN element: 7 (inferred), not in amax",
    .source =
        "aiter@e4048607a535 csrc/kernels/quant_kernels.cu, csrc/kernels/quant_mxfp4.cu, "
        "csrc/include/mx_quant_utils.h",
    .weights = true,
    .activations = true,
    .options = {{"rule", {"rceil", "floor", "even", "ceil"}, "RoundUp, RoundDown, Even, Ceil"},
                {"kernel", {"group", "weights"}, "group: amax is at least 1e-10"}},
    .plan = hip_mxfp4_plan,
};

extern const Quantizer aiter_torch_fp8_token{
    .name = "aiter_torch_fp8_token",
    .family = "aiter",
    .summary = "FP8, a scale per row: the PyTorch helper",
    .formula = "s = amax / max, 0 -> 1; q = FP8(x / s), not saturating",
    .specials =
        "zero: s = 1, codes +-0; infinity: s = infinity, infinite elements NaN; NaN: the row "
        "NaN",
    .source = "aiter@e4048607a535 aiter/ops/quant.py pertoken_quant",
    .weights = true,
    .activations = true,
    .options = {kFp8Option, kDeviceOption},
    .plan = [](const Options& options, Format) { return torch_fp8_plan(options, 1, true); },
};

extern const Quantizer aiter_torch_fp8_tensor{
    .name = "aiter_torch_fp8_tensor",
    .family = "aiter",
    .summary = "FP8 with the scale of the tensor: the PyTorch helper",
    .formula = "s = amax / max; q = FP8(x / s), not saturating",
    .specials =
        "zero: s = 0, codes NaN; infinity: s = infinity, infinite elements NaN; NaN: all NaN",
    .source = "aiter@e4048607a535 aiter/ops/quant.py per_tensor_quant",
    .weights = true,
    .activations = true,
    .options = {kFp8Option, kDeviceOption},
    .plan = [](const Options& options, Format) { return torch_fp8_plan(options, 0, false); },
};

extern const Quantizer aiter_torch_mxfp4{
    .name = "aiter_torch_mxfp4",
    .family = "aiter",
    .summary = "MXFP4 of the PyTorch helper: scale rounded up",
    .formula =
        "v = amax / 6; byte = field(v) + 1 if any mantissa bit; q = E2M1(x / 2^(byte - 127)) by "
        "integer rounding to even",
    .specials =
        "zero: byte 0, codes +-0; infinity: byte 0xFF, elements NaN; NaN: byte 0xFF, codes 2 "
        "to 4 by the bits",
    .source = "aiter@e4048607a535 aiter/ops/quant.py per_1x32_f4_quant",
    .weights = true,
    .activations = true,
    .options = {kDeviceOption},
    .plan = [](const Options& options,
               Format) { return torch_mx_plan(options, Format::e2m1, false); },
};

extern const Quantizer aiter_torch_fp8_1x32{
    .name = "aiter_torch_fp8_1x32",
    .family = "aiter",
    .summary = "E4M3 per 32 columns of the PyTorch helper",
    .formula =
        "f32: s = amax / 256; ue8m0: v = amax / 448, byte = field(v) + 1 if any mantissa bit; "
        "q = E4M3(x / s), not saturating",
    .specials = "zero: f32 NaN codes (0 / 0), ue8m0 byte 0, codes +-0; infinity, NaN: NaN codes",
    .source = "aiter@e4048607a535 aiter/ops/quant.py per_1x32_f8_scale_f8_quant",
    .weights = true,
    .activations = true,
    .options = {{"scale", {"f32", "ue8m0"}, "f32 divides by 256, 2^floor(log2 448)"},
                kDeviceOption},
    .plan = [](const Options& options,
               Format) { return torch_mx_plan(options, Format::e4m3, options.is("scale", "f32")); },
};

}  // namespace moeref::quantizers
