#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

/// Floats (f32, bf16, f16) of a tensor to another float dtype, nearest even; exact where it widens.
/// Invertible only where it widens or keeps the type.
Recode cast_floats(Slot slot, DType to);

/// Scales to E8M0 bytes: bytes and F8_E8M0 as they are; f32 and bf16 numbers by torch's cast
/// (nearest power of two, ties to even exponent: see encode_e8m0). Source: sglang@01a6f276f9ec
/// mxfp4_flashinfer_trtllm_moe.py
Recode to_e8m0(Slot slot);

}  // namespace moeref::recode
