#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "layout/layer_tensors.hpp"
#include "quant/dtype.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref {

/// The matrices of a weight format as checkpoints store them. A new format is one more line of the
/// table that every sample layer, empty layer and the backend `reference` read.
struct WeightForm {
  std::string_view name;
  Format codes = Format::bf16;
  Format scales = Format::f32;  ///< some checkpoints store another float
  /// Weights that share a scale; 0 = no scales, kWholeAxis = all rows or columns.
  std::int64_t block_rows = 0;
  std::int64_t block_cols = 0;
  /// One more factor per expert and projection: how it enters.
  GlobalScaleRule globals = GlobalScaleRule::none;
  bool has_input_scales = false;  ///< static scales of the activations

  // What follows from the above.
  bool has_scales = block_rows != 0;
  bool has_globals = globals != GlobalScaleRule::none;
};

std::span<const WeightForm> weight_forms();
/// Error (names `subject`): an unknown format; lists the known ones.
const WeightForm& find_weight_form(std::string_view subject, std::string_view name);

/// True if a scale stands for less than a whole matrix.
bool has_block_scales(const WeightForm& form);

}  // namespace moeref
