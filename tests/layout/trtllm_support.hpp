#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "tests/support/error_of.hpp"

// Layers through the TRTLLM-Gen backends: the tensors and factors that come out.

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

inline std::vector<float> values(const PreparedLayer& layer, std::string_view name) {
  const PreparedTensor* tensor = find(layer, name);
  EXPECT_NE(tensor, nullptr) << name;
  return tensor != nullptr ? tensor->values : std::vector<float>{};
}

inline std::vector<float> floats(const Tensor& tensor) {
  std::vector<float> numbers(tensor.bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), tensor.bytes.data(), tensor.bytes.size());
  return numbers;
}

inline std::string message(std::string_view name, const std::vector<std::string>& options,
                           const MoeLayer& layer, const Shard& rank = {}) {
  return error_of([&] { plan(name, options, layer, rank); });
}

inline ScalarValues scalar_values(const PreparedLayer& layer) {
  ScalarValues found;
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.from == nullptr) found.emplace(tensor.name, tensor.values);
  }
  return found;
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
