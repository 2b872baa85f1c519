#pragma once

#include <string>
#include <vector>

#include "simd/kernels.hpp"

namespace moeref::testing {

/// The instruction sets that work here, for parameterised tests.
inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    names.emplace_back(*isa);
  }
  return names;
}

}  // namespace moeref::testing
