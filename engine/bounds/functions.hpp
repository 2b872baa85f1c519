#pragma once

#include <vector>

#include "engine/bounds/bounded.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::bounds {

/// 1 / (1 + exp(-x)).
Bounded sigmoid(const Arithmetic& arithmetic, const Bounded& x);
/// x * sigmoid(alpha * x). The rounding count is that of the longer of x * sigmoid(x) and x / (1 +
/// exp(-x)).
Bounded swish(const Arithmetic& arithmetic, const Bounded& x, const Bounded& alpha);
/// log1p(exp(x)), or x itself above 20: torch.nn.functional.softplus with its default threshold.
/// Source: pytorch/pytorch aten/src/ATen/native/cpu/Activation.cpp softplus_kernel.
Bounded softplus(const Arithmetic& arithmetic, const Bounded& x);
/// x >= 0.
Bounded square_root(const Arithmetic& arithmetic, const Bounded& x);
/// x * (1 + erf(x / sqrt(2))) / 2.
Bounded gelu_erf(const Arithmetic& arithmetic, const Bounded& x);
/// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2.
Bounded gelu_tanh(const Arithmetic& arithmetic, const Bounded& x);

/// range * tanh(x / range), range finite and not 0. A quotient may be the product with the rounded
/// reciprocal.
Bounded scaled_tanh(const Arithmetic& arithmetic, const Bounded& x, const Bounded& range);
/// range * tanh(x / range) * sigmoid(x), in this order.
Bounded tanh_glu(const Arithmetic& arithmetic, const Bounded& x, const Bounded& range);

/// exp(x[i] - max(x)) for every i. The errors leave out what all elements have in common (a shift
/// of every x): these are the numerators of a softmax, only their ratios mean anything.
std::vector<Bounded> softmax_numerators(const Arithmetic& arithmetic,
                                        const std::vector<Bounded>& x);
/// x[i] / (sum of x + epsilon) for non-negative x; `scaling` multiplies afterwards (exactly 1: no
/// operation).
std::vector<Bounded> shares(const Arithmetic& arithmetic, const std::vector<Bounded>& x,
                            const Bounded& epsilon, const Bounded& scaling);

/// The constants of one expert's activation, with their errors.
struct ActivationConstants {
  ActivationForm form = ActivationForm::swiglu;
  Bounded alpha = exact(1.0);
  Bounded beta = exact(0.0);
  Bounded limit = exact(static_cast<double>(kNoLimit));
};

/// The constants of `activation` for one expert (any index for a shared expert).
ActivationConstants activation_constants(const Arithmetic& arithmetic, const Activation& activation,
                                         std::size_t expert);
/// The activation of one (gate, up) pair; non-gated forms ignore `gate`. Formulas:
/// `ActivationForm`.
Bounded activate(const Arithmetic& arithmetic, const ActivationConstants& constants,
                 const Bounded& gate, const Bounded& up);

}  // namespace moeref::bounds
