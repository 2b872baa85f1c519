#include <fmt/format.h>

#include "io/families/family.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref::families {
namespace {

constexpr std::string_view kClass = "default of NemotronHConfig";
constexpr std::string_view kPattern = "hybrid_override_pattern";
constexpr std::string_view kNoGate;

void require_layer_count(const ModelConfig& config, std::string_view key, std::size_t count) {
  if (count == 0 || count > static_cast<std::size_t>(kLayerCount.max)) {
    fail(config.subject(key), "lists {} layers, needs 1 to {}", count, kLayerCount.max);
  }
}

/// `E` in hybrid_override_pattern, or "moe" in layers_block_type, which wins if both are there
/// (huggingface/transformers@cfeb552ef0cb configuration_nemotron_h.py).
std::vector<std::int64_t> moe_layers(const ModelConfig& config) {
  std::vector<std::int64_t> layers;
  for (const std::string_view key : {"layers_block_type", "layer_types"}) {
    if (!config.has(key)) continue;
    const std::vector<std::string> types = config.words(key);
    require_layer_count(config, key, types.size());
    for (std::size_t layer = 0; layer < types.size(); ++layer) {
      if (types[layer] == "moe") layers.push_back(static_cast<std::int64_t>(layer));
    }
    return layers;
  }
  const std::string pattern = config.word({kPattern}).value;
  require_layer_count(config, kPattern, pattern.size());
  for (std::size_t layer = 0; layer < pattern.size(); ++layer) {
    if (std::string_view("ME*-").find(pattern[layer]) == std::string_view::npos) {
      fail(config.subject(kPattern),
           "is \"{}\", needs M (mamba), E (experts), * (attention) and - (dense) only",
           one_line(pattern));
    }
    if (pattern[layer] == 'E') layers.push_back(static_cast<std::int64_t>(layer));
  }
  return layers;
}

void read_routing(LayerReader& reader) {
  Routing& routing = reader.layer.routing;
  routing.method = RoutingMethod::deepseek_v3;
  reader.note("routing", "deepseek_v3", "model_type nemotron_h: NemotronHTopkRouter");
  routing.mask_fill = MaskFill::minus_infinity;
  reader.note("mask_fill", "minus_infinity", "transformers 5 and SGLang; older transformers: 0");
  routing.groups =
      reader.integer("groups", {"n_group"}, kExpertCount, Fallback<std::int64_t>{1, kClass});
  routing.kept_groups = reader.integer("kept_groups", {"topk_group"}, kExpertCount,
                                       Fallback<std::int64_t>{1, kClass});
  routing.renormalize =
      reader.flag("renormalize", {"norm_topk_prob"}, Fallback<bool>{true, kClass});
  routing.scaling =
      reader.number("scaling", {"routed_scaling_factor"}, Fallback<float>{1.0f, kClass});
  routing.sum_epsilon = 1e-20f;
  reader.note("sum_epsilon", "1e-20", "constant of NemotronHTopkRouter");
}

/// The projections around the routed experts; their biases exist only with mlp_bias, which no
/// release sets.
void read_latent(LayerReader& reader, const std::string& prefix) {
  MoeLayer& layer = reader.layer;
  if (layer.latent == 0) return;
  const auto read = [&](const std::string& item, const std::string& module, std::int64_t rows,
                        std::int64_t cols, std::string_view rows_name, std::string_view cols_name) {
    LinearLayer linear = reader.linear(item, module, {rows, cols, rows_name, cols_name});
    if (linear.bias) {
      fail(reader.tensors().subject(reader.tensors().at(module + ".bias")),
           "latent projections with a bias are not supported");
    }
    return std::move(linear.weight);
  };
  layer.latent_in = read("latent_in", prefix + "fc1_latent_proj", layer.latent, layer.hidden,
                         "moe_latent_size", "hidden_size");
  layer.latent_out = read("latent_out", prefix + "fc2_latent_proj", layer.hidden, layer.latent,
                          "hidden_size", "moe_latent_size");
}

void read_experts(LayerReader& reader, const std::string& prefix) {
  MoeLayer& layer = reader.layer;
  layer.gate_order = GateOrder::none;
  reader.note("gate_order", "none", "model_type nemotron_h: NemotronHExperts has no gate");
  if (reader.has(prefix + "experts.up_proj")) {
    reader.stacked_experts(prefix);
    return;
  }
  const std::string_view width_name = layer.latent != 0 ? "moe_latent_size" : "hidden_size";
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    layer.experts[e] = reader.expert(
        fmt::format("experts.{}", e), fmt::format("{}experts.{}", prefix, e), {kNoGate},
        layer.intermediate, layer.expert_width(), "moe_intermediate_size", width_name);
  }
}

void read_shared(LayerReader& reader, const std::string& prefix) {
  MoeLayer& layer = reader.layer;
  const std::string module = prefix + "shared_experts";
  const auto present = reader.tensors().with_prefix(module + ".");
  const bool stated = reader.config().has("n_shared_experts");
  const std::int64_t count =
      stated ? reader.integer("shared_experts", {"n_shared_experts"}, {0, 1024}) : 0;
  if (stated && count == 0 && !present.empty()) {
    fail(reader.tensors().subject(present.front()),
         "is there, but {} is 0; set it to 1, or remove the tensors",
         reader.config().source("n_shared_experts"));
  }
  if (present.empty() && count == 0) return;
  const std::int64_t width =
      reader.integer("shared_intermediate", {"moe_shared_expert_intermediate_size"}, kWidth);
  layer.shared = reader.expert("shared", module, {kNoGate}, width, layer.hidden,
                               "moe_shared_expert_intermediate_size", "hidden_size");
}

/// huggingface/transformers@897753a012bf models/nemotron_h/modeling_nemotron_h.py NemotronHMoE.
void read_layer(LayerReader& reader) {
  MoeLayer& layer = reader.layer;
  read_sizes(reader, "moe_intermediate_size", {"n_routed_experts"}, {"num_experts_per_tok"});
  if (reader.config().has("moe_latent_size")) {
    layer.latent = reader.integer("latent", {"moe_latent_size"}, kWidth);
  }
  read_routing(reader);
  layer.activation = plain_activation(reader, "mlp_hidden_act");
  layer.shared_activation = layer.activation;

  const std::string prefix = reader.choose_prefix(
      std::vector<std::string>{fmt::format("backbone.layers.{}.mixer.", layer.layer),
                               fmt::format("model.layers.{}.mixer.", layer.layer)});
  layer.router =
      reader.matrix("router", prefix + "gate.weight", layer.expert_count(), layer.hidden);
  layer.selection_bias = reader.selection_bias(prefix + "gate.e_score_correction_bias");
  read_latent(reader, prefix);
  read_experts(reader, prefix);
  read_shared(reader, prefix);
}

}  // namespace

extern const Family nemotron_h{"nemotron_h", "", moe_layers, read_layer};

}  // namespace moeref::families
