#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/step.hpp"

// The scale codes of the Marlin kernels: how frameworks make them, and how the kernels decode them.
// `params` is the 16-bit type of the model's activations, bf16 or f16.

namespace moeref::recode {

// NVFP4. The kernels read S0E5M3: the upper byte of the FP16 bits of scale * 128 * f without their
// sign. f is a power of two for the whole weight tensor, which the global scale takes back; without
// it BF16 kernels read scales below 2^-6 as 0.

/// Who makes the codes.
enum class MarlinScales : std::uint8_t {
  /// f lifts the smallest scale to at least 2^-6: m = smallest scale above 0 times 128,
  /// f = 2^ceil(log2(2 / m)) if m < 2. Scales that leave FP16 become infinity, 0xF8.
  /// Source: vllm@00d52e93 marlin_utils_fp4.py _nvfp4_compute_scale_factor,
  /// nvfp4_marlin_process_scales
  vllm,
  /// f lifts the largest scale towards 448: M = largest scale times 128,
  /// f = 2^floor(log2(57344 / M)) if M < 57344. Products below 2 become 0.
  /// Source: sglang@05c279f2 marlin_utils_fp4.py, the same names
  sglang,
  /// Releases of 2025: f = 1.
  v1,
};

/// f of one weight tensor: of all its scales, of all local experts; 1 for f16. NaN and values that
/// are not above 0 do not count. `scales`: E4M3 bytes.
float marlin_scale_factor(const TensorStack& scales, MarlinScales mode, DType params);
/// One code: v = f16(f16(scale) * f), w = f16(v * 128), for sglang 0 if w < 2; then bits 7 .. 14.
std::byte s0e5m3_code(std::byte e4m3, float factor, MarlinScales mode);
/// E4M3 scales of `slot` as S0E5M3. Undo gives the stored codes back as long as no two codes that
/// occur become one (overflow, flush, dropped sign).
/// Error: scales that are not bytes.
Recode marlin_s0e5m3(Slot slot, MarlinScales mode, DType params);
/// The same with a given factor, for tensors without a layer. Error: not a power of two.
Recode marlin_s0e5m3(std::int64_t factor);
/// global * 2^119 (bf16) or 2^7 (f16), then / factor, in f32.
/// Source: as above, nvfp4_marlin_process_global_scale
float marlin_global_scale(float global, float factor, DType params);
/// A number rounded to the parameter type, as older versions do with global scales.
float round_to_params(float value, DType params);

// MXFP4, MXFP8. E8M0 through the parameter type and back.

/// E8M0 bytes, or F32, BF16, F16 numbers, of `slot` to `params`, from there to E8M0 (torch's cast),
/// plus `added` (6 beside FP8 activations: the kernel moves the exponent bits of E2M1 into E4M3
/// without the difference of the biases). Exact for bf16; f16 turns bytes up to 102 into 0 and
/// those above 142 into 0xFF.
/// Error: another type; a result above 255 - added, where torch's assertion stands.
/// Source: vllm@00d52e93 marlin_utils_fp4.py mxfp4_marlin_process_scales; sglang@05c279f2
/// _normalize_scale_tensor
Recode marlin_e8m0(Slot slot, DType params, int added);
/// `added` alone, for tensors without a layer; bytes wrap as in U8.
Recode marlin_e8m0_plus(std::int64_t added);

// FP8.

/// Whether the exponent bias of E4M3 is multiplied into the scales: 2^120 for bf16, 2^8 for f16.
enum class MarlinBias : std::uint8_t { in_scales, none };

/// F32, BF16, F16 scales of `slot` to `params`, nearest even, then times the factor in that type
/// (may overflow to infinity). Error: another type.
/// Source: vllm@ee52d990 marlin_utils_fp8.py fp8_fused_exponent_bias_into_scales
Recode marlin_fp8_scales(Slot slot, DType params, MarlinBias bias);
/// Per-tensor scales of w13, F32, each replaced by its expert's larger one: what goes with
/// max_requantize_w13.
Recode max_scales_w13();

}  // namespace moeref::recode
