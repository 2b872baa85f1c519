#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "quant/error.hpp"

// The activation's parameters as kernels take them that have one number for all experts.

namespace moeref::backends {

/// Not passed if every expert has `usual`. Error: experts that differ.
inline ScalarRecipe swiglu_number(std::string name, std::vector<float> ExpertScalars::*values,
                                  float usual) {
  std::string formula = name.substr(name.find('_') + 1) + " of the activation, one for all experts";
  auto number = [name, values, usual](const ExpertScalars& scalars, const LayerShape&) {
    const std::vector<float>& all = scalars.*values;
    const auto is = [&all](float value) {
      return std::all_of(all.begin(), all.end(), [value](float one) { return one == value; });
    };
    if (all.empty() || is(usual)) return std::vector<float>{};
    if (!is(all.front())) fail(name, "differs from expert to expert; this kernel takes one number");
    return std::vector<float>{all.front()};
  };
  return {std::move(name), std::move(formula), false, std::move(number)};
}

inline ScalarRecipe swiglu_alpha() {
  return swiglu_number("swiglu_alpha", &ExpertScalars::alpha, 1.0f);
}
inline ScalarRecipe swiglu_limit() {
  return swiglu_number("swiglu_limit", &ExpertScalars::limit, kNoLimit);
}

}  // namespace moeref::backends
