#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/gemm.hpp"
#include "engine/routing.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// Where the router weight of a slot enters: on the expert's output (all families here), or on its
/// input (Llama 4, apply_router_weight_on_input), then the combine adds the outputs as they are.
enum class RouterWeightPoint : std::uint8_t { output, input };

struct ForwardOptions {
  Format output = Format::bf16;  ///< f32, bf16 or f16
  RouterWeightPoint weight_point = RouterWeightPoint::output;
  float routed_scaling =
      1.0f;  ///< on the sum of the routed experts, for models that do not fold it into the weights
  bool keep_stages = false;
  int threads = 0;  ///< 0 = all
  std::function<void(std::int64_t done, std::int64_t total)>
      progress;  ///< called between experts; may be empty
};

/// One named intermediate result, row-major f32. Rows of slots without a local expert are 0.
struct Stage {
  std::string name;
  Shape shape;
  std::vector<float> values;
};

struct ForwardResult {
  std::vector<float> output;  ///< [tokens, hidden], values of `ForwardOptions::output`
  std::vector<Stage> stages;  ///< in order of computation, if kept
  GemmStatistics statistics;
};

/// Router logits [tokens, experts]: RN32(x . w + bias). Error: a layer without a router.
std::vector<float> router_logits(const MoeLayer& layer, const ScaledMatrix& hidden, int threads);

/// The routing of a layer: logits, then `Routing`; or ids from the layer's table by token id, if it
/// has one (then `token_ids` [tokens] is needed). `logits` receives the logits if not null. Error:
/// NaN logits, missing or unknown token ids.
Route route_tokens(const MoeLayer& layer, const ScaledMatrix& hidden,
                   std::span<const std::int64_t> token_ids, int threads,
                   std::vector<float>* logits = nullptr);

/// The whole layer with `reference` numerics: every stage is one rounding of the exact result of
/// its inputs.
///   hidden [tokens, hidden]   route [tokens, top_k], global expert ids; slots of experts that
///   `layer` does not own give 0 stages: fc1 [tokens, latent] (latent models); gemm1 [tokens,
///   top_k, 2 I] gate then up ([.., I] non-gated), act [tokens, top_k, I], gemm2 [tokens, top_k,
///   width]; shared_gemm1, shared_act, shared_gemm2 [tokens, ..]; combine [tokens, latent] (latent
///   models)
/// Error: shapes that disagree, ids out of range.
ForwardResult forward(const MoeLayer& layer, const ScaledMatrix& hidden, const Route& route,
                      const ForwardOptions& options);

}  // namespace moeref
