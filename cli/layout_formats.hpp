#pragma once

#include <cstdint>

#include "layout/layer_tensors.hpp"
#include "layout/weight_form.hpp"

namespace moeref::cli {

/// Scales along an axis of `weight_size` rows or columns; one of a block of kWholeAxis.
std::int64_t block_count(std::int64_t weight_size, std::int64_t block);

/// A logical layer of this shape without data: what plans and explanations need. Every matrix that
/// the weight format has, and bf16 biases if the shape says so.
LayerTensors empty_layer(const LayerShape& shape);

}  // namespace moeref::cli
