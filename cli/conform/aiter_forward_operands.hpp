#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "cli/conform/ops.hpp"
#include "engine/bounds/staged.hpp"

// How cases of aiter's torch references hold weights, activations and what scales them. Everything
// is read as the number that `.to(float32)` gives. Source: ROCm/aiter@e4048607a535
// aiter/fused_moe.py torch_moe, torch_moe_stage1, torch_moe_stage2; aiter/utility/fp4_utils.py
// mxfp4_to_f32, e8m0_to_f32.

namespace moeref::conform::aiter {

/// QuantType of the references; per_128x128 is per_1x128.
enum class Quantization : std::uint8_t { none, per_tensor, per_token, per_1x32, per_1x128 };

/// Factors of a stack [count, rows, cols]: element (i, r, c) has the factor number i * stack_stride
/// + (r / block_rows) * row_stride + (c / block_cols) * col_stride. None if empty.
struct Factors {
  std::vector<double> values;
  std::int64_t stack_stride = 0;
  std::int64_t block_rows = 1;
  std::int64_t row_stride = 0;
  std::int64_t block_cols = 1;
  std::int64_t col_stride = 0;

  double at(std::int64_t i, std::int64_t row, std::int64_t col) const;
};

/// `count` matrices of exact numbers and their factors.
struct ScaledStack {
  std::int64_t count = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;
  Factors factors;

  /// Matrix `i`, each element multiplied by its factor in one rounded operation.
  bounds::BoundedMatrix matrix(const bounds::Arithmetic& arithmetic, std::int64_t i) const;
  /// All of them below each other.
  bounds::BoundedMatrix all_rows(const bounds::Arithmetic& arithmetic) const;
};

/// The numbers of a tensor of floats of 8 to 64 bits or integers. Error: another dtype.
std::vector<double> numbers(const GoldenCase& golden, const TensorView& view);
/// The same of F32, BF16, F16 alone: what scales, biases and routing weights are.
std::vector<double> factors_of(const GoldenCase& golden, const TensorView& view);

/// The last dimension as torch counts it: in bytes for packed FP4.
std::int64_t stored_width(const TensorView& view);
/// Error: another number of dimensions, a dimension of 0.
void need_dimensions(const GoldenCase& golden, const TensorView& view, std::size_t dimensions,
                     std::string_view meaning);

/// params.quant: words around the name of a QuantType, as in "a16w4 mxfp4 1x32" or "per_Token";
/// absent = No. Error: no such name.
Quantization read_quantization(const GoldenCase& golden);

/// A weight [experts, rows, cols] in.`name` with in.`name`_scale; `cols` counts elements.
///   per_tensor, per_token  scale [experts or 1, rows or 1]
///   per_1x128              scale [experts or 1, rows / 128, cols / 128]
///   per_1x32               FP8, or two E2M1 codes a byte, with E8M0 bytes [experts, rows, cols /
///   32];
///                          or int4, one a byte, with BF16 scales [experts, cols / 32, rows]
/// Only the first size and the number of elements of a scale count. Error: sizes or dtypes that do
/// not fit, no scale.
ScaledStack read_weight(const GoldenCase& golden, std::string_view name, Quantization quantization,
                        std::int64_t cols);

/// Whether the scales of in.`weight_scale` are those of int4 weights: then activations have none.
bool is_int4_scale(const GoldenCase& golden, std::string_view weight_scale);

/// The input of stage 1, in.x [tokens, cols], with in.x_scale, as one matrix.
///   per_tensor, per_token  scale that broadcasts to [tokens, cols]
///   per_1x128              scale [tokens, n], each for cols / n elements
///   per_1x32               none: x as it is; else FP8 or packed E2M1 with E8M0 bytes, one for 32
///                          elements, rows beyond the tokens ignored
ScaledStack read_input(const GoldenCase& golden, Quantization quantization, std::int64_t cols);

/// The input of stage 2, `view` = [tokens, top_k, cols], with in.h_scale or in.a2_scale.
///   per_tensor, per_token  scale [tokens or 1, top_k or 1]
///   per_1x128              scale [tokens, top_k, cols / 128]
///   per_1x32               as for stage 1
ScaledStack read_intermediate(const GoldenCase& golden, const TensorView& view,
                              Quantization quantization, std::int64_t tokens, std::int64_t top_k,
                              std::int64_t cols);

}  // namespace moeref::conform::aiter
