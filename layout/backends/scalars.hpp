#pragma once

#include <string_view>
#include <vector>

#include "layout/backend.hpp"

// Per-expert numbers that several backends pass. All f32; products from left to right.

namespace moeref::backends {

/// The largest activation scale of GEMM1 over all experts of the layer and both halves, of GEMM2
/// over all experts. Error: the checkpoint stores none ("static activation scales are needed").
float max_input_scale_13(const ExpertScalars& scalars, std::string_view backend);
float max_input_scale_2(const ExpertScalars& scalars, std::string_view backend);

/// swiglu_alpha, swiglu_beta, swiglu_limit, one value per local expert. Empty vectors (the tensor
/// is not passed) if no expert has a limit and alpha is 1, beta 0.
std::vector<ScalarRecipe> swiglu_arrays();

}  // namespace moeref::backends
