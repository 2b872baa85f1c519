#include <algorithm>
#include <stdexcept>

#include "quant/gpu/log2.hpp"
#include "quant/quantizers/arithmetic.hpp"
#include "quant/quantizers/mx_rules.hpp"

namespace moeref::quantizers {

int mx_emax(Format codes) {
  switch (codes) {
    case Format::e2m1:
      return 2;
    case Format::e4m3:
      return 8;
    case Format::e4m3fnuz:
      return 7;
    case Format::e5m2:
      return 15;
    default:
      throw std::invalid_argument("mx_emax: no element format of MX");
  }
}

std::uint8_t mx_scale_byte(float amax, MxRule rule, Format codes) {
  const auto field = [](float x) { return bits_of(x) >> 23 & 0xFFu; };
  const auto field_above = [&](float x) {
    const bool up = (bits_of(x) & 0x007F'FFFFu) != 0 && field(x) != 0xFF;
    return field(x) + (up ? 1u : 0u);
  };
  const float power = power_of_two(mx_emax(codes));
  const int mantissa_bits = info(codes).significand_bits - 1;
  switch (rule) {
    case MxRule::floor:
      return static_cast<std::uint8_t>(field(amax / power));
    case MxRule::rceil:
      return static_cast<std::uint8_t>(field_above(amax / info(codes).max_finite));
    case MxRule::ceil:
      return static_cast<std::uint8_t>(field_above(amax / power));
    case MxRule::even: {
      const std::uint32_t rounded = (bits_of(amax) + (1u << (22 - mantissa_bits))) & 0xFF80'0000u;
      return static_cast<std::uint8_t>(field(gpu::from_bits(rounded) / power));
    }
  }
  return 0;
}

namespace {

Format elements(const Options& options) { return *parse_format(options["elements"]); }

const OptionInfo kElementsOption{"elements", {"e2m1", "e4m3", "e5m2"}, "format of the codes"};
const OptionInfo kBlockOption{"block", {"N", "32"}, "columns of a block"};

QuantizedForm form(const Options& options) {
  return mx_form(elements(options), columns(options, "block"));
}

/// 2^(byte - 127), NaN of 0xFF.
float value_of(std::uint32_t byte) { return decode(Format::e8m0, byte); }

QuantizePlan standard_plan(const Options& options, MxRule rule, EncodePolicy policy) {
  QuantizePlan plan;
  plan.form = form(options);
  plan.nan_amax = NanAmax::propagated;
  plan.element = {.op = ElementOp::divide, .codes = plan.form.codes, .policy = policy};
  plan.scale = [rule, codes = plan.form.codes](const GlobalScale&) {
    return [rule, codes](float amax) {
      const std::uint32_t byte = amax != amax ? 0xFFu : mx_scale_byte(amax, rule, codes);
      return BlockScale{byte, value_of(byte)};
    };
  };
  return plan;
}

QuantizePlan ocp_plan(const Options& options, Format) {
  return standard_plan(options, MxRule::floor, EncodePolicy::ocp_saturate);
}

QuantizePlan nvidia_plan(const Options& options, Format) {
  QuantizePlan plan = standard_plan(options, MxRule::rceil, EncodePolicy::cuda_satfinite);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.scale = [codes = plan.form.codes](const GlobalScale&) {
    return [codes](float amax) {
      const std::uint32_t byte = e8m0_up(amax / info(codes).max_finite);
      return BlockScale{byte, value_of(byte)};
    };
  };
  return plan;
}

/// Bits of amax rounded to the mantissa bits of the elements; NaN stays.
float even_rounded(float amax, Format codes) {
  if (amax != amax) return amax;
  const int mantissa_bits = info(codes).significand_bits - 1;
  return gpu::from_bits((bits_of(amax) + (1u << (22 - mantissa_bits))) & 0xFF80'0000u);
}

QuantizePlan torchao_plan(const Options& options, Format) {
  const std::string rule = options["rule"];
  QuantizePlan plan;
  plan.form = form(options);
  const Format codes = plan.form.codes;
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .clamp = rule == "rceil" ? ElementClamp::none : ElementClamp::keep_nan,
      .limit = info(codes).max_finite,
      .codes = codes,
      .policy = codes == Format::e2m1 ? EncodePolicy::cuda_satfinite : EncodePolicy::torch,
      .nan = Fp4Nan::bits};
  plan.scale = [rule, codes](const GlobalScale&) {
    return [rule, codes](float amax) {
      const float v = rule == "rceil"  ? amax * (1.0f / info(codes).max_finite)
                      : rule == "even" ? even_rounded(amax, codes)
                                       : amax;
      if (!std::isfinite(v) || !std::isfinite(amax)) return BlockScale{0xFF, gpu::nan()};
      int byte = 0;
      if (rule == "rceil") {
        byte = static_cast<int>(e8m0_up(v));
      } else {
        const bool up = rule == "ceil" && (bits_of(v) & 0x007F'FFFFu) != 0;
        byte = static_cast<int>(bits_of(v) >> 23) + (up ? 1 : 0) - mx_emax(codes);
      }
      const auto stored = static_cast<std::uint32_t>(std::clamp(byte, 0, 255));
      return BlockScale{stored, stored == 0xFF ? gpu::nan() : value_of(254 - stored)};
    };
  };
  return plan;
}

QuantizePlan quark_plan(const Options& options, Format) {
  QuantizePlan plan;
  plan.form = form(options);
  const Format codes = plan.form.codes;
  plan.nan_amax = NanAmax::propagated;
  plan.element = {
      .op = ElementOp::divide,
      .clamp = ElementClamp::keep_nan,
      .limit = info(codes).max_finite,
      .codes = codes,
      .policy = codes == Format::e2m1 ? EncodePolicy::cuda_satfinite : EncodePolicy::torch};
  plan.scale = [codes](const GlobalScale&) {
    return [codes](float amax) {
      const float rounded = even_rounded(amax, codes);
      if (rounded != rounded) return BlockScale{0xFF, gpu::nan()};
      const int field = static_cast<int>(bits_of(rounded) >> 23);
      const int byte = std::isinf(rounded) ? 254 : std::max(field - mx_emax(codes), 0);
      return BlockScale{static_cast<std::uint32_t>(byte),
                        value_of(static_cast<std::uint32_t>(byte))};
    };
  };
  return plan;
}

QuantizePlan quark_triton_plan(const Options& options, Format) {
  const std::string rule = options["rule"];
  QuantizePlan plan;
  plan.form = mx_form(Format::e2m1);
  plan.nan_amax = NanAmax::ignored_unless_all;
  plan.element = {.codes = Format::e2m1, .ties = Fp4Ties::away, .nan = Fp4Nan::largest};
  plan.scale = [rule](const GlobalScale&) {
    return [rule](float amax) {
      std::uint32_t bits = 0;
      if (rule == "even") {
        const std::uint32_t rounded = bits_of(gpu::canonical(amax)) + 0x0020'0000u;
        const int field = static_cast<int>(rounded >> 23 & 0xFFu);  // 0 of a NaN, which rolls over
        const int e = field == 0xFF ? 127 : std::max(field - 127 - 2, -127);
        bits = bits_of(power_of_two(e));
      } else {
        bits = bits_of(gpu::canonical(amax / kE2m1Max));
        if (rule == "rceil") bits += 0x007F'FFFFu;
        bits &= 0x7F80'0000u;
      }
      const float s = gpu::from_bits(bits);
      const std::uint32_t byte = s == 0x1p-127f ? 0 : bits >> 23;
      return BlockScale{byte, s == 0.0f ? 0.0f : 1.0f / s};
    };
  };
  return plan;
}

/// sign(y) * the magnitude, so that sign(0) = 0 makes +0 of a zero, and of NaN.
float signed_by(float y, float magnitude) {
  const float sign = y > 0.0f ? 1.0f : y < 0.0f ? -1.0f : 0.0f;
  return sign * magnitude;
}

/// Rounds the mantissa to an integer, as microxcaling does it in f32.
float round_mantissa(float y, const std::string& rounding) {
  const float magnitude = std::fabs(y);
  if (rounding == "floor") return signed_by(y, std::floor(magnitude));
  const float up = std::floor(magnitude + 0.5f);
  if (rounding == "nearest") return signed_by(y, up);
  const bool tie = std::fmod(magnitude - 0.5f, 2.0f) == 0.0f;
  return signed_by(y, up - (tie ? 1.0f : 0.0f));
}

/// One element in units of the block's scale.
float microxcaling_element(float y, Format codes, const std::string& rounding) {
  if (y != y) return y;
  if (std::isinf(y)) return y;
  const int mantissa_bits = info(codes).significand_bits - 1;
  const int least = codes == Format::e2m1 ? 0 : codes == Format::e4m3 ? -6 : -14;
  const int exponent = std::max(y == 0.0f ? 0 : gpu::floor_log2(std::fabs(y)), least);
  const float shifted = y / power_of_two(exponent) * power_of_two(mantissa_bits);
  const float rounded = round_mantissa(shifted, rounding);
  const float back = rounded / power_of_two(mantissa_bits) * power_of_two(exponent);
  const float most = info(codes).max_finite;
  return back != back ? back : std::fmax(std::fmin(back, most), -most);
}

/// The exponent of a block's scale; NaN above 127.
float microxcaling_exponent(float amax, Format codes) {
  if (amax != amax || std::isinf(amax)) return gpu::nan();
  const int shared = amax == 0.0f ? -126 : gpu::floor_log2(amax);
  const int e = shared - mx_emax(codes);
  return static_cast<float>(std::max(e, -127));
}

QuantizePlan microxcaling_plan(const Options& options, Format) {
  const std::string rounding = options["rounding"];
  const bool flush = options.is("flush", "on");
  QuantizePlan plan;
  plan.form = form(options);
  const Format codes = plan.form.codes;
  plan.nan_amax = NanAmax::propagated;
  plan.whole_blocks = false;
  plan.element = {.codes = codes};
  plan.block = [=](std::span<const float> block, float amax, const GlobalScale&,
                   std::span<std::uint8_t> out) {
    for (std::size_t i = 0; i < block.size(); ++i) {
      const float y = microxcaling_in_units(block[i], amax, codes, rounding, flush);
      out[i] = static_cast<std::uint8_t>(encode(codes, y, EncodePolicy::cuda_satfinite));
    }
    const float e = microxcaling_exponent(amax, codes);
    return e != e ? 0xFFu : static_cast<std::uint32_t>(static_cast<int>(e) + 127);
  };
  return plan;
}

}  // namespace

float microxcaling_in_units(float x, float amax, Format codes, const std::string& rounding,
                            bool flush) {
  const float e = microxcaling_exponent(amax, codes);
  if (e != e) return gpu::nan();
  const bool subnormal = flush && amax < gpu::kSmallestNormal && amax != 0.0f;
  const float kept = subnormal ? x * 0.0f : x;
  return microxcaling_element(kept / power_of_two(static_cast<int>(e)), codes, rounding);
}

float microxcaling_value(float x, float amax, Format codes, const std::string& rounding,
                         bool flush) {
  const float e = microxcaling_exponent(amax, codes);
  return microxcaling_in_units(x, amax, codes, rounding, flush) *
         (e != e ? e : power_of_two(static_cast<int>(e)));
}

extern const Quantizer ocp_mx{
    .name = "ocp_mx",
    .family = "MX",
    .summary = "MX blocks by the rule of OCP MX 1.0: scale rounded down, elements saturate",
    .formula =
        "byte = field(amax / 2^emax), 127 + floor(log2 amax) - emax; q = RNE(x / 2^(byte - "
        "127)), saturating",
    .specials =
        "zero: byte 0, codes +-0; amax below 2^(emax - 126): byte 0; infinity and NaN: byte "
        "0xFF, codes NaN (E2M1: 7)",
    .source =
        "OCP MX 1.0 section 6.3, as aiter@e4048607a535 csrc/include/mx_quant_utils.h "
        "RoundDown",
    .weights = true,
    .activations = true,
    .options = {kElementsOption, kBlockOption},
    .plan = ocp_plan,
};

extern const Quantizer nvidia_mx{
    .name = "nvidia_mx",
    .family = "MX",
    .summary = "MX blocks by NVIDIA's rule: scale rounded up, nothing is clipped",
    .formula = "byte = E8M0 up(amax / max), saturating; q = RNE(x / 2^(byte - 127)), satfinite",
    .specials =
        "zero: byte 0, codes +-0; infinity: byte 0xFE; NaN element: 0x7F (E2M1: 7), not in "
        "amax; all NaN: byte 0xFF",
    .source = "CUDA Toolkit 13.0 cuda_fp8.hpp __nv_cvt_float_to_e8m0 toward +infinity",
    .weights = true,
    .activations = true,
    .options = {kElementsOption, kBlockOption},
    .plan = nvidia_plan,
};

extern const Quantizer torchao_mx{
    .name = "torchao_mx",
    .family = "MX",
    .summary = "MX blocks as torchao's to_mx makes them",
    .formula =
        "floor, ceil: field(amax) (+ 1 if any mantissa bit) - emax; even: amax rounded to the "
        "elements' mantissa bits, then floor; rceil: amax * RN(1 / max) rounded up; m = "
        "2^(127 - byte); q = RNE(clamp(x * m)), rceil without clamp",
    .specials =
        "zero: byte 0, codes +-0; infinity and NaN: byte 0xFF, elements NaN (E2M1: by their "
        "bits)",
    .source = "ao@050515e8a09c torchao/prototype/mx_formats/mx_tensor.py to_mx",
    .weights = true,
    .activations = true,
    .options = {{"rule", {"floor", "rceil", "even", "ceil"}, "ScaleCalculationMode"},
                kElementsOption,
                kBlockOption},
    .plan = torchao_plan,
};

extern const Quantizer quark_mx{
    .name = "quark_mx",
    .family = "MX",
    .summary = "MX blocks as AMD Quark makes them: amax rounded to the elements' mantissa",
    .formula =
        "r = bits(amax) + (1 << (22 - mantissa bits)), mantissa masked; byte = clamp(field(r) "
        "- emax, 0, 254); q = RNE(clamp(x / 2^(byte - 127)))",
    .specials = "zero: byte 0, codes +-0; infinity: byte 0xFE, clipped; NaN: byte 0xFF",
    .source = "Quark quark/torch/quantization/utils.py even_round",
    .weights = true,
    .activations = true,
    .options = {kElementsOption, kBlockOption},
    .plan = quark_plan,
};

extern const Quantizer quark_triton_mxfp4{
    .name = "quark_triton_mxfp4",
    .family = "MX",
    .summary = "MXFP4 of AMD Quark's Triton kernel: ties away from zero",
    .formula =
        "rceil: bits(amax / 6) + 0x7FFFFF, floor: bits(amax / 6), mantissa masked; even: "
        "bits(amax) + 0x200000, field - 2; m = s == 0 ? 0 : 1 / s; q = E2M1(x * m), ties away",
    .specials =
        "zero: byte 0, codes +-0; infinity: byte 0xFF (even: 0xFE), m = 0, finite elements +-0; "
        "NaN element, infinity * 0: 7, not in amax; all NaN: rceil rolls over to byte 0",
    .source = "Quark@1d27b5582e4e quark/torch/kernel/mx/triton.py _compute_quant_and_scale",
    .weights = true,
    .activations = true,
    .options = {{"rule", {"rceil", "floor", "even"}, "ROUND_UP, ROUND_DOWN, EVEN"}},
    .plan = quark_triton_plan,
};

extern const Quantizer microxcaling{
    .name = "microxcaling",
    .family = "MX",
    .summary = "MX blocks of Microsoft's emulation library",
    .formula =
        "e = floor(log2f(amax)) - emax, at least -127; y = x / 2^e; p = max(floor(log2f|y|), "
        "1 - bias); mantissa y / 2^p rounded: nearest = floor(|.| + 0.5), even, floor; clamp",
    .specials =
        "zero: e = -127, codes 0, -0 becomes +0; infinity and NaN amax: scale NaN; flush: "
        "blocks with a subnormal amax are zero",
    .source =
        "microxcaling@7bc41952de39 mx/mx_ops.py _quantize_mx, mx/elemwise_ops.py "
        "_quantize_elemwise_core",
    .weights = true,
    .activations = true,
    .options = {kElementsOption,
                kBlockOption,
                {"rounding", {"nearest", "even", "floor"}, "nearest: ties away from zero"},
                {"flush", {"off", "on"}, "flush_fp32_subnorms"}},
    .plan = microxcaling_plan,
};

}  // namespace moeref::quantizers
