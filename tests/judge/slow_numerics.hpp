#pragma once

#include <vector>

#include "engine/moe.hpp"
#include "layout/kernel_view.hpp"
#include "quant/numerics.hpp"

namespace moeref::judge {

/// What a layer leaves: stages under the engine's names, in their stored types, and the output.
struct SlowResult {
  std::vector<Stage> stages;
  std::vector<float> output;
};

/// A whole layer at the levels `reference` and `backend`, one output at a time, from the text of
/// quant/numerics.hpp and the tables of rounding points: sums in MPFR, activations in MPFR, codes
/// by the public quantizers, one rounding wherever the descriptor has one. Where the text is
/// silent:
///  - every rounding is to nearest even, an exact zero is +0, a NaN is 0x7FC00000 (or its upper
///    half);
///  - a bias that enters in the activation is added in f32, one that enters in the combine is part
///    of its exact sum;
///  - a slot without an expert here has rows of zeros.
/// Shares with the engine only what describes a layer.
SlowResult slow_numerics(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
                         const Numerics& numerics, const ForwardOptions& options);

}  // namespace moeref::judge
