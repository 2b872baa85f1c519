#pragma once

#include <array>
#include <cstdint>

// The coefficients behind rcp.approx.ftz and ex2.approx.ftz, fitted to every result of an NVIDIA
// H200 (sm_90). Other GPU generations have not been measured.

namespace moeref::gpu {

/// One piece of a unit's function: c0 + c1 X + c2 S, X the bits of the argument inside the piece, S
/// the truncated square of their upper 15.
struct Quadratic {
  std::uint32_t c0;
  std::uint16_t c1;
  std::uint16_t c2;
};

/// By the upper 7 bits of the mantissa; c1 is subtracted.
extern const std::array<Quadratic, 128> kReciprocal;
inline constexpr std::int64_t kReciprocalBias = 2023;
/// By the upper 6 bits of the fraction.
extern const std::array<Quadratic, 64> kExp2;
inline constexpr std::int64_t kExp2Bias = 6114;

/// Of h = 0 .. 2^15 - 1: the partial products of h * h in columns 2^15 and higher, sum over k >= 8
/// of h_k 2^(2k - 15) + sum over k > l, k + l >= 14 of h_k h_l 2^(k + l - 14).
extern const std::array<std::uint16_t, 32768> kTruncatedSquares;

}  // namespace moeref::gpu
