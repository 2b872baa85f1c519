#pragma once

#include <algorithm>
#include <array>

#include "quant/quantizers/arithmetic.hpp"

// What FlashInfer's CUDA and CuTe-DSL kernels have in common: reciprocals, the output scale of an
// NVFP4 block, "4 over 6".

namespace moeref::quantizers {

inline const OptionInfo kQuantMathOption{
    "quant_math", {"fast", "exact"}, "exact = FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH=1"};
inline const OptionInfo kE4m3MaxOption{
    "e4m3_max", {"448", "256"}, "256 = FLASHINFER_NVFP4_4OVER6_E4M3_USE_256=1"};
inline const OptionInfo kFourOverSixOption{
    "four_over_six", {"off", "on"}, "FLASHINFER_NVFP4_4OVER6=1"};
inline const OptionInfo kErrorOption{
    "error", {"mae", "mse"}, "of four_over_six: sum of magnitudes or of squares"};
inline const OptionInfo kErrorMathOption{
    "error_math",
    {"exact", "fast"},
    "of four_over_six: fast compares codes with x * g (FLASHINFER_NVFP4_4OVER6_ERR_USE_FAST_MATH)"};
inline float rcp_a(float x) { return gpu::rcp_approx_ftz(x); }
/// `__frcp_rn`: rcp.rn, with fast math rcp.rn.ftz.
template <typename Math>
float rcp_rn(float x);
template <>
inline float rcp_rn<PreciseMath>(float x) {
  return gpu::canonical(1.0f / x);
}
template <>
inline float rcp_rn<FastMath>(float x) {
  return gpu::flush(gpu::canonical(1.0f / gpu::flush(x)));
}
/// `__fdiv_rn`.
template <typename Math>
float div_rn(float a, float b);
template <>
inline float div_rn<PreciseMath>(float a, float b) {
  return gpu::canonical(a / b);
}
template <>
inline float div_rn<FastMath>(float a, float b) {
  return gpu::flush(gpu::canonical(gpu::flush(a) / gpu::flush(b)));
}

/// The output scale o of a block whose stored scale has the value d.
template <typename Math>
float nvfp4_factor(float d, float g, bool exact) {
  if (!exact) return rcp_a(Math::mul(d, rcp_a(g)));
  constexpr float kMax = std::numeric_limits<float>::max();
  return Math::min(rcp_rn<Math>(Math::mul(d, rcp_rn<Math>(g))), kMax);
}

template <typename Math>
ElementRule fp4_elements() {
  return {.op = Math::kMultiply, .codes = Format::e2m1, .policy = EncodePolicy::cuda_satfinite};
}

/// Tries amax / 6 and amax / 4 and keeps what leaves the smaller error.
template <typename Math>
class FourOverSix {
 public:
  explicit FourOverSix(const Options& options)
      : exact_(options.is("quant_math", "exact")),
        squared_(options.is("error", "mse")),
        in_codes_(options.is("error_math", "fast")),
        chains_(options.has("elements_per_thread") && options.is("elements_per_thread", "8") ? 2
                                                                                             : 1),
        largest_(kE2m1Max *
                 (options.has("e4m3_max") && options.is("e4m3_max", "256") ? 256.0f : kE4m3Max)) {}

  /// `row_amax`: 0 if the kernel has none.
  std::uint32_t operator()(std::span<const float> block, float amax, float g, float row_amax,
                           std::span<std::uint8_t> codes) const {
    if (Math::is_zero(amax)) {
      std::fill(codes.begin(), codes.end(), std::uint8_t{0});
      return 0;
    }
    const float s6 = exact_ ? Math::mul(div_rn<Math>(amax, kE2m1Max), g)
                            : Math::mul(g, Math::mul(amax, rcp_a(kE2m1Max)));
    const Candidate six = candidate(block, s6, g, row_amax);
    const Candidate four = candidate(block, Math::mul(s6, 1.5f), g, row_amax);
    const Candidate& chosen = four.error < six.error ? four : six;
    std::copy_n(chosen.codes.begin(), codes.size(), codes.begin());
    return chosen.scale;
  }

 private:
  struct Candidate {
    std::uint32_t scale = 0;
    std::array<std::uint8_t, 16> codes{};
    float error = 0.0f;
  };

  Candidate candidate(std::span<const float> block, float s, float g, float row_amax) const {
    Candidate result;
    result.scale = e4m3(s);
    const float d = decode_e4m3(result.scale);
    const float factor = nvfp4_factor<Math>(d, g, exact_);
    const float back = exact_ ? div_rn<Math>(1.0f, g) : rcp_a(g);
    const ElementCoder coder(fp4_elements<Math>());
    const std::size_t each = block.size() / chains_;
    std::array<float, 2> errors{};
    for (std::size_t i = 0; i < block.size(); ++i) {
      result.codes[i] = static_cast<std::uint8_t>(coder(block[i], factor));
      const float qd = Math::mul(decode(Format::e2m1, result.codes[i]), d);
      float difference = 0.0f;
      if (in_codes_) {
        difference = Math::add(qd, -Math::mul(block[i], g));
      } else if (row_amax > 0.0f) {
        difference = Math::add(div_rn<Math>(Math::mul(qd, row_amax), largest_), -block[i]);
      } else {
        difference = Math::add(Math::mul(qd, back), -block[i]);
      }
      const float step = squared_ ? Math::mul(difference, difference) : std::fabs(difference);
      errors[i / each] = Math::add(errors[i / each], step);
    }
    result.error = chains_ == 1 ? errors[0] : Math::add(errors[0], errors[1]);
    return result;
  }

  bool exact_;
  bool squared_;
  bool in_codes_;
  std::size_t chains_;
  float largest_;
};

}  // namespace moeref::quantizers
