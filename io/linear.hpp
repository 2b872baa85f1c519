#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/quantization_config.hpp"
#include "io/tensor_index.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref {

/// Size of a logical matrix and where the caller knows it from, for messages.
struct LinearShape {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::string_view rows_name;  ///< "moe_intermediate_size"
  std::string_view cols_name;
};

/// A tensor that took part, by its role: "weight", "scale", "global_scale", "input_scale", "bias".
struct LinearPart {
  std::string_view role;
  const IndexedTensor* tensor = nullptr;
};

/// One linear layer as stored.
struct LinearLayer {
  ScaledMatrix weight;      ///< [rows, cols]
  ScaledMatrix bias;        ///< 1 x rows, absent if there is none
  std::string_view format;  ///< one of weight_formats
  std::optional<float>
      input_scale;  ///< as stored: ModelOpt multiplies by it, compressed-tensors divides
  std::vector<LinearPart> parts;
};

/// Reads the linear layer `module` and decides its format from the names and dtypes of its tensors
/// (`module`.weight or .weight_packed, its scales, .bias). Formats and names: DeepSeek-V3 and -V4
/// releases, NVIDIA/Model-Optimizer@a2fbac7bad8a modelopt/torch/export,
/// vllm-project/compressed-tensors@ac8e2ba82f4e compressors/nvfp4/base.py. Error: missing tensors,
/// an unknown combination (prints what is there and what is known), shapes that do not fit `shape`,
/// K not divisible by the block, NaN or infinite scales, negative NVFP4 block scales.
LinearLayer read_linear(const TensorIndex& tensors, const QuantizationConfig& quantization,
                        const std::string& module, const LinearShape& shape);

/// A tensor of plain floats (BF16, F16, F32) that must have `shape`, as a row-major matrix of its
/// first rows * cols elements. Error: another dtype or shape.
ScaledMatrix plain_matrix(const TensorIndex& tensors, const IndexedTensor& tensor,
                          const Shape& shape, std::int64_t rows, std::int64_t cols);

/// The format name of a plain float dtype; empty for any other dtype.
std::string_view plain_format(DType dtype);

}  // namespace moeref
