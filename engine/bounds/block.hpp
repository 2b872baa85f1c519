#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/bounds/routing.hpp"
#include "engine/routing.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::bounds {

/// Values of a whole tensor with, for each, how far any evaluation in the judged precision may be
/// from it: every operation rounded to that precision, sums in any order, library functions within
/// 4 ulp. `bound` includes the error of `value`.
struct BoundedOutput {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> value;
  std::vector<double> bound;
};

BoundedOutput bounded_output(const BoundedMatrix& matrix);

/// The outputs of one MoE block, unrounded between stages.
struct BlockOutputs {
  BoundedMatrix slots;   ///< [tokens * top_k, expert width]: unweighted, before a second latent
                         ///< projection; 0 for id -1
  BoundedMatrix routed;  ///< [tokens, hidden]
  BoundedMatrix shared;  ///< [tokens, hidden]; empty without a shared expert
  BoundedMatrix final_output;  ///< routed + shared, all terms added in any order
};

/// Carries out the experts, the weighted sum, the latent projections and the shared expert of
/// `layer`. Error: ids outside the experts, sizes that disagree.
BlockOutputs evaluate_outputs(const Arithmetic& arithmetic, const MoeLayer& layer,
                              const BoundedMatrix& hidden, const BoundedRoute& route,
                              int threads = 1);

/// routed + shared of `layer` for exact hidden values [tokens, hidden] and a route with its errors.
BoundedOutput evaluate_block(const MoeLayer& layer, std::span<const float> hidden,
                             const BoundedRoute& route, Precision precision, int threads = 1);

/// The interval in which every implementation must lie that takes f32 arithmetic in any order
/// (library functions within 4 ulp) from hidden values and route to the output, and then rounds
/// once to the output type.
struct OutputIntervals {
  std::int64_t tokens = 0;
  std::int64_t hidden = 0;
  std::vector<double> value;  ///< unrounded
  std::vector<float>
      low;  ///< smallest allowed value of the output type; -infinity where f32 may overflow
  std::vector<float> high;
};

/// `format`: f32, bf16 or f16. Weights of the route are taken as they stand.
OutputIntervals output_intervals(const MoeLayer& layer, std::span<const float> hidden,
                                 const Route& route, Format format, int threads = 1);

}  // namespace moeref::bounds
