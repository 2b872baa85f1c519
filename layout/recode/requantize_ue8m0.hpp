#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

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
