#pragma once

#include <cstdint>

// Scales that are powers of two: how DeepGEMM rounds to them.

namespace moeref {

/// The larger of both; a NaN on the left stays.
float nan_max(float left, float right);

/// The power of two at or above |x|: exponent field + (mantissa != 0), clamped to 1 .. 254. So 0
/// and subnormals give 2^-126, infinity and NaN 2^127.
/// Source: DeepGEMM@54e2261 deep_gemm/utils/math.py ceil_to_ue8m0
float ceil_to_ue8m0(float x);
/// Bits 30 .. 23: the E8M0 byte of a positive power of two; the sign and what is below a power of
/// two are dropped.
/// Source: DeepGEMM@54e2261 csrc/jit_kernels/impls/smxx_layout.hpp
/// get_mn_major_tma_aligned_packed_ue8m0_tensor_torch
std::uint8_t exponent_byte(float x);
/// Whether exponent_byte loses nothing: sign and mantissa are 0.
bool is_exponent(float x);

}  // namespace moeref
