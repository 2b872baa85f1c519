#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "layout/backend.hpp"

// What the files of this folder share.

namespace moeref::backends {

using Steps = std::vector<Step>;

inline Steps operator+(Steps first, const Steps& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

/// A tensor of which the framework does some steps, and the kernel's own order is the rest.
inline TensorRecipe tensor(std::string name, Slot from, Steps framework, const Steps& kernel) {
  return {std::move(name), from, std::move(framework) + kernel, kernel.size()};
}

}  // namespace moeref::backends
