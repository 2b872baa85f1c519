#pragma once

#include <cstdint>
#include <vector>

#include "layout/step.hpp"
#include "quant/formats.hpp"

namespace moeref::recode {

/// One scale for both halves of w13: per expert s = max(gate scale, up scale), every code
/// q' = e4m3(clamp(f16(q * scale of its half) * (1 / s), -448, 448)), all in f32 but for the f16
/// product; also for the half that already has s, and for the only half if not gated. NaN becomes
/// 448. cuda (where frameworks run it) rounds the scale to f16 before the product, cpu does not.
/// fnuz: the codes are E4M3FNUZ, their scales twice the stored ones, and they saturate at 240.
/// Error: a layer without per-tensor scales.
/// Source: sglang modelopt_quant.py process_weights_after_loading, quantization/utils.py
/// per_tensor_dequantize, sgl-kernel per_tensor_quant_fp8.cu
Recode max_requantize_w13(bool fnuz = false, TorchDevice device = TorchDevice::cuda);
/// The upstream defect of padded halves: `requantize` (of w13, gated) as if half h began at row
/// h * `unpadded`, although the halves lie `padded` rows apart. A row takes the table of the half
/// that its place falls into; past the second it keeps its codes.
Recode misplaced(Recode requantize, std::int64_t padded, std::int64_t unpadded);
/// s of each expert, of the stored scales. Error: a layer without per-tensor scales.
std::vector<float> max_scale(const ExpertScalars& scalars, const LayerShape& shape);

}  // namespace moeref::recode
