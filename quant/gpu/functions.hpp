#pragma once

#include "quant/gpu/approx.hpp"

// exp and what is built on it, as nvcc 13.0 compiles it for sm_90: with -use_fast_math (FlashInfer,
// sgl-kernel's SM90 library) and without (precise: sgl-kernel's SM100 library).

namespace moeref::gpu {

inline constexpr float kLog2E = 0x1.715476p+0f;  // 0x3FB8AA3B

/// a * b and fma(a, b, c) rounded to nearest even without flush; any NaN as the GPU writes it.
inline float mul(float a, float b) { return canonical(a * b); }
inline float fma(float a, float b, float c) { return canonical(std::fma(a, b, c)); }

/// The two factors of the library's expf: 2^r by the power unit, and 2^j.
struct ExpParts {
  float fraction;
  float power;
};
/// t = clamp(fma(x, log2(e) / 252, 0.5), 0, 1), NaN -> 0; j = floor(252 t) - 126;
/// r = x log2(e) - j by two fma, log2(e) in two parts.
ExpParts exp_parts(float x);

/// expf of a precise build.
inline float expf_precise(float x) {
  const ExpParts parts = exp_parts(x);
  return mul(parts.fraction, parts.power);
}
/// __expf of a precise build.
inline float expf_intrinsic(float x) { return canonical(ex2_approx(mul(x, kLog2E))); }
/// expf and __expf under -use_fast_math.
inline float expf_fast(float x) { return ex2_approx_ftz(mul_ftz(x, kLog2E)); }

/// log1pf of a precise build, for x >= 0: the library's polynomial of (1 + x) 2^-k - 1, k chosen so
/// that it lies in [-1/4, 1/2), plus k ln 2. Read off PTX; no part of it is an approximate
/// instruction.
float log1pf_precise(float x);

/// 1 / (1 + expf(-x)): fast math, and precise, where the last multiplication of expf is fused with
/// the addition.
inline float sigmoid_fast(float x) {
  return rcp_approx_ftz(add_ftz(ex2_approx_ftz(mul_ftz(x, -kLog2E)), 1.0f));
}
/// 1 + expf(-x) in one rounding of 1 + 2^r 2^j.
inline float one_plus_exp_minus(float x) {
  const ExpParts parts = exp_parts(-x);
  return fma(parts.fraction, parts.power, 1.0f);
}
inline float sigmoid_precise(float x) { return canonical(1.0f / one_plus_exp_minus(x)); }

/// x / (1 + expf(-x)). In fast math below x = -87.3 it is -0, and NaN for -infinity.
inline float silu_fast(float x) { return mul_ftz(x, sigmoid_fast(x)); }
inline float silu_precise(float x) { return canonical(x / one_plus_exp_minus(x)); }
/// x / (1 + __expf(-x)) of a precise build.
inline float silu_intrinsic(float x) {
  return canonical(x / canonical(ex2_approx(mul(x, -kLog2E)) + 1.0f));
}

}  // namespace moeref::gpu
