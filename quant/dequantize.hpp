#pragma once

#include <cstdint>
#include <span>

#include "quant/scaled_matrix.hpp"

namespace moeref {

/// The code of element (row, col). Not for f64.
std::uint32_t code_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);
/// Code value without scales; f64 holds every format exactly.
double element_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);
/// The block scale of element (row, col); 1 if the matrix has none.
float scale_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);

/// The order of the multiplications and the roundings between them, as a stack's host dequantizer
/// does it. All give the same value where nothing is rounded. q = code value, s = block scale (1 if
/// there is none), g = global scale, every operation in f32 unless noted; `cast` = rounding to the
/// target.
enum class DequantizeOrder : std::uint8_t {
  /// The exact value q * s, q * s * g or q * s / g, rounded once to the target.
  once,
  /// cast(q * s), cast(q * (s * g)), cast(q * (s / g)). Sources:
  /// flashinfer-ai/flashinfer@fb28d7242b35
  /// E2M1AndUFP8SFScaleToFloatV2; vllm-project/compressed-tensors@ac8e2ba82f4e _dequantize; SGLang
  /// block_quant_dequant.
  checkpoint,
  /// As checkpoint; code 8 (-0) is +0. E2M1 only. Source: NVIDIA/Model-Optimizer@a2fbac7bad8a
  /// modelopt/torch/quantization/qtensor/nvfp4_tensor.py dequantize; flashinfer
  /// mxfp4_dequantize_host does the same to code 8.
  modelopt_nvfp4,
  /// cast(cast(q) * cast(s)): the scale is rounded to the target first. No global scale. Source:
  /// NVIDIA/Model-Optimizer
  /// qtensor/fp8_tensor.py dequantize.
  modelopt_fp8,
  /// h = f16(f16(q) * f16(s)), then cast(h); the target of the source is f16. No global scale.
  /// Source: SGLang and vLLM
  /// per_tensor_dequantize, which multiplies an f16 tensor by a 0-dim f32 tensor.
  sglang_fp16,
};

/// Dequantizes row-major into f32 values [rows, cols]; `target` f32, bf16 or f16; bf16 and f16
/// values come back widened to f32. A NaN is 0x7FC00000, whatever its sign and payload were;
/// overflow gives infinity, subnormals are kept. One thread; rows are independent: `row_slice`
/// parts of a matrix may be done in parallel. Error (names the matrix): no codes, codes or scales
/// of a format without a reading here, `out` of another size, a target or a global scale that the
/// order does not know.
void dequantize(const ScaledMatrix& matrix, DequantizeOrder order, Format target,
                std::span<float> out);
/// Dequantizes into f64: q * s, (q * s) * g, (q * s) / g. q * s is exact, and so is (q * s) * g if
/// the three significands have at most 53 bits, as in every container with 8-bit or narrower codes;
/// otherwise the last operation rounds. NaN: 0x7FF8000000000000.
void dequantize(const ScaledMatrix& matrix, std::span<double> out);

}  // namespace moeref
