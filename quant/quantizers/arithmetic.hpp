#pragma once

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/gpu/approx.hpp"
#include "quant/quantize.hpp"

// What a source's `*`, `/` and comparisons become under one compiler or framework. A quantizer is
// written once, over one of these.

namespace moeref::quantizers {

/// nvcc without -use_fast_math: IEEE 754.
struct PreciseMath {
  static constexpr ElementOp kMultiply = ElementOp::multiply;
  static float mul(float a, float b) { return gpu::canonical(a * b); }
  static float add(float a, float b) { return gpu::canonical(a + b); }
  static float div(float a, float b) { return gpu::canonical(a / b); }
  static float rcp(float a) { return gpu::canonical(1.0f / a); }
  static float max(float a, float b) { return gpu::max_num(a, b); }
  static float min(float a, float b) { return gpu::min_num(a, b); }
  static float exp2(float a) { return gpu::ex2_approx(a); }
  static bool is_zero(float a) { return a == 0.0f; }
};

/// nvcc -use_fast_math: approximate division, subnormals are zero.
struct FastMath {
  static constexpr ElementOp kMultiply = ElementOp::multiply_ftz;
  static float mul(float a, float b) { return gpu::mul_ftz(a, b); }
  static float add(float a, float b) { return gpu::add_ftz(a, b); }
  static float div(float a, float b) { return gpu::div_approx_ftz(a, b); }
  static float rcp(float a) { return gpu::rcp_approx_ftz(a); }
  static float max(float a, float b) { return gpu::max_ftz(a, b); }
  static float min(float a, float b) { return gpu::min_ftz(a, b); }
  static float exp2(float a) { return gpu::ex2_approx_ftz(a); }
  static bool is_zero(float a) { return gpu::flush(a) == 0.0f; }
};

/// Triton: `/` is div.full, nothing is flushed.
struct TritonMath {
  static constexpr ElementOp kMultiply = ElementOp::multiply;
  static float mul(float a, float b) { return gpu::canonical(a * b); }
  static float div(float a, float b) { return gpu::div_full(a, b); }
  static float rcp(float a) { return gpu::div_full(1.0f, a); }
  static float max(float a, float b) { return gpu::max_num(a, b); }
  static float min(float a, float b) { return gpu::min_num(a, b); }
};

inline const OptionInfo kMathOption{
    "math", {"fast", "precise"}, "how the kernel was compiled: fast = -use_fast_math"};

/// Calls function(FastMath{}) or function(PreciseMath{}), as option `math` says.
template <typename Function>
auto with_math(const Options& options, const Function& function) {
  return options.is("math", "fast") ? function(FastMath{}) : function(PreciseMath{});
}

/// PyTorch divides by a Python number on the CPU and multiplies by its rounded reciprocal on CUDA.
/// A number divided by a tensor is the number times the tensor's rounded reciprocal on both.
struct Torch {
  bool cuda = true;
  float by_number(float x, float number) const { return cuda ? x * (1.0f / number) : x / number; }
  static float number_by(float number, float x) { return number * (1.0f / x); }
};

inline const OptionInfo kDeviceOption{
    "device",
    {"cuda", "cpu"},
    "where PyTorch ran: x / number is x * RN(1 / number) on cuda, a division on cpu"};
inline Torch torch_on(const Options& options) { return {options.is("device", "cuda")}; }

/// torch.clamp and torch.maximum: NaN stays.
inline float torch_max(float x, float least) { return x != x || x > least ? x : least; }
inline float torch_clamp(float x, float least, float most) {
  return x != x ? x : std::fmin(std::fmax(x, least), most);
}

inline constexpr float kE4m3Max = 448.0f;
inline constexpr float kE2m1Max = 6.0f;

inline std::uint32_t bits_of(float x) { return gpu::bits_of(x); }
inline std::uint32_t e4m3(float x) { return encode(Format::e4m3, x, EncodePolicy::cuda_satfinite); }
inline std::uint32_t torch_e4m3(float x) { return encode(Format::e4m3, x, EncodePolicy::torch); }
inline float decode_e4m3(std::uint32_t code) { return decode(Format::e4m3, code); }
/// __nv_cvt_float_to_e8m0 toward +infinity, satfinite.
inline std::uint32_t e8m0_up(float x) {
  return encode_e8m0(x, E8M0Rounding::toward_positive, EncodePolicy::cuda_satfinite);
}

/// The exponent of a power of two at or above v as the GPU kernels compute it from the bits:
/// field + (mantissa != 0) - 127. A subnormal gives -126; infinity 128.
inline int exponent_above(float v) {
  const std::uint32_t bits = bits_of(v);
  return static_cast<int>(bits >> 23 & 0xFFu) + ((bits & 0x007F'FFFFu) != 0 ? 1 : 0) - 127;
}
/// (e + 127) << 23 taken for a float: 2^e where the field holds it; 128 gives infinity, -128
/// -infinity.
inline float power_bits(int e) { return gpu::from_bits(static_cast<std::uint32_t>(e + 127) << 23); }
/// 2^e as ldexp has it, subnormals included.
inline float power_of_two(int e) { return std::ldexp(1.0f, e); }

/// The form of FP8 codes with an f32 scale for `rows` x `cols`.
inline QuantizedForm fp8_form(std::int64_t rows, std::int64_t cols) {
  return {.codes = Format::e4m3, .scales = Format::f32, .block_rows = rows, .block_cols = cols};
}
inline QuantizedForm mx_form(Format codes, std::int64_t block = 32) {
  return {.codes = codes, .scales = Format::e8m0, .block_rows = 1, .block_cols = block};
}
/// NVFP4: the global scale divides in FlashInfer and compressed-tensors, multiplies in ModelOpt.
inline QuantizedForm nvfp4_form(GlobalScaleOf global, GlobalScaleRule rule) {
  return {.codes = Format::e2m1,
          .scales = Format::ue4m3,
          .block_rows = 1,
          .block_cols = 16,
          .global = global,
          .global_rule = rule};
}

inline const OptionInfo kEpsOption{"eps", {"X", "1e-10"}, "the least amax"};

/// An option that is a number of columns. Error: 0.
inline std::int64_t columns(const Options& options, std::string_view option) {
  const std::int64_t count = options.integer(option);
  if (count == 0)
    fail(fmt::format("--option {}=0", option), "gives blocks no columns; give 1 or more");
  return count;
}

inline BlockScale f32_scale(float scale, float factor) { return {bits_of(scale), factor}; }

}  // namespace moeref::quantizers
