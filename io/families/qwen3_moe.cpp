#include <fmt/format.h>

#include <algorithm>

#include "io/families/qwen3.hpp"

namespace moeref::families {

std::vector<std::int64_t> qwen3_moe_layers(const ModelConfig& config) {
  const std::vector<std::int64_t> dense = config.integers("mlp_only_layers", {0, kLayerCount.max});
  const std::int64_t step = config
                                .integer({"decoder_sparse_step"}, kLayerCount,
                                         Fallback<std::int64_t>{1, "default of Qwen3MoeConfig"})
                                .value;
  std::vector<std::int64_t> layers;
  for (const std::int64_t layer : every_layer(config)) {
    if ((layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end()) {
      layers.push_back(layer);
    }
  }
  return layers;
}

/// huggingface/transformers@16b6c53c8ec3 models/qwen3_moe/modeling_qwen3_moe.py
/// Qwen3MoeSparseMoeBlock.
void read_qwen3_layer(LayerReader& reader, const Qwen3Variant& variant) {
  MoeLayer& layer = reader.layer;
  read_sizes(reader, "moe_intermediate_size", {"num_experts", "num_local_experts"},
             {"num_experts_per_tok"});
  layer.routing.method = RoutingMethod::softmax_topk;
  reader.note("routing", "softmax_topk", "model_type " + layer.model_type);
  layer.routing.renormalize = reader.flag("renormalize", {"norm_topk_prob"}, variant.renormalize);
  layer.activation = gated_activation(reader);

  const std::string prefix = reader.choose_prefix(
      std::vector<std::string>{fmt::format("{}layers.{}.mlp.", variant.prefix, layer.layer)});
  layer.router =
      reader.matrix("router", prefix + "gate.weight", layer.expert_count(), layer.hidden);
  reader.routed_experts(prefix, ProjectionNames{}, variant.fused);
}

namespace {

void read_layer(LayerReader& reader) {
  read_qwen3_layer(reader, {"model.", kHalvesOfRows, {false, "default of Qwen3MoeConfig"}});
}

}  // namespace

extern const Family qwen3_moe{"qwen3_moe", "", qwen3_moe_layers, read_layer};

}  // namespace moeref::families
