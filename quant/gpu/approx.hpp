#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "quant/gpu/approx_tables.hpp"
#include "quant/mini_float.hpp"

// The f32 instructions of NVIDIA GPUs that are not IEEE 754: flush to zero, and the approximate
// reciprocal and power of two. Exact models: every result has the bits of an H200 (sm_90, CUDA
// 13.0). A NaN result is 0x7FFFFFFF. The caller holds the default float environment.

namespace moeref::gpu {

inline constexpr std::uint32_t kNanBits = 0x7FFF'FFFFu;
inline constexpr float kSmallestNormal = 0x1p-126f;

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float nan() { return from_bits(kNanBits); }
/// Any NaN as the GPU writes it.
inline float canonical(float x) { return x == x ? x : nan(); }

/// A subnormal as the zero of its sign.
inline float flush(float x) {
  const std::uint32_t bits = bits_of(x);
  return (bits & kF32Infinity) == 0 ? from_bits(bits & kF32SignMask) : x;
}

/// `exact`, a result that f64 holds exactly or rounded to odd: rounded to 24 bits as if exponents
/// had no end, then flushed. So 2^-126 (1 - 2^-25) and above give 2^-126, all below gives zero.
inline float round_and_flush(double exact) {
  constexpr double kBoundary = 0x1p-126 - 0x1p-151;
  if (std::fabs(exact) < kBoundary) return std::copysign(0.0f, static_cast<float>(exact));
  return canonical(static_cast<float>(exact));
}

/// mul.ftz.f32
inline float mul_ftz(float a, float b) {
  return round_and_flush(static_cast<double>(flush(a)) * static_cast<double>(flush(b)));
}
/// add.ftz.f32. A sum of normal numbers below 2^-126 is exact.
inline float add_ftz(float a, float b) { return flush(canonical(flush(a) + flush(b))); }
/// fma.rn.ftz.f32
float fma_ftz(float a, float b, float c);
/// min.ftz.f32, max.ftz.f32 and their forms without flush: a NaN operand is passed over; -0 < +0.
/// NaN if both are.
inline float min_num(float a, float b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  if (a == b) return from_bits(bits_of(a) | bits_of(b));
  return a < b ? a : b;
}
inline float max_num(float a, float b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  if (a == b) return from_bits(bits_of(a) & bits_of(b));
  return a > b ? a : b;
}
inline float min_ftz(float a, float b) { return min_num(flush(a), flush(b)); }
inline float max_ftz(float a, float b) { return max_num(flush(a), flush(b)); }

/// rcp.approx.ftz.f32: the reciprocal unit (MUFU.RCP). Within 1 ulp of 1 / x; exact for powers of
/// two. 0 and subnormals -> infinity, |x| > 2^126 -> 0, with the sign.
float rcp_approx_ftz(float x);
/// ex2.approx.ftz.f32: the power unit (MUFU.EX2). Exact for integers in [-126, 127]; 0 below -126.
float ex2_approx_ftz(float x);

/// rcp.approx.f32: the argument scaled into the unit's range, the result scaled back; no flush.
float rcp_approx(float x);
/// ex2.approx.f32 = exp2f of a build without fast math: below -126 the square of the unit's result
/// for x / 2, subnormal results included.
float ex2_approx(float x);
/// div.approx.ftz.f32: a times the unit's reciprocal.
inline float div_approx_ftz(float a, float b) { return mul_ftz(a, rcp_approx_ftz(b)); }
/// div.full.f32: Triton's `/`, nvcc -prec-div=false. Scaled by a power of two where b is extreme;
/// no flush.
float div_full(float a, float b);

}  // namespace moeref::gpu
