#pragma once

#include "layout/step.hpp"
#include "quant/formats.hpp"

// Block scales as E8M0 bytes or as numbers.

namespace moeref::recode {

/// f32 scales to bits 30 .. 23 of each, whatever they are. Not invertible.
Recode exponent_bytes();
/// f32 scales that are powers of two to their E8M0 bytes; E8M0 bytes as they are. Invertible.
/// 0 and infinity pass as 0x00 and 0xFF, as the original's assertion lets them (2^-127, a subnormal
/// f32, it does not). Error: a scale with a sign or mantissa bits; another dtype.
/// Source: DeepGEMM@54e2261 deep_gemm/include/deep_gemm/impls/smxx_layout.cuh
/// transpose_and_pack_fp32_into_ue8m0
Recode power_of_two_scales(Slot slot);
/// Block scales to f32, exact: F32, BF16, F16, E8M0 (0xFF = NaN). Invertible.
/// Error: another dtype; with `block` not 0, blocks of another size.
Recode scales_to_f32(Slot slot, std::int64_t block = 0);

/// The block scales of a tensor as numbers: their format. Error: no block scales.
Format block_scale_format(const TensorStack& scales);
/// Error: blocks of another size.
void need_block(const TensorStack& scales, std::int64_t rows, std::int64_t cols);

}  // namespace moeref::recode
