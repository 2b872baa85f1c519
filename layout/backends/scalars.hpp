#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"

// Numbers that several backends pass, and how kernels take them. All f32; products from left to
// right.

namespace moeref::backends {

/// The largest activation scale of GEMM1 over all experts of the layer and both halves, of GEMM2
/// over all experts. Error: the checkpoint stores none ("static activation scales are needed").
float max_input_scale_13(const ExpertScalars& scalars, std::string_view backend);
float max_input_scale_2(const ExpertScalars& scalars, std::string_view backend);
/// The activation scale of GEMM2 of each local expert. Error: as above.
std::vector<float> input_scales_2(const ExpertScalars& scalars, const LayerShape& shape,
                                  std::string_view backend);

/// The factor of gate (of up if not gated) of each expert, as stored. Error: the layer has none.
std::vector<float> first_scales(const ExpertScalars& scalars, const LayerShape& shape);
/// by * values[e]
std::vector<float> times(float by, std::vector<float> values);
/// values[e] / divisor
std::vector<float> over(std::vector<float> values, float divisor);

/// A number that is the same for all experts.
ScalarRecipe one_scalar(std::string name, std::string formula,
                        std::function<float(const ExpertScalars&)> value);

/// swiglu_alpha, swiglu_beta, swiglu_limit, one value per local expert. Empty vectors (the tensor
/// is not passed) if no expert has a limit and alpha is 1, beta 0.
std::vector<ScalarRecipe> swiglu_arrays();

/// Number `expert * per_expert + index` of a prepared scalar, or its only one.
ScalarReader factor(std::string name, std::int64_t per_expert = 1, std::int64_t index = 0);
/// by * number `expert`, or the only one: the kernel's codes or scales lack the factor `by`.
ScalarReader factor_times(float by, std::string name);
/// 1 / that number: an activation scale of which the kernel takes the quantizing multiplier.
ScalarReader reciprocal(std::string name);
/// The same number whatever is prepared.
ScalarReader constant(float value);
/// A parameter of the activation that is passed under `name`, as one number, one for each expert of
/// the rank or one for each of the model; `absent` if it is not passed.
ScalarReader parameter(std::string name, const LayerShape& shape, float absent);
/// swiglu=as_model: a layer whose activation the kernel does not compute is refused;
/// dropped_upstream: it is prepared, as frameworks do without a word.
OptionInfo swiglu_option();
/// swiglu_alpha, swiglu_beta, swiglu_limit as far as they are passed, else those of SiLU.
void read_swiglu(KernelReading& kernel, const LayerShape& shape);

}  // namespace moeref::backends
