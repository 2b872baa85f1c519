#include <fmt/format.h>

#include "io/families/family.hpp"

namespace moeref::families {
namespace {

/// huggingface/transformers@6edf5b311854 models/gpt_oss/modeling_gpt_oss.py GptOssExperts,
/// GptOssTopKRouter. Names of the MXFP4 release: integrations/mxfp4.py.
void read_layer(LayerReader& reader) {
  MoeLayer& layer = reader.layer;
  read_sizes(reader, "intermediate_size", {"num_local_experts"},
             {"num_experts_per_tok", "experts_per_token"});
  layer.routing.method = RoutingMethod::topk_softmax;
  reader.note("routing", "topk_softmax", "model_type gpt_oss: GptOssTopKRouter");

  layer.activation.form = ActivationForm::swiglu;
  layer.activation.alpha = 1.702f;
  layer.activation.beta = 1.0f;
  reader.note("activation", "swiglu", "model_type gpt_oss: GptOssExperts");
  reader.note("alpha", "1.702", "constant of GptOssExperts");
  reader.note("beta", "1", "constant of GptOssExperts");
  layer.activation.limit =
      reader.number("limit", {"swiglu_limit"}, Fallback<float>{7.0f, "constant of GptOssExperts"});

  const std::string prefix = reader.choose_prefix(
      std::vector<std::string>{fmt::format("model.layers.{}.mlp.", layer.layer)});
  layer.router =
      reader.matrix("router", prefix + "router.weight", layer.expert_count(), layer.hidden);
  layer.router_bias = reader.vector("router.bias", prefix + "router.bias", layer.expert_count());
  const bool packed = reader.has(prefix + "experts.gate_up_proj_blocks");
  reader.fused_experts(prefix, kInterleavedColumns, packed, true);
}

}  // namespace

extern const Family gpt_oss{"gpt_oss", "", every_layer, read_layer};

}  // namespace moeref::families
