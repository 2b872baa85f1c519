// Whatever is wrong with the config is told in one line that names the file, the key, what it has
// and what is needed.

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/io/checkpoint_faults.hpp"

namespace moeref::testing {
namespace {

using nlohmann::json;

std::vector<Fault> config_faults() {
  const auto quantization = [](json value) {
    return [value](CheckpointBuilder& b) {
      qwen(b, Storage::bf16);
      b.config["quantization_config"] = value;
    };
  };
  return {
      {"model_type",
       qwen_with("model_type", "llama"),
       {"config.json: model_type", "\"llama\"", "gpt_oss, deepseek_v3, deepseek_v4, qwen3_moe"}},
      {"model_type_absent",
       qwen_with("model_type", nullptr),
       {"model_type", "absent", "nemotron_h"}},
      {"model_type_number", qwen_with("model_type", 7), {"model_type", "is 7, needs a string"}},
      {"model_type_with_newline", qwen_with("model_type", "a\nb"), {"model_type", "a?b"}},
      {"method",
       quantization({{"quant_method", "awq"}}),
       {"config.json: quantization_config.quant_method", "\"awq\"", "compressed-tensors, fp8"}},
      {"method_absent",
       quantization({{"bits", 4}}),
       {"quantization_config.quant_method", "absent"}},
      {"not_an_object", quantization("fp8"), {"quantization_config", "\"fp8\"", "needs an object"}},
      {"algorithm",
       quantization({{"quant_method", "modelopt"}, {"quant_algo", "W4A16_AWQ"}}),
       {"quant_algo", "\"W4A16_AWQ\"", "NVFP4"}},
      {"moe_algorithm",
       quantization({{"quant_method", "fp8"}, {"moe_quant_algo", "IQ3"}}),
       {"moe_quant_algo", "\"IQ3\"", "NVFP4"}},
      {"container",
       quantization({{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}}),
       {"quantization_config.format", "\"pack-quantized\"", "nvfp4-pack-quantized"}},
      {"block_size",
       quantization({{"quant_method", "fp8"}, {"weight_block_size", {128}}}),
       {"weight_block_size", "1 numbers, needs 2"}},
      {"block_size_negative",
       quantization({{"quant_method", "fp8"}, {"weight_block_size", {128, -1}}}),
       {"weight_block_size", "-1", "integer from 1"}},
      {"ignore_list",
       quantization({{"quant_method", "modelopt"}, {"ignore", {1}}}),
       {"ignore", "is 1, needs a string"}},
      {"hf_quant_config",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         write_bytes(b.folder / "hf_quant_config.json",
                     R"({"quantization": {"quant_algo": "INT7"}})");
       },
       {"hf_quant_config.json: quantization.quant_algo", "\"INT7\"", "MIXED_PRECISION"}},
      {"size_absent",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.config.erase("hidden_size");
       },
       {"config.json: hidden_size", "absent", "add the key"}},
      {"size_negative",
       qwen_with("hidden_size", -32),
       {"hidden_size", "is -32, needs an integer from 1"}},
      {"size_zero", qwen_with("moe_intermediate_size", 0), {"moe_intermediate_size", "is 0"}},
      {"size_huge", qwen_with("hidden_size", 1e30), {"hidden_size", "is 1e+30", "integer"}},
      {"size_above_i64",
       qwen_with("hidden_size", std::numeric_limits<std::uint64_t>::max()),
       {"hidden_size", "18446744073709551615"}},
      {"size_fraction", qwen_with("hidden_size", 32.5), {"hidden_size", "is 32.5"}},
      {"size_string", qwen_with("hidden_size", "32"), {"hidden_size", "is \"32\""}},
      {"size_list", qwen_with("num_experts", json::array({4})), {"num_experts", "is [4]"}},
      {"experts_huge", qwen_with("num_experts", 1LL << 40), {"num_experts", "1099511627776"}},
      {"layers_huge",
       qwen_with("num_hidden_layers", 2000000000),
       {"num_hidden_layers", "2000000000"}},
      {"flag_number",
       qwen_with("norm_topk_prob", 1),
       {"norm_topk_prob", "is 1, needs true or false"}},
      {"factor_string",
       v3_with("routed_scaling_factor", "2.5"),
       {"routed_scaling_factor", "\"2.5\"", "finite number"}},
      {"factor_huge", v3_with("routed_scaling_factor", 1e39), {"routed_scaling_factor", "1e+39"}},
      {"limit",
       [](CheckpointBuilder& b) {
         build_deepseek_v4(b, Storage::bf16, Storage::bf16, kSmall);
         b.config["swiglu_limit"] = 0;
       },
       {"swiglu_limit", "is 0", "above 0"}},
      {"activation", qwen_with("hidden_act", "tanh"), {"hidden_act", "\"tanh\"", "silu"}},
      {"scoring",
       v3_with("scoring_func", "softmax"),
       {"scoring_func", "\"softmax\"", "\"sigmoid\""}},
      {"method_of_top_k", v3_with("topk_method", "greedy"), {"topk_method", "noaux_tc"}},
      {"top_k", qwen_with("num_experts_per_tok", 5), {"top_k is 5", "4 experts"}},
      {"groups", v3_with("n_group", 3), {"4 experts", "3 groups"}},
      {"groups_of_one", v3_with("n_group", 4), {"groups of one expert"}},
      {"kept_groups", v3_with("topk_group", 3), {"topk_group is 3", "2 groups"}},
      {"top_k_in_groups",
       v3_with("num_experts_per_tok", 3),
       {"top_k is 3", "2 experts in 1 kept groups"}},
      {"dense_layer", v3_with("first_k_dense_replace", 1), {"layer 0 has no experts", "no layer"}},
      {"step", qwen_with("decoder_sparse_step", 0), {"decoder_sparse_step", "is 0"}},
      {"dense_list", qwen_with("mlp_only_layers", "none"), {"mlp_only_layers", "needs a list"}},
      {"section_absent",
       qwen_with("model_type", "qwen3_vl_moe"),
       {"config.json: text_config", "absent"}},
      {"pattern",
       [](CheckpointBuilder& b) {
         build_nemotron_h(b, Storage::bf16, Storage::bf16, kSmall);
         b.config["hybrid_override_pattern"] = "MEX";
       },
       {"hybrid_override_pattern", "\"MEX\"", "E (experts)"},
       1},
      {"pattern_empty",
       [](CheckpointBuilder& b) {
         build_nemotron_h(b, Storage::bf16, Storage::bf16, kSmall);
         b.config["hybrid_override_pattern"] = "";
       },
       {"hybrid_override_pattern", "lists 0 layers"},
       1},
  };
}

class FaultyConfig : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultyConfig, IsRefusedInOneLine) { expect_refused(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Checkpoint, FaultyConfig, ::testing::ValuesIn(config_faults()),
                         fault_name);

TEST(LayerNumber, OutOfRangeOrDenseListsTheMoeLayers) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::bf16, kSmall);
  builder.config["num_hidden_layers"] = 61;
  builder.config["first_k_dense_replace"] = 3;
  builder.write();
  for (const std::int64_t layer : {std::int64_t{-1}, std::int64_t{2}, std::int64_t{61},
                                   std::numeric_limits<std::int64_t>::max()}) {
    expect_says(load_message(builder, layer),
                {fmt::format("layer {} has no experts", layer), "the MoE layers are 3-60"});
  }
}

}  // namespace
}  // namespace moeref::testing
