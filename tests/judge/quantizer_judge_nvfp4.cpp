// The quantizers to NVFP4: E2M1 codes in blocks of 16 under E4M3 scales, most under a global scale.

#include <algorithm>
#include <cmath>

#include "tests/judge/quantizer_recipes.hpp"

namespace moeref::judge {
namespace {

const F32 kPrecise{};
constexpr float kLargestFloat = 0x1.fffffep127f;

std::uint32_t e4m3(float y) { return saturating_code(Format::e4m3, y); }
float scale_value(std::uint32_t code) { return value_of(Format::e4m3, code); }
/// cvt.rn.satfinite.e2m1x2
std::uint8_t e2m1(float y) { return fp4_code(y, Halfway::even, SignOf::bit, 7); }
float e2m1_value(std::uint8_t code) {
  const auto magnitude = static_cast<float>(magnitudes(Format::e2m1)[code & 7u]);
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

/// Codes of x * factor.
JudgedBlock scaled(std::uint32_t scale, const F32& math, std::span<const float> block,
                   float factor) {
  return coded(scale, block, [&](float x) { return e2m1(math.times(x, factor)); });
}

/// What the FlashInfer kernels share: CUDA's and the CuTe-DSL twins'.
struct FlashInfer {
  F32 math;            ///< flushes if built with -use_fast_math; the twins never do
  bool exact = false;  ///< FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH
  bool twin = false;   ///< CuTe-DSL
  bool four_over_six = false;
  bool squares = false;     ///< error: sum of squares
  bool fast_error = false;  ///< error: codes against x * g, through f16
  bool halves = false;      ///< error: of eight numbers each, then added
  float denominator = 6.0f * 448.0f;

  JudgedBlock block(std::span<const float> x, float amax, float g, float row_amax) const;

 private:
  float scale_of(float amax, float g) const;
  float factor_of(float scale, float amax, float g) const;
  JudgedBlock best_of_two(std::span<const float> x, float amax, float g, float row_amax) const;
  float error(std::span<const float> x, const JudgedBlock& candidate, float g,
              float row_amax) const;
};

FlashInfer flashinfer_of(const Setting& setting) {
  FlashInfer kernel;
  kernel.math.flush = setting.is("math", "fast");
  kernel.exact = setting.is("quant_math", "exact");
  kernel.four_over_six = setting.is("four_over_six", "on");
  kernel.squares = setting.is("error", "mse");
  kernel.fast_error = setting.is("error_math", "fast");
  return kernel;
}

FlashInfer twin_of(const Setting& setting) {
  FlashInfer kernel;
  kernel.twin = true;
  kernel.exact = setting.is("quant_math", "exact");
  kernel.four_over_six = setting.is("four_over_six", "on");
  kernel.squares = setting.is("error", "mse");
  kernel.fast_error = setting.is("error_math", "fast");
  return kernel;
}

/// The block scale before E4M3.
float FlashInfer::scale_of(float amax, float g) const {
  if (!exact) return math.times(g, math.times(amax, approximate_reciprocal(6.0f)));
  if (math.is_zero(amax)) return 0.0f;
  return math.times(amax, math.times(g, constant(1.0 / 6.0)));
}

/// What the elements are multiplied by.
float FlashInfer::factor_of(float scale, float amax, float g) const {
  if (!exact) {
    if (twin ? scale == 0.0f : math.is_zero(amax)) return 0.0f;
    return approximate_reciprocal(math.times(scale, approximate_reciprocal(g)));
  }
  if (math.is_zero(amax)) return 0.0f;
  return math.smaller(math.over(1.0f, math.times(scale, math.over(1.0f, g))), kLargestFloat);
}

JudgedBlock FlashInfer::block(std::span<const float> x, float amax, float g, float row_amax) const {
  if (four_over_six) return best_of_two(x, amax, g, row_amax);
  const std::uint32_t scale = e4m3(scale_of(amax, g));
  return scaled(scale, math, x, factor_of(scale_value(scale), amax, g));
}

JudgedBlock FlashInfer::best_of_two(std::span<const float> x, float amax, float g,
                                    float row_amax) const {
  if (math.is_zero(amax)) return {0, std::vector<std::uint8_t>(x.size(), 0)};
  const float six = exact ? math.times(math.over(amax, 6.0f), g)
                          : math.times(g, math.times(amax, approximate_reciprocal(6.0f)));
  const float four = math.times(six, 1.5f);
  JudgedBlock candidates[2];
  float errors[2];
  for (const int i : {0, 1}) {
    const std::uint32_t scale = e4m3(i == 0 ? four : six);
    const float value = scale_value(scale);
    const float factor =
        exact ? math.smaller(math.over(1.0f, math.times(value, math.over(1.0f, g))), kLargestFloat)
              : approximate_reciprocal(math.times(value, approximate_reciprocal(g)));
    candidates[i] = scaled(scale, math, x, factor);
    errors[i] = error(x, candidates[i], g, row_amax);
  }
  return errors[0] < errors[1] ? candidates[0] : candidates[1];
}

float FlashInfer::error(std::span<const float> x, const JudgedBlock& candidate, float g,
                        float row_amax) const {
  const float scale = scale_value(candidate.scale);
  const float decode = exact ? math.over(1.0f, g) : approximate_reciprocal(g);
  float sums[2] = {0.0f, 0.0f};
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float q = e2m1_value(candidate.codes[i]);
    float difference = 0.0f;
    if (fast_error) {
      const float product = in_dtype(Format::f16, kPrecise.times(q, scale));
      difference = math.minus(product, math.times(x[i], g));
    } else {
      const float value = math.times(q, scale);
      float restored = math.seen(row_amax) > 0.0f
                           ? math.over(math.times(value, row_amax), denominator)
                           : math.times(value, decode);
      if (twin && q == 0.0f) restored = q;  // its table has zeros for zeros
      difference = math.minus(restored, x[i]);
    }
    const float term = squares ? math.times(difference, difference)
                               : math.seen(float_of(float_bits(difference) & 0x7FFF'FFFF));
    float& sum = sums[halves && i >= x.size() / 2 ? 1 : 0];
    sum = math.plus(sum, term);
  }
  return halves ? math.plus(sums[0], sums[1]) : sums[0];
}

Recipe flashinfer_nvfp4(const Setting& setting) {
  FlashInfer kernel = flashinfer_of(setting);
  kernel.halves = setting.is("elements_per_thread", "8");
  float g = setting.given;
  if (setting.is("global_scale", "inverted")) {
    g = kernel.exact ? kernel.math.over(1.0f, g) : approximate_reciprocal(g);
  }
  return {.block_cols = 16,
          .block =
              [kernel, g](std::span<const float> x, std::span<const float>) {
                return kernel.block(x, amax_of_pairs(x), g, 0.0f);
              },
          .global = GlobalOf::given};
}

Recipe cutedsl_nvfp4(const Setting& setting) {
  return {
      .block_cols = 16,
      .block = [kernel = twin_of(setting), g = setting.given](
                   std::span<const float> x,
                   std::span<const float>) { return kernel.block(x, amax_of_pairs(x), g, 0.0f); },
      .global = GlobalOf::given};
}

/// The scale of a token as stored, and the one that its blocks are encoded with.
struct TokenScale {
  float stored;
  float encode;
};

/// 1 / (6 * the largest E4M3 number), as the host passes it.
float inverse_range(const Setting& setting) {
  return constant(1.0 / (6.0 * (setting.is("e4m3_max", "448") ? 448.0 : 256.0)));
}

TokenScale cuda_token_scale(const FlashInfer& kernel, float inverse, float amax) {
  const F32& math = kernel.math;
  if (!kernel.exact) {
    const float stored = math.times(amax, inverse);
    return {stored, approximate_reciprocal(stored)};
  }
  const float range = math.over(1.0f, inverse);
  float encode = kernel.four_over_six ? 0.0f : kLargestFloat;
  if (!math.is_zero(amax)) {
    encode = math.smaller(math.over(range, amax), kLargestFloat);
    if (encode == 0.0f) encode = 1.0f;
  }
  return {encode == 0.0f ? 0.0f : math.over(1.0f, encode), encode};
}

TokenScale twin_token_scale(const FlashInfer& kernel, float inverse, float amax) {
  if (amax == 0.0f) return {0.0f, kernel.four_over_six ? 0.0f : kLargestFloat};
  if (!kernel.exact) {
    const float stored = kPrecise.times(amax, inverse);
    return {stored, approximate_reciprocal(stored)};
  }
  const float range = kPrecise.over(1.0f, inverse);
  float encode = kPrecise.smaller(kPrecise.over(range, amax), kLargestFloat);
  if (encode == 0.0f) encode = 1.0f;
  return {kPrecise.over(1.0f, encode), encode};
}

template <typename TokenScaleOf>
Recipe token_recipe(const FlashInfer& kernel, const TokenScaleOf& scale_of) {
  return {
      .block_cols = 16,
      .block =
          [=](std::span<const float> x, std::span<const float> row) {
            const float row_amax = amax_of_numbers(row);
            return kernel.block(x, amax_of_pairs(x), scale_of(row_amax).encode, row_amax);
          },
      .global = GlobalOf::row,
      .stored = [=](std::span<const float> row) { return scale_of(amax_of_numbers(row)).stored; }};
}

/// The kernel for f32 numbers: codes by the block's own amax, scales afterwards; no modes.
Recipe token_recipe_f32(const F32& math, float inverse) {
  return {
      .block_cols = 16,
      .block =
          [=](std::span<const float> x, std::span<const float> row) {
            const float amax = amax_of_numbers(x);
            const float factor =
                math.is_zero(amax) ? 0.0f : math.times(6.0f, approximate_reciprocal(amax));
            const float stored = math.times(amax_of_numbers(row), inverse);
            const float scale = approximate_reciprocal(math.times(stored, factor));
            return scaled(e4m3(scale), math, x, factor);
          },
      .global = GlobalOf::row,
      .stored =
          [=](std::span<const float> row) { return math.times(amax_of_numbers(row), inverse); }};
}

Recipe flashinfer_token(const Setting& setting) {
  FlashInfer kernel = flashinfer_of(setting);
  const float inverse = inverse_range(setting);
  kernel.denominator = setting.is("e4m3_max", "448") ? 2688.0f : 1536.0f;
  if (setting.input == Format::f32) return token_recipe_f32(kernel.math, inverse);
  return token_recipe(kernel, [=](float amax) { return cuda_token_scale(kernel, inverse, amax); });
}

Recipe cutedsl_token(const Setting& setting) {
  FlashInfer kernel = twin_of(setting);
  const float inverse = inverse_range(setting);
  kernel.denominator = setting.is("e4m3_max", "448") ? 2688.0f : 1536.0f;
  return token_recipe(kernel, [=](float amax) { return twin_token_scale(kernel, inverse, amax); });
}

/// SGLang's and vLLM's kernel: no flush, and a zero scale gives zeros.
Recipe sglang_nvfp4(const Setting& setting) {
  return {.block_cols = 16,
          .block =
              [g = setting.given](std::span<const float> x, std::span<const float>) {
                const float amax = amax_of_pairs(x);
                const std::uint32_t scale =
                    e4m3(kPrecise.times(g, kPrecise.times(amax, approximate_reciprocal(6.0f))));
                const float value = scale_value(scale);
                const float factor =
                    value == 0.0f
                        ? 0.0f
                        : approximate_reciprocal(kPrecise.times(value, approximate_reciprocal(g)));
                return scaled(scale, kPrecise, x, factor);
              },
          .global = GlobalOf::given};
}

/// Inside the fused MoE of CuTe-DSL: the reciprocal of the scale alone is taken.
Recipe cutedsl_moe(const Setting& setting) {
  return {.block_cols = 16,
          .block =
              [g = setting.given](std::span<const float> x, std::span<const float>) {
                const float amax = amax_of_numbers(x);
                const std::uint32_t scale =
                    e4m3(kPrecise.times(kPrecise.times(amax, constant(1.0 / 6.0)), g));
                const float product = kPrecise.times(g, approximate_reciprocal(scale_value(scale)));
                const float factor = is_nan(product) ? product : std::min(product, kLargestFloat);
                return scaled(scale, kPrecise, x, factor);
              },
          .global = GlobalOf::given};
}

Recipe flashinfer_fp8_to_fp4(const Setting& setting) {
  const F32 math{.flush = setting.is("math", "fast")};
  const bool power = setting.is("scale", "ue8m0");
  return {.block_cols = power ? 32 : 16,
          .block =
              [=, g = setting.given](std::span<const float> x, std::span<const float>) {
                const float before = math.times(6.0f, approximate_reciprocal(g));
                std::vector<float> halves;
                for (const float value : x) {
                  halves.push_back(in_dtype(Format::f16, math.times(value, before)));
                }
                const float amax = amax_of_pairs(halves);
                const float s = math.times(g, math.times(amax, approximate_reciprocal(6.0f)));
                const std::uint32_t scale = power ? e8m0_not_below(s) : e4m3(s);
                float value = scale_value(scale);
                if (power) {
                  value = scale == 0xFF ? gpu_nan() : power_of_two(static_cast<int>(scale) - 127);
                }
                const float factor =
                    math.is_zero(s) ? 0.0f : math.times(g, approximate_reciprocal(value));
                return scaled(scale, math, halves, factor);
              },
          .global = GlobalOf::given};
}

Recipe cutedsl_fp8_to_fp4(const Setting& setting) {
  FlashInfer kernel;
  kernel.twin = true;
  kernel.exact = setting.is("quant_math", "exact");
  return {.block_cols = 16,
          .block =
              [=, g = setting.given](std::span<const float> x, std::span<const float>) {
                const float before = kPrecise.times(
                    6.0f, kernel.exact ? kPrecise.over(1.0f, g) : approximate_reciprocal(g));
                std::vector<float> halves;
                for (const float value : x) {
                  halves.push_back(in_dtype(Format::f16, kPrecise.times(value, before)));
                }
                return kernel.block(halves, amax_of_pairs(halves), g, 0.0f);
              },
          .global = GlobalOf::given};
}

/// torch.clamp
float clamp(float x, float low, float high) {
  return is_nan(x) ? gpu_nan() : std::clamp(x, low, high);
}

Recipe modelopt_nvfp4(const Setting& setting) {
  const double largest = setting.is("e4m3_max", "448") ? 448.0 : 256.0;
  const auto global = [=](std::span<const float> all) {
    return torch_over(setting, amax_or_nan(all), 6.0 * largest);
  };
  return {.block_cols = 16,
          .block =
              [=](std::span<const float> x, std::span<const float> all) {
                const float above = global(all);
                const float amax = amax_or_nan(x);
                float p = 0.0f;
                if (setting.is("blocks", "dynamic")) {
                  p = kPrecise.over(amax, kPrecise.times(6.0f, above));
                  if (p == 0.0f) p = 1.0f;
                } else {
                  p = torch_over(setting, amax, 6.0);
                  if (p == 0.0f) p = 1.0f;
                  p = kPrecise.over(kPrecise.times(p, static_cast<float>(largest)),
                                    torch_over(setting, amax_or_nan(all), 6.0));
                }
                const std::uint32_t scale = torch_code(Format::e4m3, clamp(p, 0x1p-9f, 448.0f));
                const float divisor = kPrecise.times(scale_value(scale), above);
                return coded(scale, x, [&](float value) {
                  return fp4_code(kPrecise.over(value, divisor), Halfway::even, SignOf::below_zero,
                                  7);
                });
              },
          .global = GlobalOf::tensor,
          .stored = global};
}

Recipe compressed_tensors_nvfp4(const Setting& setting) {
  const Format dtype = setting.input;
  const bool triton = setting.is("backend", "triton");
  const auto global = [=](std::span<const float> all) {
    const float tiny = dtype == Format::f16 ? 0x1p-14f : 0x1p-126f;
    const float amax = amax_or_nan(all);
    const float inverse =
        in_dtype(dtype, kPrecise.over(1.0f, is_nan(amax) ? amax : std::max(amax, tiny)));
    const float g = in_dtype(dtype, kPrecise.times(inverse, 2688.0f));
    return is_nan(g) || g == infinity() ? 1.0f : g;
  };
  return {.block_cols = 16,
          .block =
              [=](std::span<const float> x, std::span<const float> all) {
                const float g = global(all);
                const float sixth = in_dtype(dtype, torch_over(setting, amax_or_nan(x), 6.0));
                std::uint32_t scale =
                    torch_code(Format::e4m3, clamp(kPrecise.times(sixth, g), -448.0f, 448.0f));
                if (scale == 0) scale = 0x20;
                const float divisor = triton ? triton_quotient(scale_value(scale), g)
                                             : kPrecise.over(scale_value(scale), g);
                return coded(scale, x, [&](float value) {
                  float y =
                      triton ? triton_quotient(value, divisor) : kPrecise.over(value, divisor);
                  y = kPrecise.plus(y, 0.0f);
                  if (!triton) {
                    return fp4_code(clamp(y, -6.0f, 6.0f), Halfway::even, SignOf::below_zero, 0);
                  }
                  // tl.clamp: NaN gives the lower end.
                  y = kPrecise.smaller(kPrecise.larger(y, -6.0f), 6.0f);
                  return fp4_code(in_dtype(Format::bf16, y), Halfway::even, SignOf::bit, 0);
                });
              },
          .global = GlobalOf::tensor,
          .stored = global};
}

}  // namespace

RecipeTable nvfp4_recipes() {
  return {{"sglang_nvfp4", sglang_nvfp4},
          {"flashinfer_nvfp4", flashinfer_nvfp4},
          {"flashinfer_nvfp4_token", flashinfer_token},
          {"flashinfer_fp8_to_fp4", flashinfer_fp8_to_fp4},
          {"cutedsl_nvfp4", cutedsl_nvfp4},
          {"cutedsl_nvfp4_token", cutedsl_token},
          {"cutedsl_nvfp4_moe", cutedsl_moe},
          {"cutedsl_fp8_to_fp4", cutedsl_fp8_to_fp4},
          {"modelopt_nvfp4", modelopt_nvfp4},
          {"compressed_tensors_nvfp4", compressed_tensors_nvfp4}};
}

}  // namespace moeref::judge
