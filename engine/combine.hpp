#pragma once

#include <cstdint>
#include <vector>

#include "engine/routing.hpp"
#include "engine/rows.hpp"
#include "quant/moe_layer.hpp"
#include "quant/numerics.hpp"

namespace moeref {

/// The outputs of the experts, and what joins them.
struct CombineInputs {
  const MoeLayer& layer;
  const Route& route;
  const Rows& gemm2;  ///< [tokens * top_k, width]
  WeightPoint router_weight = WeightPoint::combine;
  Format weights = Format::f32;  ///< router weights are rounded to it
  float scaling = 1.0f;          ///< routed scaling factor
  /// [tokens, width], in the one rounding of CombineForm::exact; null = none.
  const Rows* residual = nullptr;
};

/// One row per token, `output` wide: [tokens, width] from gemm2's [tokens * top_k, width]. Slots
/// whose expert is not in the layer give nothing.
Rows combine(const CombineNumerics& numerics, NumericsLevel level, const CombineInputs& inputs,
             Format output, int threads);

/// The row of the routed experts and that of the shared expert (null = none) as one, where they are
/// not joined in the combine already.
Rows join_shared(const CombineNumerics& numerics, float scaling, Rows routed, const Rows* shared);

}  // namespace moeref
