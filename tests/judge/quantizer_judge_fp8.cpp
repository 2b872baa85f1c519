// The quantizers to E4M3 and E4M3FNUZ with f32 scales.

#include <algorithm>
#include <cmath>

#include "tests/judge/quantizer_recipes.hpp"

namespace moeref::judge {
namespace {

const F32 kPrecise{};
const F32 kFlushing{.flush = true};

float one_over_448() { return constant(1.0 / 448.0); }
/// min first, then max: NaN gives +448.
float clamp_high_first(const F32& math, float y) {
  return math.larger(math.smaller(y, 448.0f), -448.0f);
}
/// max first, then min: NaN gives -448.
float clamp_low_first(const F32& math, float y) {
  return math.smaller(math.larger(y, -448.0f), 448.0f);
}
/// torch.clamp: NaN stays.
float clamp_torch(float y) { return is_nan(y) ? y : clamp_high_first(kPrecise, y); }
/// torch.clamp(min=)
float at_least(float x, float low) { return is_nan(x) ? gpu_nan() : std::max(x, low); }

std::uint32_t e4m3(float y) { return saturating_code(Format::e4m3, y); }
std::uint32_t torch_e4m3(float y) { return torch_code(Format::e4m3, y); }

const F32& math_of(const Setting& setting) {
  return setting.is("math", "fast") ? kFlushing : kPrecise;
}

// --- sgl-kernel, vLLM: one scale for the tensor or the token

Recipe sglang_static(const Setting& setting) {
  const float s = setting.given;
  Recipe recipe{.block_rows = 0, .global = GlobalOf::given};
  if (setting.is("math", "triton")) {
    const float m = triton_quotient(1.0f, s);
    recipe.block = [s, m](std::span<const float> block, std::span<const float>) {
      return coded(float_bits(s), block,
                   [m](float x) { return e4m3(clamp_low_first(kPrecise, kPrecise.times(x, m))); });
    };
    return recipe;
  }
  const F32 math = math_of(setting);
  const float m = reciprocal(math, s);
  recipe.block = [s, m, math](std::span<const float> block, std::span<const float>) {
    return coded(float_bits(s), block,
                 [&](float x) { return e4m3(clamp_high_first(math, math.times(x, m))); });
  };
  return recipe;
}

/// The scale amax / 448 of a whole tensor or row. `zero_guard`: its reciprocal is 0 if it is 0.
Recipe sglang_dynamic(const Setting& setting, std::int64_t block_rows, bool zero_guard) {
  const F32 math = math_of(setting);
  return {.block_rows = block_rows,
          .block = [math, zero_guard](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block);
            const float s = math.flush ? math.times(amax, one_over_448()) : math.over(amax, 448.0f);
            const float m = zero_guard && math.is_zero(s) ? 0.0f : reciprocal(math, s);
            return coded(float_bits(s), block,
                         [&](float x) { return e4m3(clamp_high_first(math, math.times(x, m))); });
          }};
}

Recipe sglang_tensor(const Setting& setting) { return sglang_dynamic(setting, 0, false); }
Recipe sglang_token(const Setting& setting) {
  return sglang_dynamic(setting, 1, setting.is("kernel", "warp"));
}

Recipe vllm_token(const Setting& setting) {
  const float bound = setting.number("upper_bound");
  return {.block = [bound](std::span<const float> block, std::span<const float>) {
    float amax = amax_of_numbers(block);
    if (bound != 0.0f) amax = std::min(amax, bound);
    const float s = std::max(kPrecise.over(amax, 448.0f), constant(1.0 / (448.0 * 512.0)));
    return coded(float_bits(s), block,
                 [s](float x) { return e4m3(clamp_high_first(kPrecise, kPrecise.over(x, s))); });
  }};
}

// --- a scale per group of columns of a token

/// Scale and multiplier that are powers of two, by exponent arithmetic: with an infinite amax the
/// exponent is 128, and the multiplier's bits are those of -infinity.
struct PowerScale {
  float scale;
  float multiplier;
};
PowerScale power_scale(float v) {
  const int e = exponent_rounded_up(v) - 127;
  return {float_of(static_cast<std::uint32_t>(e + 127) << 23),
          float_of(static_cast<std::uint32_t>(-e + 127) << 23)};
}

Recipe sglang_group(const Setting& setting) {
  const float eps = setting.number("eps");
  const F32 math = math_of(setting);
  const std::string version = setting["version"];
  const bool power = setting.is("scale", "ue8m0");
  const bool power_stored = setting.is("scale", "ue8m0_rowmajor");
  const Format input = setting.input;
  return {.block_cols = setting.integer("group"),
          .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block, eps);
            const float product = math.times(amax, one_over_448());
            if (version == "v0") {
              const float s = math.flush ? product : math.over(amax, 448.0f);
              return coded(float_bits(s), block, [&](float x) {
                return e4m3(clamp_low_first(math, quotient(math, x, s)));
              });
            }
            float stored = product;
            float m = version == "v3" ? math.times(448.0f, reciprocal(math, amax))
                                      : quotient(math, 448.0f, amax);
            if (power || power_stored) stored = power_scale(product).scale;
            if (power) m = power_scale(product).multiplier;
            return coded(float_bits(stored), block, [&](float x) {
              if (version == "v3" && power && input != Format::f32) {
                // __hmul2 in the type of the numbers, which does not flush.
                return e4m3(in_dtype(input, kPrecise.times(x, in_dtype(input, m))));
              }
              const float y = math.times(x, m);
              return e4m3(version == "v2" ? clamp_low_first(math, y) : y);
            });
          }};
}

Recipe sglang_triton_group(const Setting& setting) {
  const float eps = setting.number("eps");
  const bool multiplies = setting.is("form", "mulinv");
  const bool power = setting.is("scale", "ue8m0");
  return {.block_cols = setting.integer("group"),
          .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block, eps);
            float s = triton_quotient(amax, 448.0f);
            if (power) {
              const float e = std::ceil(log2_in(Format::f32, s));
              s = e == infinity() ? e : power_of_two(static_cast<int>(e));
            }
            const float m = triton_quotient(1.0f, s);
            return coded(float_bits(s), block, [&](float x) {
              return e4m3(clamp_low_first(
                  kPrecise, multiplies ? kPrecise.times(x, m) : triton_quotient(x, s)));
            });
          }};
}

Recipe sglang_hopper_moe(const Setting&) {
  return {.block_cols = 128, .block = [](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block, constant(1e-4));
            const float m = triton_quotient(448.0f, amax);
            return coded(float_bits(triton_quotient(amax, 448.0f)), block,
                         [m](float x) { return e4m3(kPrecise.times(x, m)); });
          }};
}

Recipe vllm_group(const Setting& setting) {
  const float eps = setting.number("eps");
  const bool power = setting.is("scale", "ue8m0");
  const bool bits = setting.is("kernel", "registers");
  return {.block_cols = setting.integer("group"),
          .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block, eps);
            float s = kPrecise.over(amax, 448.0f);
            if (power) {
              s = std::max(s, constant(1e-10));
              if (bits) {
                s = float_of(static_cast<std::uint32_t>(exponent_rounded_up(s)) << 23);
              } else {
                const float e = std::ceil(log2_in(Format::f32, s));
                s = e == infinity() ? e : power_of_two(static_cast<int>(e));
              }
            }
            const float m = kPrecise.over(1.0f, s);
            return coded(float_bits(s), block, [&](float x) {
              return e4m3(clamp_low_first(
                  kPrecise, power && bits ? kPrecise.times(x, m) : kPrecise.over(x, s)));
            });
          }};
}

Recipe deepep_group(const Setting& setting) {
  const bool power = setting.is("scale", "ue8m0");
  return {.block_cols = 128, .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block, constant(1e-4));
            const float product = kPrecise.times(amax, one_over_448());
            const float s = power ? power_scale(product).scale : product;
            const float m = power ? power_scale(product).multiplier : kPrecise.over(448.0f, amax);
            return coded(float_bits(s), block, [m](float x) { return e4m3(kPrecise.times(x, m)); });
          }};
}

Recipe deepep_torch_group(const Setting& setting) {
  const bool compiled = setting.is("torch", "compiled");
  return {.block_cols = 128, .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = at_least(amax_or_nan(block), constant(1e-4));
            const float s = kPrecise.times(amax, one_over_448());
            // Compiled code divides as Triton does.
            const float inverse =
                compiled ? triton_quotient(1.0f, amax) : kPrecise.over(1.0f, amax);
            const float m = kPrecise.times(inverse, 448.0f);
            return coded(float_bits(s), block,
                         [m](float x) { return torch_e4m3(kPrecise.times(x, m)); });
          }};
}

/// DeepGEMM's: at least 2^-126, at most 2^127.
float deepgemm_power(float s) {
  const int field = exponent_rounded_up(s);
  return power_of_two(std::clamp(field, 1, 254) - 127);
}

Recipe deepgemm(const Setting& setting, std::int64_t block_rows, double largest) {
  const bool power = setting.is("scale", "ue8m0");
  return {.block_rows = block_rows,
          .block_cols = setting.integer("group"),
          .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = at_least(amax_or_nan(block), constant(1e-4));
            float s = torch_over(setting, amax, largest);
            if (power) s = deepgemm_power(s);
            const float m = kPrecise.over(1.0f, s);
            return coded(float_bits(s), block, [&](float x) {
              const float y = kPrecise.times(x, m);
              if (largest == 448.0) return torch_e4m3(y);
              return std::uint32_t{
                  fp4_code(y, Halfway::toward_zero, SignOf::below_zero_unless_code_0, 0)};
            });
          }};
}

Recipe deepgemm_token(const Setting& setting) { return deepgemm(setting, 1, 448.0); }
Recipe deepgemm_block(const Setting& setting) { return deepgemm(setting, 128, 448.0); }
Recipe deepgemm_fp4(const Setting& setting) { return deepgemm(setting, 1, 6.0); }

// --- FlashInfer, TensorRT-LLM

Recipe flashinfer_group_sm90(const Setting&) {
  return {.block_cols = 128, .block = [](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block);
            // The test for zero is in the type of the numbers: subnormals are none.
            const float m = amax != 0.0f ? quotient(kFlushing, 448.0f, amax) : 1.0f;
            return coded(float_bits(reciprocal(kFlushing, m)), block,
                         [m](float x) { return e4m3(kFlushing.times(x, m)); });
          }};
}

Recipe flashinfer_token_moe(const Setting&) {
  return {.block = [](std::span<const float> block, std::span<const float>) {
    const float amax = amax_of_numbers(block);
    const float m = kFlushing.seen(amax) > 0.0f ? quotient(kFlushing, 448.0f, amax) : 1.0f;
    return coded(float_bits(kFlushing.times(reciprocal(kFlushing, m), 1.0f)), block,
                 [m](float x) { return e4m3(kFlushing.times(m, x)); });
  }};
}

/// The calibrated factor stays in the GEMM's alpha: the scale of the block says nothing.
Recipe flashinfer_static_moe(const Setting& setting) {
  const float g = setting.given;
  return {.block_rows = 0,
          .block =
              [g](std::span<const float> block, std::span<const float>) {
                return coded(float_bits(1.0f), block,
                             [g](float x) { return e4m3(kFlushing.times(g, x)); });
              },
          .global = GlobalOf::given};
}

Recipe trtllm_group(const Setting& setting) {
  const F32 math = math_of(setting);
  return {.block_cols = 128, .block = [math](std::span<const float> block, std::span<const float>) {
            const float amax = amax_of_numbers(block);
            const float quotient_448 =
                math.flush ? math.times(amax, one_over_448()) : math.over(amax, 448.0f);
            const float s = math.larger(quotient_448, 0x1p-126f);
            return coded(float_bits(s), block, [&](float x) { return e4m3(quotient(math, x, s)); });
          }};
}

Recipe trtllm_token(const Setting& setting) {
  const F32 math = math_of(setting);
  const bool row_wise = setting.is("scales", "row_wise");
  const Format input = setting.input;
  return {.block = [=](std::span<const float> block, std::span<const float>) {
    // -FLT_MAX and FLT_MAX in the type of the numbers are infinities of bf16 and f16.
    const float high = in_dtype(input, 0x1.fffffep127f);
    std::vector<float> clamped;
    for (const float x : block) {
      clamped.push_back(kPrecise.smaller(kPrecise.larger(x, -high), high));
    }
    const float amax = amax_of_numbers(clamped, in_dtype(input, constant(1e-6)));
    const float least = constant(1.0 / (448.0 * 512.0));
    float s = math.flush ? math.times(amax, one_over_448()) : math.over(amax, 448.0f);
    float m = quotient(math, 448.0f, amax);
    if (row_wise) {
      s = std::max(s, least);
      m = math.smaller(m, 448.0f * 512.0f);
    }
    return coded(float_bits(s), clamped,
                 [&](float x) { return e4m3(in_dtype(Format::bf16, math.times(x, m))); });
  }};
}

// --- PyTorch helpers and weights

Recipe sglang_input(const Setting&) {
  return {.block_rows = 0, .block = [](std::span<const float> block, std::span<const float>) {
            const float amax = at_least(amax_or_nan(block), constant(1e-12));
            const float scale = kPrecise.times(kPrecise.over(1.0f, amax), 448.0f);
            return coded(float_bits(kPrecise.over(1.0f, scale)), block, [scale](float x) {
              return torch_e4m3(clamp_torch(kPrecise.times(x, scale)));
            });
          }};
}

void set_blocks(const Setting& setting, std::string_view option, Recipe& recipe) {
  recipe.block_rows = setting.is(option, "tensor") ? 0 : setting.is(option, "channel") ? 1 : 128;
  recipe.block_cols = setting.is(option, "block") ? 128 : 0;
}

Recipe modelopt_fp8(const Setting& setting) {
  Recipe recipe{.block = [setting](std::span<const float> block, std::span<const float>) {
    const Format dtype = setting.input;
    const float s = in_dtype(dtype, torch_over(setting, amax_or_nan(block), 448.0));
    return coded(float_bits(s), block,
                 [&](float x) { return torch_e4m3(in_dtype(dtype, kPrecise.over(x, s))); });
  }};
  set_blocks(setting, "granularity", recipe);
  return recipe;
}

Recipe compressed_tensors_fp8(const Setting& setting) {
  Recipe recipe{.block = [setting](std::span<const float> block, std::span<const float>) {
    const Format dtype = setting.input;
    float s = in_dtype(dtype, torch_over(setting, amax_or_nan(block), 448.0));
    if (s == 0.0f) {
      s = dtype == Format::bf16 ? 0x1p-7f : dtype == Format::f16 ? 0x1p-10f : 0x1p-23f;
    }
    return coded(float_bits(s), block, [&](float x) {
      float y = in_dtype(dtype, kPrecise.over(x, s));
      if (setting.is("zero_point", "zero")) y = kPrecise.plus(y, 0.0f);
      return torch_e4m3(clamp_torch(y));
    });
  }};
  set_blocks(setting, "strategy", recipe);
  return recipe;
}

// --- aiter

Recipe aiter_hip_group(const Setting& setting) {
  const Format elements = setting.is("elements", "e4m3") ? Format::e4m3 : Format::e4m3fnuz;
  const bool power = setting.is("scale", "ue8m0");
  return {.block_cols = setting.integer("group"),
          .block = [=](std::span<const float> block, std::span<const float>) {
            const float largest = largest_of(elements);
            const float amax = amax_of_numbers(block, constant(1e-10));
            float s = kPrecise.times(amax, constant(1.0 / static_cast<double>(largest)));
            std::uint32_t stored = float_bits(s);
            if (power) {
              stored = static_cast<std::uint32_t>(exponent_rounded_up(s));
              s = float_of(stored << 23);
            }
            const float m = kPrecise.over(1.0f, s);
            return coded(stored, block, [&](float x) {
              // v_med3_f32: a NaN gives the smallest of the others.
              const float y = kPrecise.times(x, m);
              return saturating_code(elements,
                                     is_nan(y) ? -largest : std::clamp(y, -largest, largest));
            });
          }};
}

Recipe aiter_torch(const Setting& setting, std::int64_t block_rows, bool zero_guard) {
  const Format elements = setting.is("elements", "e4m3") ? Format::e4m3 : Format::e4m3fnuz;
  return {.block_rows = block_rows,
          .block = [=](std::span<const float> block, std::span<const float>) {
            float s =
                torch_over(setting, amax_or_nan(block), static_cast<double>(largest_of(elements)));
            if (zero_guard && s == 0.0f) s = 1.0f;
            return coded(float_bits(s), block,
                         [&](float x) { return torch_code(elements, kPrecise.over(x, s)); });
          }};
}

Recipe aiter_torch_token(const Setting& setting) { return aiter_torch(setting, 1, true); }
Recipe aiter_torch_tensor(const Setting& setting) { return aiter_torch(setting, 0, false); }

Recipe aiter_torch_1x32(const Setting& setting) {
  const bool power = setting.is("scale", "ue8m0");
  return {.block_cols = 32, .block = [=](std::span<const float> block, std::span<const float>) {
            const float amax = amax_or_nan(block);
            float s = torch_over(setting, amax, 256.0);
            std::uint32_t stored = float_bits(s);
            if (power) {
              const float v = torch_over(setting, amax, 448.0);
              stored = static_cast<std::uint32_t>(std::min(exponent_rounded_up(v), 255));
              s = stored == 255 ? gpu_nan() : power_of_two(static_cast<int>(stored) - 127);
            }
            return coded(stored, block, [&](float x) { return torch_e4m3(kPrecise.over(x, s)); });
          }};
}

}  // namespace

RecipeTable fp8_recipes() {
  return {{"sglang_fp8_static", sglang_static},
          {"sglang_fp8_tensor", sglang_tensor},
          {"sglang_fp8_token", sglang_token},
          {"sglang_fp8_group", sglang_group},
          {"sglang_triton_fp8_group", sglang_triton_group},
          {"sglang_fp8_hopper_moe", sglang_hopper_moe},
          {"sglang_fp8_input", sglang_input},
          {"vllm_fp8_group", vllm_group},
          {"vllm_fp8_token", vllm_token},
          {"deepep_fp8_group", deepep_group},
          {"deepep_torch_fp8_group", deepep_torch_group},
          {"deepgemm_fp8_token", deepgemm_token},
          {"deepgemm_fp8_block", deepgemm_block},
          {"deepgemm_fp4_token", deepgemm_fp4},
          {"flashinfer_fp8_group_sm90", flashinfer_group_sm90},
          {"flashinfer_fp8_static_moe", flashinfer_static_moe},
          {"flashinfer_fp8_token_moe", flashinfer_token_moe},
          {"trtllm_fp8_group", trtllm_group},
          {"trtllm_fp8_token", trtllm_token},
          {"modelopt_fp8", modelopt_fp8},
          {"compressed_tensors_fp8", compressed_tensors_fp8},
          {"aiter_hip_fp8_group", aiter_hip_group},
          {"aiter_torch_fp8_token", aiter_torch_token},
          {"aiter_torch_fp8_tensor", aiter_torch_tensor},
          {"aiter_torch_fp8_1x32", aiter_torch_1x32}};
}

}  // namespace moeref::judge
