#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/gemm.hpp"
#include "engine/routing.hpp"
#include "engine/routing_kernels.hpp"
#include "layout/kernel_view.hpp"
#include "quant/moe_layer.hpp"
#include "quant/numerics.hpp"
#include "quant/tensor.hpp"

namespace moeref {

struct ForwardOptions {
  Format output = Format::bf16;                     ///< f32, bf16 or f16
  WeightPoint weight_point = WeightPoint::combine;  ///< reference: combine, or input (Llama 4,
                                                    ///< apply_router_weight_on_input)
  float routed_scaling =
      1.0f;  ///< on the sum of the routed experts, for models that do not fold it into the weights
  bool keep_stages = false;
  /// Stages that somebody else computed, by name, as ForwardResult::stages has them: each takes the
  /// place of its own after it was computed (and kept), so that every stage follows from the given
  /// one before it.
  const std::map<std::string, Tensor, std::less<>>* given = nullptr;
  int threads = 0;  ///< 0 = all
  std::function<void(std::int64_t done, std::int64_t total)>
      progress;  ///< called between experts; may be empty
};

/// One intermediate result in the type in which it is stored.
struct Stage {
  std::string name;
  Tensor tensor;

  std::vector<float> values() const;  ///< of f32, bf16 and f16
};

/// An output that the same kernel gives under another order of its additions.
struct AlternativeOutput {
  std::string order;  ///< "combine_order=1"
  std::vector<float> output;
};

struct ForwardResult {
  /// Replay of CombineForm::folded_sum, whose order an autotuner chooses: the other orders.
  std::vector<AlternativeOutput> alternatives;
  std::vector<float> output;  ///< [tokens, hidden], values of `ForwardOptions::output`
  std::vector<Stage> stages;  ///< in order of computation, if kept
  GemmStatistics statistics;
};

/// Router logits [tokens, experts]: RN32(x . w + bias). Error: a layer without a router.
std::vector<float> router_logits(const MoeLayer& layer, const ScaledMatrix& hidden, int threads);

/// The routing of a layer: logits, then `Routing`; or ids from the layer's table by token id, if it
/// has one (then `token_ids` [tokens] is needed). `logits` receives the logits if not null. Error:
/// NaN logits, missing or unknown token ids. `kernel`: as this routing kernel computes it, from
/// logits rounded to its type; null = `reference`.
Route route_tokens(const MoeLayer& layer, const ScaledMatrix& hidden,
                   std::span<const std::int64_t> token_ids, int threads,
                   std::vector<float>* logits = nullptr, const RoutingKernel* kernel = nullptr);

/// The rounding points of `reference`: f32 after each stage, the output type at the end.
Numerics reference_numerics(const ForwardOptions& options);

/// The whole layer as `numerics` describes it.
///   hidden [tokens, hidden]   route [tokens, top_k], global expert ids; slots of experts that the
///   layer does not own give 0
/// Stages, each in its stored type: fc1 [tokens, latent] (latent models); a1_q, a1_s (what the
/// input quantizer makes) [tokens, ..]; gemm1 [tokens, top_k, 2 I] in the order of
/// KernelLayer::order ([.., I] non-gated); act [tokens, top_k, I]; a2_q, a2_s; gemm2 [tokens,
/// top_k, width]; shared_gemm1, shared_act, shared_gemm2 [tokens, ..]; combine [tokens, width]
/// (latent models, or where a shared expert is added to it). RowOrder::by_expert: [rows, ..] of the
/// local slots instead of [tokens, top_k, ..]. The shared expert and latent projections, which
/// other kernels compute, take the level `backend` where the layer is replayed. Error: shapes that
/// disagree, ids out of range, hidden states of another type than the kernels take.
ForwardResult forward(const KernelLayer& kernel, const ScaledMatrix& hidden, const Route& route,
                      const Numerics& numerics, NumericsLevel level, const ForwardOptions& options);

/// The whole logical layer with `reference` numerics: every stage is one rounding of the exact
/// result of its inputs.
ForwardResult forward(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                      const ForwardOptions& options);

}  // namespace moeref
