#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"

// A layer as a backend prepares it, for the tests of backends.

namespace moeref {

inline PreparedLayer plan(std::string_view name, const std::vector<std::string>& options,
                          const MoeLayer& layer, const Shard& rank = {}) {
  const Backend& backend = find_backend(name);
  return plan_layer(backend, parse_options(backend, options), layer, rank);
}

inline const PreparedTensor* find(const PreparedLayer& layer, std::string_view name) {
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

/// The largest activation scale of any expert and half, of down.
inline std::pair<float, float> largest_input_scales(const MoeLayer& layer) {
  std::pair<float, float> largest{0.0f, 0.0f};
  for (const Expert& expert : layer.experts) {
    if (expert.gate_input_scale) {
      largest.first = std::fmax(largest.first, *expert.gate_input_scale);
    }
    largest.first = std::fmax(largest.first, *expert.up_input_scale);
    largest.second = std::fmax(largest.second, *expert.down_input_scale);
  }
  return largest;
}

}  // namespace moeref
