#pragma once

#include <vector>

#include "layout/step.hpp"

namespace moeref::recode {

/// One scale for both halves of w13: per expert s = max(gate scale, up scale), every code
/// q' = e4m3(clamp(float(f16(f16(q) * scale of its half)) * (1 / s), -448, 448)), all in f32 but
/// for the f16 product; also for the half that already has s. The weight codes of w13. fnuz: the
/// codes are E4M3FNUZ and saturate at 240. Source: sglang modelopt_quant.py
/// process_weights_after_loading, quantization/utils.py per_tensor_dequantize,
/// per_tensor_quant_fp8.cu
Recode max_requantize_w13(bool fnuz = false);
/// s of each expert.
std::vector<float> max_scale(const ExpertScalars& scalars, const LayerShape& shape);

}  // namespace moeref::recode
