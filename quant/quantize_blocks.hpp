#pragma once

#include <optional>

#include "quant/quantize.hpp"

namespace moeref {

/// Carries out a plan on a matrix whose format and `given` fit: see `quantize`. Error: sizes that
/// do not.
void carry_out(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
               int threads, Quantized& out);

}  // namespace moeref
