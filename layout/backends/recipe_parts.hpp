#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "layout/recode/clamp_scales.hpp"

// What the files of this folder share.

namespace moeref::backends {

using Steps = std::vector<Step>;

inline Steps operator+(Steps first, const Steps& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

/// clamp_scales=off | on, of the backends that vLLM prepares with it.
inline OptionInfo clamp_scales_option() {
  return {"clamp_scales", {"off", "on"}, "on: scales to at least 1e-10 in place (vLLM)"};
}
inline Steps clamped_scales(const Options& options) {
  return options.is("clamp_scales", "on") ? Steps{recode::clamp_scales()} : Steps{};
}

/// A tensor of which the framework does some steps, and the kernel's own order is the rest.
inline TensorRecipe tensor(std::string name, Slot from, Steps framework, const Steps& kernel) {
  return {std::move(name), from, std::move(framework) + kernel, kernel.size()};
}

}  // namespace moeref::backends
