#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layout/backends/recipe_parts.hpp"
#include "layout/recode/fnuz.hpp"
#include "layout/recode/ue8m0.hpp"

namespace moeref::backends {

/// The FP8 format of the device that reads prepared weights: E4M3FN, or E4M3FNUZ (gfx942, MI300).
struct Fp8Device {
  bool fnuz = false;

  Format format() const { return fnuz ? Format::e4m3fnuz : Format::e4m3; }
  /// From loaded codes to the device's.
  Steps codes() const { return fnuz ? Steps{recode::e4m3fn_to_fnuz()} : Steps{}; }
  /// From loaded scales to the f32 that go with its codes. `block`: rows and columns of the only
  /// blocks that the kernel knows, 0 = any.
  Steps scales(Slot slot, std::int64_t block = 0) const {
    const Steps f32{recode::scales_to_f32(slot, block)};
    return fnuz ? f32 + Steps{recode::double_scales()} : f32;
  }
  /// The same for numbers that are no tensor.
  std::vector<float> factors(std::vector<float> stored) const {
    if (fnuz) std::transform(stored.begin(), stored.end(), stored.begin(), recode::doubled_scale);
    return stored;
  }
};

}  // namespace moeref::backends
