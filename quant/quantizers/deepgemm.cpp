#include "quant/quantizers/arithmetic.hpp"
#include "quant/ue8m0.hpp"

namespace moeref::quantizers {
namespace {

constexpr float kLeastAmax = 1e-4f;

/// s = max(amax, 1e-4) / largest, with ue8m0 its power of two; the factor is RN(1 / s).
ScaleOfAmax scale_by(Torch torch, float largest, bool ue8m0) {
  return [=](float amax) {
    const float exact = torch.by_number(torch_max(amax, kLeastAmax), largest);
    const float s = ue8m0 ? ceil_to_ue8m0(exact) : exact;
    return f32_scale(s, 1.0f / s);
  };
}

QuantizePlan plan_for(const Options& options, Format codes, std::int64_t rows) {
  const Torch torch = torch_on(options);
  const float largest = codes == Format::e2m1 ? kE2m1Max : kE4m3Max;
  const bool ue8m0 = options.is("scale", "ue8m0");
  QuantizePlan plan;
  plan.form = {.codes = codes,
               .scales = Format::f32,
               .block_rows = rows,
               .block_cols = columns(options, "group")};
  plan.nan_amax = NanAmax::propagated;
  plan.whole_blocks = false;
  if (codes == Format::e2m1) {
    plan.element = {.codes = codes, .sign = Fp4Sign::nonzero, .ties = Fp4Ties::toward_zero};
  } else {
    plan.element = {.policy = EncodePolicy::torch};
  }
  plan.scale = [=](const GlobalScale&) { return scale_by(torch, largest, ue8m0); };
  return plan;
}

}  // namespace

const std::vector<OptionInfo> kOptions{
    {"group", {"N", "128"}, "gran_k: columns of a block; the last may be ragged"},
    {"scale", {"f32", "ue8m0"}, "f32: as it is; ue8m0: rounded up to a power of two"},
    kDeviceOption,
};
constexpr std::string_view kSpecials =
    "zero: s of 1e-4, codes +-0; infinity: s = infinity (ue8m0 2^127), finite elements +-0, "
    "infinite ones NaN (ue8m0: NaN, they overflow); NaN: the block's scale is NaN (ue8m0 2^127) "
    "and with it every code";

extern const Quantizer deepgemm_fp8_token{
    .name = "deepgemm_fp8_token",
    .family = "DeepGEMM",
    .summary = "E4M3, a scale per group of columns of a token",
    .formula =
        "s = max(amax, 1e-4) / 448; ue8m0: s = ceil_to_ue8m0(s); m = 1 / s; "
        "q = E4M3(x * m), not saturating",
    .specials = kSpecials,
    .source = "DeepGEMM@54e226124093 deep_gemm/utils/math.py per_token_cast_to_fp8",
    .activations = true,
    .options = kOptions,
    .plan = [](const Options& options, Format) { return plan_for(options, Format::e4m3, 1); },
};

extern const Quantizer deepgemm_fp8_block{
    .name = "deepgemm_fp8_block",
    .family = "DeepGEMM",
    .summary = "E4M3, a scale per block of 128 rows",
    .formula =
        "s = max(amax, 1e-4) / 448; ue8m0: s = ceil_to_ue8m0(s); m = 1 / s; "
        "q = E4M3(x * m), not saturating",
    .specials = kSpecials,
    .source = "DeepGEMM@54e226124093 deep_gemm/utils/math.py per_block_cast_to_fp8",
    .weights = true,
    .options = kOptions,
    .plan = [](const Options& options, Format) { return plan_for(options, Format::e4m3, 128); },
};

extern const Quantizer deepgemm_fp4_token{
    .name = "deepgemm_fp4_token",
    .family = "DeepGEMM",
    .summary = "E2M1, a scale per group of columns of a token; ties toward zero",
    .formula =
        "s = max(amax, 1e-4) / 6; ue8m0: s = ceil_to_ue8m0(s); m = 1 / s; "
        "q = number of .25 .75 1.25 1.75 2.5 3.5 5 below |x * m|, sign unless 0",
    .specials =
        "zero: s of 1e-4, code 0, never 8; infinity: s = infinity (ue8m0 2^127), finite "
        "elements 0, infinite ones 0 (ue8m0 7 with the sign); NaN: the block's scale is "
        "NaN (ue8m0 2^127), codes 0",
    .source = "DeepGEMM@54e226124093 deep_gemm/utils/math.py per_token_cast_to_fp4",
    .weights = true,
    .activations = true,
    .options = {{"group", {"N", "32"}, "gran_k: columns of a block; the last may be ragged"},
                kOptions[1],
                kDeviceOption},
    .plan = [](const Options& options, Format) { return plan_for(options, Format::e2m1, 1); },
};

}  // namespace moeref::quantizers
