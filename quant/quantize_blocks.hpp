#pragma once

#include <optional>

#include "quant/quantize.hpp"

namespace moeref {

/// Carries out a plan on a matrix whose format and `given` fit: see `quantize`. `amax`: of the
/// tensor that the matrix is rows of, see `quantize_rows`. Error: sizes that do not fit.
void carry_out(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
               std::optional<float> amax, int threads, Quantized& out);

}  // namespace moeref
