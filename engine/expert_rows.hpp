#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/activation.hpp"
#include "engine/layer_gemm.hpp"
#include "engine/rows.hpp"
#include "engine/stage_operand.hpp"
#include "quant/moe_layer.hpp"
#include "quant/numerics.hpp"

// The two halves of an MLP for some rows: GEMM1 with the activation, and GEMM2.

namespace moeref {

/// One expert as the GEMMs take it.
struct ExpertView {
  const Expert* expert = nullptr;
  ActivationParameters activation;
  float gate_factor = 1.0f;
  float up_factor = 1.0f;
  float down_factor = 1.0f;
};

/// Rows of the left operand (`sources`) that one expert works on, and the rows of its results.
struct ExpertBatch {
  std::span<const std::int64_t> sources;
  std::span<const std::int64_t> results;
  std::span<const float> weights;  ///< router weights of the rows
};

/// What an MLP writes to. `gemm1` may be null (not kept). `given_gemm1`: read in its place by the
/// activation; or null.
struct ExpertStages {
  Rows* gemm1 = nullptr;
  const Rows* given_gemm1 = nullptr;
  GateOrder order = GateOrder::gate_up;  ///< of the columns of gemm1
  Rows* act = nullptr;
};

/// GEMM1 and the activation of a batch.
void run_first_half(const Numerics& numerics, const ExpertView& expert, const LayerOperand& x,
                    const ExpertBatch& batch, const ExpertStages& stages, int threads,
                    GemmStatistics* statistics);

/// GEMM2 of a batch; `sources` = the rows of x.
void run_second_half(const Numerics& numerics, const ExpertView& expert, const LayerOperand& x,
                     const ExpertBatch& batch, Rows& gemm2, int threads,
                     GemmStatistics* statistics);

}  // namespace moeref
