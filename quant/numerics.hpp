#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moeref {

/// Where a backend's kernels take numbers to codes: a quantizer by name.
struct QuantizerUse {
  std::string_view stage;      ///< "input" of GEMM1, "intermediate" between the GEMMs
  std::string_view quantizer;  ///< of all_quantizers()
  std::vector<std::string> options = {};
  std::string_view scale = {};  ///< where the calibrated scale comes from, if it takes one
  /// When: words of the backend's options, as AlignmentRule::when.
  std::string_view when = {};
};

}  // namespace moeref
