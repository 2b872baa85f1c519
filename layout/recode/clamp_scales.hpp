#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

/// f32 scales of at least 1e-10, as torch.clamp_(min = 1e-10) leaves them; NaN stays.
/// Source: vllm@00af4049 flashinfer_utils.py prepare_fp8_moe_layer_for_fi
Recode clamp_scales();

}  // namespace moeref::recode
