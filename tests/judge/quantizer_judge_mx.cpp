// The quantizers to MX formats: blocks, mostly of 32, under E8M0 scales.

#include <algorithm>
#include <cmath>

#include "tests/judge/quantizer_recipes.hpp"

namespace moeref::judge {
namespace {

const F32 kPrecise{};

/// The value of an E8M0 code; 0xFF is NaN.
float e8m0_value(std::uint32_t code) {
  return code == 0xFF ? gpu_nan() : power_of_two(static_cast<int>(code) - 127);
}
std::uint8_t e2m1(float y) { return fp4_code(y, Halfway::even, SignOf::bit, 7); }
float clamp_torch(float y, float largest) {
  return is_nan(y) ? gpu_nan() : std::clamp(y, -largest, largest);
}

/// aiter's and torchao's E2M1: a NaN's bits (0x7FFFFFFF) are rounded as a number's, which gives 4.
std::uint8_t e2m1_of_bits(float y) { return fp4_code(y, Halfway::even, SignOf::bit, 4); }

/// bits + half a step of a mantissa of `mantissa_bits`, the mantissa dropped.
std::uint32_t rounded_power_bits(float amax, int mantissa_bits) {
  return (float_bits(amax) + (1u << (22 - mantissa_bits))) & 0xFF80'0000u;
}

Format elements_of(const Setting& setting) {
  if (setting.is("elements", "e2m1")) return Format::e2m1;
  return setting.is("elements", "e4m3") ? Format::e4m3 : Format::e5m2;
}
/// floor(log2(largest)) of the elements, and their mantissa bits.
int largest_exponent(Format elements) { return std::ilogb(largest_of(elements)); }
int mantissa_bits_of(Format elements) {
  return elements == Format::e4m3 ? 3 : elements == Format::e5m2 ? 2 : 1;
}

// --- FlashInfer

Recipe flashinfer_mxfp4(const Setting& setting) {
  const F32 math{.flush = setting.is("math", "fast")};
  return {.block_cols = 32, .block = [math](std::span<const float> x, std::span<const float>) {
            const float v = math.times(amax_of_pairs(x), approximate_reciprocal(6.0f));
            const std::uint32_t scale = e8m0_not_below(v);
            float factor = 0.0f;
            if (!math.is_zero(v)) {
              factor = scale == 0 ? 1.0f : power_of_two(127 - static_cast<int>(scale));
              factor = math.seen(factor);
            }
            return coded(scale, x, [&](float value) { return e2m1(math.times(value, factor)); });
          }};
}

Recipe flashinfer_mxfp8(const Setting& setting) {
  const F32 math{.flush = setting.is("math", "fast")};
  return {.block_cols = 32, .block = [math](std::span<const float> x, std::span<const float>) {
            const float v = math.times(amax_of_pairs(x), approximate_reciprocal(448.0f));
            const std::uint32_t scale = e8m0_not_below(v);
            const float value = e8m0_value(scale);
            const float factor = math.is_zero(value) ? 0.0f : approximate_reciprocal(value);
            return coded(scale, x, [&](float element) {
              const float y = math.smaller(math.times(element, factor), 448.0f);
              return saturating_code(Format::e4m3, math.larger(y, -448.0f));
            });
          }};
}

Recipe flashinfer_mxfp8_host(const Setting&) {
  return {.block_cols = 32, .block = [](std::span<const float> x, std::span<const float>) {
            // std::max(|x|, amax): a NaN replaces amax, and what follows replaces the NaN.
            float amax = 0.0f;
            for (const float value : x) amax = std::fabs(value) < amax ? amax : std::fabs(value);
            const float v = kPrecise.times(amax, constant(1.0 / 448.0));
            std::uint32_t scale = 0;
            if (v != 0.0f) {
              scale = exponent_field(v);
              const bool tiny = scale == 0 && mantissa_field(v) <= 0x40'0000;
              if (mantissa_field(v) > 0 && scale != 0xFE && !tiny) ++scale;
              scale &= 0xFF;  // it is a byte
            }
            const float factor = scale == 0 ? 1.0f : power_of_two(127 - static_cast<int>(scale));
            return coded(scale, x, [&](float value) {
              return saturating_code(Format::e4m3, kPrecise.times(value, factor));
            });
          }};
}

/// The CuTe-DSL twins: 0xFE is never passed, NaN included, and the bits of the reciprocal are made
/// of the exponent, so that those of the codes 0 and 0xFE are zero.
std::uint32_t twin_scale(float v) {
  if (v <= 0.0f) return 0;
  return is_nan(v) ? 0xFE : e8m0_not_below(v);
}
float twin_factor(std::uint32_t scale) {
  return scale == 0 || scale == 0xFE ? 0.0f : power_of_two(127 - static_cast<int>(scale));
}

Recipe cutedsl_mxfp4(const Setting&) {
  return {.block_cols = 32, .block = [](std::span<const float> x, std::span<const float>) {
            const std::uint32_t scale =
                twin_scale(kPrecise.times(amax_of_pairs(x), approximate_reciprocal(6.0f)));
            const float factor = twin_factor(scale);
            return coded(scale, x,
                         [&](float value) { return e2m1(kPrecise.times(value, factor)); });
          }};
}

Recipe cutedsl_mxfp8(const Setting&) {
  return {.block_cols = 32, .block = [](std::span<const float> x, std::span<const float>) {
            const std::uint32_t scale =
                twin_scale(kPrecise.times(amax_of_pairs(x), constant(1.0 / 448.0)));
            const float factor = twin_factor(scale);
            return coded(scale, x, [&](float value) {
              const float y = kPrecise.smaller(kPrecise.times(value, factor), 448.0f);
              return saturating_code(Format::e4m3, kPrecise.larger(y, -448.0f));
            });
          }};
}

// --- SGLang, vLLM, Model-Optimizer: PyTorch

/// torch.exp2 of a whole number in f32: CUDA's is one bit pattern off at -127.
float torch_exp2(bool cuda, float e) {
  if (is_nan(e)) return gpu_nan();
  if (e == infinity()) return e;
  if (cuda && e == -127.0f) return float_of(0x003F'FFFF);
  return power_of_two(static_cast<int>(e));
}

/// uint8 of a float that is a whole number, NaN or infinite.
std::uint32_t torch_byte(bool cuda, float x) {
  if (is_nan(x)) return 0;
  if (x == infinity()) return cuda ? 255 : 0;
  return static_cast<std::uint32_t>(x);
}

/// torch.maximum
float maximum(float a, float b) { return is_nan(a) || is_nan(b) ? gpu_nan() : std::max(a, b); }

/// ModelOpt's MXFP4, in f32, and SGLang's copy of it, in bf16.
Recipe torch_mxfp4(const Setting& setting, bool in_bf16) {
  const Format dtype = in_bf16 ? Format::bf16 : Format::f32;
  const bool cuda = setting.is("device", "cuda");
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            std::vector<float> values;
            for (const float value : x) values.push_back(in_dtype(dtype, value));
            const float sixth = in_dtype(dtype, torch_over(setting, amax_or_nan(values), 6.0));
            const float e = std::ceil(maximum(log2_in(dtype, sixth), -127.0f));
            const float divisor = in_dtype(dtype, torch_exp2(cuda, e));
            return coded(torch_byte(cuda, kPrecise.plus(e, 127.0f)), values, [&](float value) {
              const float y = in_dtype(dtype, kPrecise.over(value, divisor));
              return fp4_code(y, Halfway::toward_zero, SignOf::not_above_zero, 8);
            });
          }};
}

Recipe sglang_mxfp4(const Setting& setting) { return torch_mxfp4(setting, true); }
Recipe modelopt_mxfp4(const Setting& setting) { return torch_mxfp4(setting, false); }

Recipe modelopt_mxfp8(const Setting& setting) {
  const bool cuda = setting.is("device", "cuda");
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            const float v = torch_over(setting, amax_or_nan(x), 448.0);
            const float e = v > 0.0f ? std::ceil(log2_in(Format::f32, v)) : -127.0f;
            const int exponent = static_cast<int>(std::clamp(e, -127.0f, 127.0f));
            const float factor = torch_exp2(cuda, static_cast<float>(-exponent));
            return coded(static_cast<std::uint32_t>(exponent + 127), x, [&](float value) {
              return torch_code(Format::e4m3, clamp_torch(kPrecise.times(value, factor), 448.0f));
            });
          }};
}

Recipe vllm_mxfp8(const Setting&) {
  return {.block_cols = 32, .block = [](std::span<const float> x, std::span<const float>) {
            const float amax = maximum(amax_or_nan(x), 0x1p-126f);
            const float biased = kPrecise.plus(std::floor(log2_in(Format::f32, amax)), 127.0f);
            const float clamped = is_nan(biased) ? biased : std::clamp(biased, 0.0f, 254.0f);
            const float divisor = torch_exp2(true, kPrecise.minus(clamped, 127.0f));
            return coded(torch_byte(true, clamped), x, [&](float value) {
              return torch_code(Format::e4m3, kPrecise.over(value, divisor));
            });
          }};
}

Recipe vllm_mxfp4(const Setting&) {
  return {.block_cols = 32, .block = [](std::span<const float> x, std::span<const float>) {
            const float amax = amax_of_pairs(x);
            const std::uint32_t bits = rounded_power_bits(amax, 1);
            const int scale = std::clamp(static_cast<int>(bits >> 23 & 255) - 2, 0, 254);
            const float factor = scale == 0 ? 0.0f : power_of_two(127 - scale);
            return coded(static_cast<std::uint32_t>(scale), x,
                         [&](float value) { return e2m1(kPrecise.times(value, factor)); });
          }};
}

// --- compressed-tensors

Recipe compressed_tensors_mx(const Setting& setting, Format elements) {
  const Format dtype = setting.input;
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            // amax in the numbers' own bits, half a step of an FP4 mantissa above.
            const int mantissa = dtype == Format::bf16 ? 7 : dtype == Format::f16 ? 10 : 23;
            const std::uint32_t width = dtype == Format::f32 ? 0xFFFF'FFFFu : 0xFFFFu;
            const std::uint32_t bits =
                ((bits_in(dtype, amax_or_nan(x)) + (1u << (mantissa - 2))) & width) >>
                mantissa << mantissa;
            const float power = value_of(dtype, bits);
            const int offset = largest_exponent(elements);
            float scale = 0.0f;
            std::uint32_t stored = 0;
            if (power == infinity()) {
              // Byte 255 is decoded as infinity; its exponent, as int32, is 0x7FFFFFFF.
              scale = infinity();
              stored = (127u + 0x7FFF'FFFFu) & 0xFF;
            } else {
              const int byte =
                  power == 0.0f ? 0 : std::clamp(127 + std::ilogb(power) - offset, 0, 255);
              scale = in_dtype(dtype, power_of_two(byte - 127));
              if (scale == 0.0f) scale = 1.0f;
              stored = static_cast<std::uint32_t>(127 + std::ilogb(scale));
            }
            return coded(stored, x, [&](float value) -> std::uint32_t {
              float y = in_dtype(dtype, kPrecise.over(value, scale));
              if (elements == Format::e2m1 || setting.is("zero_point", "zero")) {
                y = kPrecise.plus(y, 0.0f);
              }
              y = clamp_torch(y, largest_of(elements));
              if (elements == Format::e4m3) return torch_code(elements, y);
              return fp4_code(y, Halfway::even, SignOf::below_zero, 0);
            });
          }};
}

Recipe compressed_tensors_mxfp4(const Setting& setting) {
  return compressed_tensors_mx(setting, Format::e2m1);
}
Recipe compressed_tensors_mxfp8(const Setting& setting) {
  return compressed_tensors_mx(setting, Format::e4m3);
}

// --- the rules of OCP, NVIDIA, torchao, Quark, microxcaling

std::uint32_t saturating(Format elements, float y) {
  return elements == Format::e2m1 ? e2m1(y) : saturating_code(elements, y);
}

Recipe ocp_mx(const Setting& setting) {
  const Format elements = elements_of(setting);
  return {.block_cols = setting.integer("block"),
          .block = [=](std::span<const float> x, std::span<const float>) {
            // As aiter's RoundDown: the field of amax times 2^-emax, rounded if it is subnormal.
            const float unit = power_of_two(-largest_exponent(elements));
            const std::uint32_t scale = exponent_field(kPrecise.times(amax_or_nan(x), unit));
            return coded(scale, x, [&](float value) -> std::uint32_t {
              const float y = kPrecise.over(value, e8m0_value(scale));
              // Of E5M2's NaN codes moeref takes the one of the host encoders.
              if (is_nan(y) && elements == Format::e5m2) return 0x7E;
              return saturating(elements, y);
            });
          }};
}

Recipe nvidia_mx(const Setting& setting) {
  const Format elements = elements_of(setting);
  return {.block_cols = setting.integer("block"),
          .block = [=](std::span<const float> x, std::span<const float>) {
            const std::uint32_t scale =
                e8m0_not_below(kPrecise.over(amax_of_pairs(x), largest_of(elements)));
            return coded(scale, x, [&](float value) {
              return saturating(elements, kPrecise.over(value, e8m0_value(scale)));
            });
          }};
}

Recipe torchao_mx(const Setting& setting) {
  const Format elements = elements_of(setting);
  const std::string rule = setting["rule"];
  return {.block_cols = setting.integer("block"),
          .block = [=](std::span<const float> x, std::span<const float>) {
            const float amax = amax_or_nan(x);
            const float largest = largest_of(elements);
            int byte = 255;
            if (rule == "rceil") {
              const float v = kPrecise.times(amax, constant(1.0 / static_cast<double>(largest)));
              if (exponent_field(v) != 255) {
                byte = exponent_rounded_up(v);
                if (exponent_field(v) == 0 && mantissa_field(v) <= 0x40'0000) byte = 0;
              }
            } else if (exponent_field(amax) != 255) {
              float power = amax;
              if (rule == "even") {
                power = float_of(rounded_power_bits(amax, mantissa_bits_of(elements)));
              }
              int e = static_cast<int>(exponent_field(power)) - 127;
              if (rule == "ceil" && mantissa_field(power) != 0) ++e;
              byte = exponent_field(power) == 255
                         ? 255
                         : std::clamp(e - largest_exponent(elements), -127, 128) + 127;
            }
            const float factor = byte == 255 ? gpu_nan() : power_of_two(127 - byte);
            return coded(static_cast<std::uint32_t>(byte), x, [&](float value) -> std::uint32_t {
              float y = kPrecise.times(value, factor);
              if (rule != "rceil") y = clamp_torch(y, largest);
              return elements == Format::e2m1 ? e2m1_of_bits(y) : torch_code(elements, y);
            });
          }};
}

Recipe quark_mx(const Setting& setting) {
  const Format elements = elements_of(setting);
  return {.block_cols = setting.integer("block"),
          .block = [=](std::span<const float> x, std::span<const float>) {
            const float amax = amax_or_nan(x);
            std::uint32_t scale = 0xFF;
            if (!is_nan(amax)) {
              float power = float_of(rounded_power_bits(amax, mantissa_bits_of(elements)));
              if (power == 0.0f) power = 0x1p-126f;
              const int e = power == infinity() ? 255 : std::ilogb(power);
              scale = static_cast<std::uint32_t>(
                  std::clamp(e - largest_exponent(elements), -127, 127) + 127);
            }
            return coded(scale, x, [&](float value) {
              return saturating(elements, kPrecise.over(value, e8m0_value(scale)));
            });
          }};
}

Recipe quark_triton_mxfp4(const Setting& setting) {
  const std::string rule = setting["rule"];
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            const float amax = amax_of_pairs(x);
            const float sixth = triton_quotient(amax, 6.0f);
            std::uint32_t bits = 0;
            if (rule == "rceil") {
              bits = (float_bits(sixth) + 0x7F'FFFFu) & 0x7F80'0000u;
            } else if (rule == "floor") {
              bits = float_bits(sixth) & 0x7F80'0000u;
            } else {
              float power = float_of(rounded_power_bits(amax, 1));
              if (power == 0.0f) power = 0x1p-126f;
              const int e = power == infinity() ? 255 : std::ilogb(power);
              bits = float_bits(power_of_two(std::clamp(e - 2, -127, 127)));
            }
            const float scale = float_of(bits);
            const float factor = scale == 0.0f ? 0.0f : triton_quotient(1.0f, scale);
            const auto stored = scale == 0.0f ? 0u : bits >> 23 & 255;
            return coded(stored, x, [&](float value) {
              return fp4_code(kPrecise.times(value, factor), Halfway::away, SignOf::bit, 7);
            });
          }};
}

/// One element of microxcaling: its value on the grid of the format, by f32 steps.
float microxcaling_value(Format elements, const std::string& rounding, float y) {
  if (is_nan(y) || std::fabs(y) == infinity()) return y;
  const float magnitude = std::fabs(y);
  const int bias = elements == Format::e4m3 ? 7 : elements == Format::e5m2 ? 15 : 1;
  const float log = std::floor(log2_in(Format::f32, magnitude == 0.0f ? 1.0f : magnitude));
  const int exponent = std::max(static_cast<int>(log), 1 - bias);
  const int shift = mantissa_bits_of(elements) - exponent;
  const float digits = kPrecise.times(magnitude, power_of_two(shift));
  float whole = std::floor(digits);
  if (rounding != "floor") {
    whole = std::floor(kPrecise.plus(digits, 0.5f));
    if (rounding == "even" && std::fmod(digits - 0.5f, 2.0f) == 0.0f) whole -= 1.0f;
  }
  const float sign = y > 0.0f ? 1.0f : y < 0.0f ? -1.0f : 0.0f;
  const float value = kPrecise.times(kPrecise.times(sign, whole), power_of_two(-shift));
  return std::clamp(value, -largest_of(elements), largest_of(elements));
}

Recipe microxcaling(const Setting& setting) {
  const Format elements = elements_of(setting);
  const std::string rounding = setting["rounding"];
  const bool flush = setting.is("flush", "on");
  return {.block_cols = setting.integer("block"),
          .block = [=](std::span<const float> x, std::span<const float>) {
            const float amax = amax_or_nan(x);
            const float shared = std::floor(log2_in(Format::f32, amax == 0.0f ? 0x1p-126f : amax));
            float e = kPrecise.minus(shared, static_cast<float>(largest_exponent(elements)));
            if (e > 127.0f) e = gpu_nan();
            if (e < -127.0f) e = -127.0f;
            const std::uint32_t scale = is_nan(e) ? 0xFF : static_cast<std::uint32_t>(e + 127.0f);
            const bool flushed = flush && shared <= -127.0f;
            return coded(scale, x, [&](float value) {
              if (flushed) value = kPrecise.times(value, 0.0f);
              const float y =
                  microxcaling_value(elements, rounding, kPrecise.over(value, e8m0_value(scale)));
              return saturating(elements, y);
            });
          }};
}

// --- aiter

/// The Triton kernels: e = floor(log2 of amax rounded to a power of two) - offset.
int aiter_exponent(float amax, int offset) {
  const float power = float_of(rounded_power_bits(amax, 1));
  if (power == infinity()) return 127;
  if (power == 0.0f) return -127;
  return std::clamp(std::ilogb(power) - offset, -127, 127);
}

Recipe aiter_triton(const Setting& setting, Format elements) {
  const bool nvidia = setting.is("device", "nvidia");
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            const int e = aiter_exponent(amax_of_pairs(x), largest_exponent(elements));
            const float factor = nvidia && e == 127 ? 0.0f : power_of_two(-e);
            const int stored = 127 + (nvidia && elements == Format::e2m1 ? std::max(e, 0) : e);
            return coded(static_cast<std::uint32_t>(stored), x, [&](float value) -> std::uint32_t {
              const float y = kPrecise.times(value, factor);
              return elements == Format::e2m1 ? e2m1_of_bits(y) : saturating_code(elements, y);
            });
          }};
}

Recipe aiter_triton_mxfp4(const Setting& setting) { return aiter_triton(setting, Format::e2m1); }
Recipe aiter_triton_mxfp8(const Setting& setting) { return aiter_triton(setting, Format::e4m3); }

Recipe aiter_hip_mxfp4(const Setting& setting) {
  const std::string rule = setting["rule"];
  const bool weights = setting.is("kernel", "weights");
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            const float amax = amax_of_numbers(x, weights ? 0.0f : constant(1e-10));
            std::uint32_t scale = 0;
            if (rule == "even" && weights) {
              scale = static_cast<std::uint32_t>(aiter_exponent(amax, 2) + 127);
            } else if (rule == "even") {
              // The header takes 2 from the field, also from that of infinity.
              scale = static_cast<std::uint32_t>(
                  std::max(0, static_cast<int>(rounded_power_bits(amax, 1) >> 23) - 2));
            } else {
              const double over = rule == "rceil" ? 1.0 / 6.0 : 0.25;
              const float v = kPrecise.times(amax, constant(over));
              scale = exponent_field(v);
              if (rule != "floor" && scale < 255 && mantissa_field(v) != 0) ++scale;
            }
            // The hardware divides by the power of two that the byte says.
            return coded(scale, x, [&](float value) {
              return e2m1(kPrecise.over(value, e8m0_value(scale)));
            });
          }};
}

Recipe aiter_torch_mxfp4(const Setting& setting) {
  return {.block_cols = 32, .block = [=](std::span<const float> x, std::span<const float>) {
            const int byte =
                std::min(exponent_rounded_up(torch_over(setting, amax_or_nan(x), 6.0)), 255);
            const auto scale = static_cast<std::uint32_t>(byte);
            return coded(scale, x, [&](float value) {
              return e2m1_of_bits(kPrecise.over(value, e8m0_value(scale)));
            });
          }};
}

}  // namespace

RecipeTable mx_recipes() {
  return {{"sglang_mxfp4", sglang_mxfp4},
          {"vllm_mxfp4", vllm_mxfp4},
          {"vllm_mxfp8", vllm_mxfp8},
          {"flashinfer_mxfp4", flashinfer_mxfp4},
          {"flashinfer_mxfp8", flashinfer_mxfp8},
          {"flashinfer_mxfp8_host", flashinfer_mxfp8_host},
          {"cutedsl_mxfp4", cutedsl_mxfp4},
          {"cutedsl_mxfp8", cutedsl_mxfp8},
          {"modelopt_mxfp4", modelopt_mxfp4},
          {"modelopt_mxfp8", modelopt_mxfp8},
          {"compressed_tensors_mxfp4", compressed_tensors_mxfp4},
          {"compressed_tensors_mxfp8", compressed_tensors_mxfp8},
          {"ocp_mx", ocp_mx},
          {"nvidia_mx", nvidia_mx},
          {"torchao_mx", torchao_mx},
          {"quark_mx", quark_mx},
          {"quark_triton_mxfp4", quark_triton_mxfp4},
          {"microxcaling", microxcaling},
          {"aiter_triton_mxfp4", aiter_triton_mxfp4},
          {"aiter_triton_mxfp8", aiter_triton_mxfp8},
          {"aiter_hip_mxfp4", aiter_hip_mxfp4},
          {"aiter_torch_mxfp4", aiter_torch_mxfp4}};
}

}  // namespace moeref::judge
