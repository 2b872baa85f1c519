#pragma once

#include <cstdint>
#include <span>
#include <vector>

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

/// FP4 codes of rows and their scales.
struct Fp4Rows {
  std::vector<std::uint8_t> codes;  ///< [rows, cols / 2], low nibble first
  std::vector<float> scales;        ///< [rows, ceil(cols / gran_k)]
};
/// s = max(amax, 1e-4) / 6, with `ue8m0` rounded up to a power of two; code = number of .25, .75,
/// 1.25, 1.75, 2.5, 3.5, 5 that |x (1 / s)| exceeds, so ties go down, and -0 becomes +0. A NaN
/// makes its scale NaN (ue8m0: 2^127) and compares with nothing, code 0. Error: odd columns.
/// Source: DeepGEMM@54e2261 deep_gemm/utils/math.py per_token_cast_to_fp4
Fp4Rows per_token_cast_to_fp4(std::span<const float> values, std::int64_t rows, std::int64_t cols,
                              std::int64_t gran_k, bool ue8m0);

}  // namespace moeref
