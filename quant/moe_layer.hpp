#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "quant/scaled_matrix.hpp"

// The plain-data description of one logical MoE layer: what a loader gives and the engine carries
// out.

namespace moeref {

inline constexpr float kNoLimit = std::numeric_limits<float>::infinity();

/// The activation of an expert. g = gate operand, u = up operand, L = limit, sigma(x) = 1 / (1 +
/// exp(-x)). Non-gated forms take u alone.
enum class ActivationForm : std::uint8_t {
  swiglu,  ///< g = min(g, L), u = clamp(u, -L, L); g * sigma(alpha * g) * (u + beta). Plain SiLU:
           ///< alpha 1, beta 0, no limit
  silu_clamp_after,  ///< min(g * sigma(g), L) * clamp(u, -L, L): the limit-only Triton form,
                     ///< FlashInfer SwigluStep
  geglu_erf,         ///< g * (1 + erf(g / sqrt(2))) / 2 * u
  geglu_tanh,        ///< g * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3))) / 2 * u
  relu2,             ///< non-gated: max(u, 0)^2
  silu,              ///< non-gated: u * sigma(u)
  gelu_erf,          ///< non-gated
  gelu_tanh,         ///< non-gated
};

bool is_gated(ActivationForm form);

/// Parameters of one activation; `alphas`, `betas`, `limits` hold one value per expert or are empty
/// (then the scalar holds for every expert).
struct Activation {
  ActivationForm form = ActivationForm::swiglu;
  float alpha = 1.0f;
  float beta = 0.0f;
  float limit = kNoLimit;
  std::vector<float> alphas;
  std::vector<float> betas;
  std::vector<float> limits;
};

/// How logits become expert ids and weights. Names as in the FlashInfer enumeration where one
/// exists.
enum class RoutingMethod : std::uint8_t {
  softmax_topk,   ///< Default: softmax over all, top-k of it; weights = scores, renormalised iff
                  ///< `renormalize`
  topk_softmax,   ///< Renormalize, GPT-OSS: top-k of the logits, softmax over the chosen
  deepseek_v3,    ///< grouped sigmoid with selection bias
  llama4,         ///< top-1 of the logits, weight sigma(logit)
  topk_logits,    ///< TopK: top-k of the logits, weights = logits
  sigmoid_topk,   ///< Sigmoid / SigmoidRenorm: top-k of sigma; renormalised iff `renormalize`
  minimax2,       ///< sigma + bias selects; weights = sigma over its sum
  sqrt_softplus,  ///< DeepSeek-V4: sqrt(softplus(z)) + bias selects, or a table by token id
};

/// What stands for the score of an expert outside the kept groups: SGLang and transformers 5 use
/// -inf, older transformers 0.
enum class MaskFill : std::uint8_t { minus_infinity, zero };

struct Routing {
  RoutingMethod method = RoutingMethod::topk_softmax;
  std::int64_t top_k = 1;
  std::int64_t groups = 1;       ///< deepseek_v3: equal groups of experts
  std::int64_t kept_groups = 1;  ///< deepseek_v3: groups that stay
  bool renormalize = true;       ///< divide the chosen scores by their sum
  float sum_epsilon = 0.0f;      ///< added to that sum: 1e-20 in DeepSeek models
  float scaling = 1.0f;          ///< routed_scaling_factor, part of the weight
  MaskFill mask_fill = MaskFill::minus_infinity;
};

/// One expert: gate is absent in a non-gated layer. Biases are [rows] vectors as 1 x rows matrices,
/// absent if there is none.
struct Expert {
  ScaledMatrix gate;  ///< [intermediate, input]
  ScaledMatrix up;    ///< [intermediate, input]
  ScaledMatrix down;  ///< [output, intermediate]
  ScaledMatrix gate_bias;
  ScaledMatrix up_bias;
  ScaledMatrix down_bias;
  std::optional<float> gate_input_scale;  ///< activation scale of W8A8 / W4A4 checkpoints, as
                                          ///< stored; not part of `reference`
  std::optional<float> up_input_scale;
  std::optional<float> down_input_scale;
};

/// How the two halves of w13 lie in the file, for messages and for layouts.
enum class GateOrder : std::uint8_t { separate, gate_up, up_gate, interleaved, none };

/// One fact of a layer and where it was found: "limit" "7" "config.json: swiglu_limit".
struct Provenance {
  std::string item;
  std::string value;
  std::string source;
};

/// One MoE layer with everything its output depends on.
struct MoeLayer {
  std::string model_type;
  std::int64_t layer = 0;         ///< the model's own index
  std::int64_t hidden = 0;        ///< width of the block's input and output
  std::int64_t intermediate = 0;  ///< rows of gate and of up
  std::int64_t latent = 0;  ///< width of the experts' input and output with latent projections; 0 =
                            ///< none, they see `hidden`
  std::string weight_format;  ///< one of the names `moeref formats` lists, e.g. "mxfp4"
  GateOrder gate_order = GateOrder::separate;

  Routing routing;
  ScaledMatrix router;          ///< [experts, hidden]
  ScaledMatrix router_bias;     ///< 1 x experts, part of the logit (GPT-OSS)
  ScaledMatrix selection_bias;  ///< 1 x experts, added for selection only (DeepSeek, NemotronH)
  TensorView expert_table;  ///< I64 [vocabulary, top_k]: ids by token id (DeepSeek-V4 hash layers);
                            ///< empty bytes = none

  Activation activation;
  std::vector<Expert>
      experts;  ///< the routed experts that this rank owns: all of them unless sharded
  std::int64_t first_expert =
      0;  ///< global id of experts[0]; per-expert activation arrays start there too
  std::int64_t total_experts = 0;  ///< of the whole layer, over all ranks; 0 = those in `experts`
  std::optional<Expert> shared;    ///< the shared expert
  Activation shared_activation;
  ScaledMatrix latent_in;   ///< fc1 [latent, hidden]
  ScaledMatrix latent_out;  ///< fc2 [hidden, latent]

  std::vector<Provenance> provenance;
  std::vector<std::shared_ptr<const void>> storage;  ///< keeps the mapped files alive

  std::int64_t local_experts() const { return static_cast<std::int64_t>(experts.size()); }
  /// Experts of the whole layer, over all ranks: what ids and logits count.
  std::int64_t expert_count() const { return total_experts != 0 ? total_experts : local_experts(); }
  std::int64_t expert_width() const { return latent != 0 ? latent : hidden; }
  bool gated() const { return is_gated(activation.form); }
};

}  // namespace moeref
