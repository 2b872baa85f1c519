#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layout/step.hpp"

// Scales that are powers of two: how stacks round to them, store them and requantize for them.

namespace moeref {

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

namespace moeref::recode {

/// f32 scales to bits 30 .. 23 of each, whatever they are. Not invertible.
Recode exponent_bytes();
/// f32 scales that are powers of two to their E8M0 bytes; E8M0 bytes as they are. Invertible.
/// Error: a scale that is no power of two; another dtype.
/// Source: DeepGEMM@54e2261 deep_gemm/include/deep_gemm/impls/smxx_layout.cuh
/// transpose_and_pack_fp32_into_ue8m0
Recode power_of_two_scales(Slot slot);
/// Block scales to f32, exact: F32, BF16, F16, E8M0 (0xFF = NaN). Invertible.
/// Error: another dtype; with `block` not 0, blocks of another size.
Recode scales_to_f32(Slot slot, std::int64_t block = 0);

/// E4M3 weights of 128 x 128 blocks with any scales to weights of blocks with powers of two:
/// d = bf16(float(q) * s); per block s' = ceil_to_ue8m0(max(max |d|, 1e-4) / 448);
/// q' = e4m3(d * (1 / s')). `weight`: w13 or w2. Not invertible. A half whose rows 128 does not
/// divide ends in a block of its own.
/// Error: codes that are not E4M3, blocks of another size.
/// Source: sglang@002ed7e465ec layers/quantization/fp8_utils.py requant_weight_ue8m0
Recode requantize_ue8m0_codes(Slot weight);
/// The E8M0 byte of s' of each block, in place of the block scales of `weight`.
Recode requantize_ue8m0_scales(Slot weight);

}  // namespace moeref::recode
