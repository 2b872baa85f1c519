#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "tests/layout/planned.hpp"

// Sample layers and what backends prepare of them, for tests.

namespace moeref {

using Texts = std::vector<std::string>;

inline std::vector<float> values(const PreparedLayer& layer, std::string_view name) {
  const PreparedTensor* tensor = find(layer, name);
  EXPECT_NE(tensor, nullptr) << name;
  return tensor != nullptr ? tensor->values : std::vector<float>{};
}

inline SampleShape sample(std::string format, std::int64_t hidden, std::int64_t intermediate,
                          bool gated = true) {
  return {.experts = 2,
          .hidden = hidden,
          .intermediate = intermediate,
          .gated = gated,
          .weight_format = std::move(format),
          .seed = 11};
}

inline SampleShape gpt_oss(std::int64_t hidden, std::int64_t intermediate) {
  SampleShape shape = sample("mxfp4", hidden, intermediate);
  shape.bias = shape.interleaved = true;
  return shape;
}

}  // namespace moeref
