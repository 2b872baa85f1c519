#pragma once

#include <span>

#include "engine/activation.hpp"
#include "quant/numerics.hpp"

namespace moeref {

/// The f32 value of a kernel's activation of one pair, before the rounding to its output type. The
/// definition.
float kernel_activation(const ActivationNumerics& numerics, const ActivationParameters& parameters,
                        float gate, float up);

/// The same for rows of pairs, rounded to numerics.output: vector loops over the units' integer
/// models where the kernel's formula is built on them. `gate` is empty if the form has none.
void kernel_activations(const ActivationNumerics& numerics, const ActivationParameters& parameters,
                        std::span<const float> gate, std::span<const float> up,
                        std::span<float> out);

}  // namespace moeref
