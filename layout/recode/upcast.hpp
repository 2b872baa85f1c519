#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

/// MXFP4 codes to bf16 values: code * 2^(byte - 127), exact; byte 0 gives 0, 255 NaN, what bf16
/// cannot hold infinity. Not invertible. `weight`: w13 or w2. Error: no E8M0 scales of 32 columns.
/// Source: triton-lang/triton python/triton_kernels/triton_kernels/numerics_details/mxfp_details/
/// _upcast_from_mxfp.py
Recode upcast_mxfp4(Slot weight);

}  // namespace moeref::recode
