#include <fmt/format.h>

#include "io/families/family.hpp"
#include "quant/error.hpp"

namespace moeref::families {
namespace {

constexpr std::string_view kClass = "default of DeepseekV4Config";
constexpr ProjectionNames kNative{"w1", "w3", "w2"};

/// What the config says about the routed experts: `quantization_config` describes everything except
/// them.
void expect_expert_format(LayerReader& reader) {
  const std::string& converted = reader.quantization().moe_algorithm();
  if (!converted.empty()) {
    reader.expect_experts(QuantizationConfig::formats_of_algorithm(converted),
                          "config.json: moe_quant_algo");
  } else if (reader.config().has("expert_dtype") &&
             reader.word("expert_dtype", {"expert_dtype"}) == "fp4") {
    reader.expect_experts({weight_formats::kMxfp4}, "config.json: expert_dtype");
  }
}

/// The table of expert ids by token id. Error: not I64 [vocabulary, top_k], an id that is no
/// expert.
TensorView read_expert_table(LayerReader& reader, const std::string& name) {
  const MoeLayer& layer = reader.layer;
  const IndexedTensor& tensor = reader.tensors().at(name);
  const TensorView& table = *tensor.view;
  const std::string subject = reader.tensors().subject(tensor);
  if (table.dtype != DType::i64 || table.shape.size() != 2 ||
      table.shape[1] != layer.routing.top_k) {
    fail(subject, "is {} {}, needs I64 [vocab_size, {}] (num_experts_per_tok)",
         moeref::name(table.dtype), to_string(table.shape), layer.routing.top_k);
  }
  if (reader.config().has("vocab_size")) {
    const std::int64_t vocabulary = reader.integer("vocabulary", {"vocab_size"}, {1, 1 << 30});
    if (table.shape[0] < vocabulary) {
      fail(subject, "has {} rows, needs one for each of the {} tokens (vocab_size)", table.shape[0],
           vocabulary);
    }
  }
  for (std::int64_t i = 0; i < table.size(); ++i) {
    const auto id = table.at<std::int64_t>(i);
    if (id < 0 || id >= layer.expert_count()) {
      fail(subject, "token {} slot {} is expert {}, needs 0 to {}", i / layer.routing.top_k,
           i % layer.routing.top_k, id, layer.expert_count() - 1);
    }
  }
  reader.note_tensor("expert_table", tensor);
  return table;
}

/// The first layers choose experts by token id; if both a table and a bias are stored the table
/// decides.
void read_selection(LayerReader& reader, const std::string& prefix) {
  const std::string table = prefix + "gate.tid2eid";
  if (reader.has(table)) {
    reader.layer.expert_table = read_expert_table(reader, table);
    return;
  }
  const std::string converted = prefix + "gate.e_score_correction_bias";  // transformers 5
  reader.layer.selection_bias =
      reader.selection_bias(reader.has(converted) ? converted : prefix + "gate.bias");
}

/// huggingface/transformers@7fa433e14f25 models/deepseek_v4/modular_deepseek_v4.py
/// DeepseekV4SparseMoeBlock; the shared expert has the limit as of transformers 5.17.0.
void read_layer(LayerReader& reader) {
  MoeLayer& layer = reader.layer;
  read_sizes(reader, "moe_intermediate_size", {"n_routed_experts"}, {"num_experts_per_tok"});
  require_word(reader, "scoring_func", "scoring_func", "sqrtsoftplus");
  layer.routing.method = RoutingMethod::sqrt_softplus;
  reader.note("routing", "sqrt_softplus", "model_type deepseek_v4: DeepseekV4TopKRouter");
  layer.routing.renormalize = true;
  reader.note("renormalize", "true", "constant of DeepseekV4TopKRouter");
  layer.routing.sum_epsilon = 1e-20f;
  reader.note("sum_epsilon", "1e-20", "constant of DeepseekV4TopKRouter");
  layer.routing.scaling =
      reader.number("scaling", {"routed_scaling_factor"}, Fallback<float>{1.5f, kClass});
  require_word(reader, "activation", "hidden_act", "silu");
  layer.activation.form = ActivationForm::swiglu;
  layer.activation.limit = reader.number("limit", {"swiglu_limit"}, Fallback<float>{10.0f, kClass});
  if (!(layer.activation.limit > 0.0f)) {
    fail(reader.config().subject("swiglu_limit"), "is {}, needs a number above 0",
         layer.activation.limit);
  }
  layer.shared_activation = layer.activation;
  reader.note("shared_limit", fmt::format("{}", layer.activation.limit),
              "transformers 5.17.0: as routed; DeepSeek's inference code: none");
  expect_expert_format(reader);

  const std::string prefix = reader.choose_prefix(std::vector<std::string>{
      fmt::format("layers.{}.ffn.", layer.layer), fmt::format("model.layers.{}.mlp.", layer.layer),
      fmt::format("layers.{}.mlp.", layer.layer)});
  layer.router =
      reader.matrix("router", prefix + "gate.weight", layer.expert_count(), layer.hidden);
  read_selection(reader, prefix);
  const ProjectionNames names = prefix.ends_with(".ffn.") ? kNative : ProjectionNames{};
  reader.routed_experts(prefix, names, kHalvesOfRows);
  reader.shared_expert(prefix, names);
}

}  // namespace

extern const Family deepseek_v4{"deepseek_v4", "", every_layer, read_layer};

}  // namespace moeref::families
