#include <fmt/format.h>

#include "io/families/family.hpp"

namespace moeref::families {
namespace {

constexpr std::string_view kClass = "default of DeepseekV3Config";

/// Dense layers come first; of the rest every moe_layer_freq-th is MoE (deepseek-ai/DeepSeek-V3
/// modeling_deepseek.py DeepseekV3DecoderLayer).
std::vector<std::int64_t> moe_layers(const ModelConfig& config) {
  const std::int64_t dense = config
                                 .integer({"first_k_dense_replace"}, {0, kLayerCount.max},
                                          Fallback<std::int64_t>{3, kClass})
                                 .value;
  const std::int64_t step =
      config.integer({"moe_layer_freq"}, kLayerCount, Fallback<std::int64_t>{1, kClass}).value;
  std::vector<std::int64_t> layers;
  for (const std::int64_t layer : every_layer(config)) {
    if (layer >= dense && layer % step == 0) layers.push_back(layer);
  }
  return layers;
}

/// huggingface/transformers@f5a9ec512fa9 models/deepseek_v3/modeling_deepseek_v3.py DeepseekV3MoE,
/// DeepseekV3TopkRouter.
void read_layer(LayerReader& reader) {
  MoeLayer& layer = reader.layer;
  read_sizes(reader, "moe_intermediate_size", {"n_routed_experts"}, {"num_experts_per_tok"});
  require_word(reader, "scoring_func", "scoring_func", "sigmoid");
  require_word(reader, "topk_method", "topk_method", "noaux_tc");
  layer.routing.method = RoutingMethod::deepseek_v3;
  reader.note("routing", "deepseek_v3", "model_type deepseek_v3: DeepseekV3TopkRouter");
  layer.routing.mask_fill = MaskFill::minus_infinity;
  reader.note("mask_fill", "minus_infinity", "transformers 5 and SGLang; older transformers: 0");
  layer.routing.groups =
      reader.integer("groups", {"n_group"}, kExpertCount, Fallback<std::int64_t>{8, kClass});
  layer.routing.kept_groups = reader.integer("kept_groups", {"topk_group"}, kExpertCount,
                                             Fallback<std::int64_t>{4, kClass});
  layer.routing.renormalize =
      reader.flag("renormalize", {"norm_topk_prob"}, Fallback<bool>{true, kClass});
  layer.routing.scaling =
      reader.number("scaling", {"routed_scaling_factor"}, Fallback<float>{2.5f, kClass});
  layer.routing.sum_epsilon = 1e-20f;
  reader.note("sum_epsilon", "1e-20", "constant of DeepseekV3TopkRouter");
  layer.activation = gated_activation(reader);
  layer.shared_activation = layer.activation;

  const std::string prefix = reader.choose_prefix(
      std::vector<std::string>{fmt::format("model.layers.{}.mlp.", layer.layer)});
  layer.router =
      reader.matrix("router", prefix + "gate.weight", layer.expert_count(), layer.hidden);
  layer.selection_bias = reader.selection_bias(prefix + "gate.e_score_correction_bias");
  reader.routed_experts(prefix, ProjectionNames{}, kHalvesOfRows);
  reader.shared_expert(prefix, ProjectionNames{});
}

}  // namespace

extern const Family deepseek_v3{"deepseek_v3", "", moe_layers, read_layer};

}  // namespace moeref::families
