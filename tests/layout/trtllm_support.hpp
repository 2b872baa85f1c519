#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "tests/layout/planned.hpp"
#include "tests/support/error_of.hpp"

// Layers through the TRTLLM-Gen backends: the tensors and factors that come out.

namespace moeref {

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

}  // namespace moeref
