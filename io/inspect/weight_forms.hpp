#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/inspect/findings.hpp"
#include "io/inspect/tensor_set.hpp"
#include "io/inspect/value_statistics.hpp"

namespace moeref {

/// A weight, or a stack of weights, and the tensors that scale it: what the names, dtypes and
/// shapes together say.
struct WeightForm {
  std::string prefix;  ///< "model.layers.0.mlp.experts.0.up_proj"
  std::string format;  ///< "NVFP4 (ModelOpt)"
  const TensorView* weight = nullptr;
  const TensorView* scale = nullptr;         ///< block, channel or tensor scale
  const TensorView* global_scale = nullptr;  ///< NVFP4
  bool global_divides = false;               ///< compressed-tensors
  const TensorView* input_scale = nullptr;
  Format element = Format::bf16;
  Format scale_element = Format::f32;
  std::int64_t stack = 1;  ///< experts in one tensor
  std::int64_t rows = 0;   ///< logical size of one
  std::int64_t cols = 0;
  std::int64_t block_rows = 0;  ///< 0 = no block scales
  std::int64_t block_cols = 0;

  bool quantized() const { return scale != nullptr; }
};

/// Every weight of two or more dimensions in the set, by name. What does not fit together becomes a
/// finding: FP8 or packed FP4 without scale, a scale of the wrong shape, a scale without weight,
/// two weights for one layer.
std::vector<WeightForm> recognise_weights(const TensorSet& set, Findings& findings);

}  // namespace moeref
