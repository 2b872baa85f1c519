#pragma once

#include <cstdint>
#include <string_view>

#include "layout/layer_tensors.hpp"
#include "quant/dtype.hpp"

namespace moeref::cli {

/// How the tensors of a weight format look where no checkpoint tells.
struct WeightForm {
  std::string_view name;
  Format codes = Format::bf16;
  bool has_scales = false;
  Format scales = Format::f32;
  std::int64_t block_rows = 1;  ///< of a scale; kWholeAxis = all rows
  std::int64_t block_cols = 1;
  bool has_globals = false;  ///< one more factor per expert and projection
};

/// True if a scale stands for less than a whole matrix.
bool has_block_scales(const WeightForm& form);

/// Error (names `subject`): an unknown format; lists the known ones.
const WeightForm& find_weight_form(std::string_view subject, std::string_view name);

/// Scales along an axis of `weight_size` rows or columns; one of a block of kWholeAxis.
std::int64_t block_count(std::int64_t weight_size, std::int64_t block);

/// A logical layer of this shape without data: what plans and explanations need. Every matrix that
/// the weight format has, and bf16 biases if the shape says so.
LayerTensors empty_layer(const LayerShape& shape);

}  // namespace moeref::cli
