// Every model family: names, sizes, routing, activation, and the forms in which its experts are
// stored.

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "quant/error.hpp"
#include "tests/io/checkpoint_builder.hpp"

namespace moeref::testing {
namespace {

using nlohmann::json;

// ---- GPT-OSS

TEST(GptOss, ViewsInterleavedMxfp4Rows) {
  const Sizes sizes{64, 96, 3, 1, 2};
  CheckpointBuilder builder;
  build_gpt_oss(builder, sizes);
  const MoeLayer layer = builder.write_and_load(1, 4);
  EXPECT_EQ(layer.weight_format, "mxfp4");
  EXPECT_EQ(layer.gate_order, GateOrder::interleaved);
  EXPECT_EQ(fact(layer, "top_k"), "1 from config.json: experts_per_token");
  EXPECT_EQ(fact(layer, "limit"), "7 from constant of GptOssExperts");
  const std::string prefix = "model.layers.1.mlp.experts.";
  const auto value = [&](const std::string& name, std::int64_t row, std::int64_t cols,
                         std::int64_t col) {
    return stored_fp4(builder.tensors.at(prefix + name + "_blocks"), row * cols + col) *
           stored_e8m0(builder.tensors.at(prefix + name + "_scales"), (row * cols + col) / 32);
  };
  for (std::int64_t e = 0; e < 3; ++e) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    for (std::int64_t i = 0; i < 96; ++i) {
      for (std::int64_t k = 0; k < 64; ++k) {
        ASSERT_EQ(read_value(expert.gate, i, k), value("gate_up_proj", e * 192 + 2 * i, 64, k));
        ASSERT_EQ(read_value(expert.up, i, k), value("gate_up_proj", e * 192 + 2 * i + 1, 64, k));
        ASSERT_EQ(read_value(expert.down, k, i), value("down_proj", e * 64 + k, 96, i));
      }
      const Tensor& bias = builder.tensors.at(prefix + "gate_up_proj_bias");
      ASSERT_EQ(read_value(expert.gate_bias, 0, i), stored_value(bias, e * 192 + 2 * i));
      ASSERT_EQ(read_value(expert.up_bias, 0, i), stored_value(bias, e * 192 + 2 * i + 1));
    }
    for (std::int64_t k = 0; k < 64; ++k) {
      ASSERT_EQ(read_value(expert.down_bias, 0, k),
                stored_value(builder.tensors.at(prefix + "down_proj_bias"), e * 64 + k));
    }
  }
}

/// Expert tensors [E, H, 2I] and [E, I, H], or [E, 2I, H] and [E, H, I].
void add_fused(CheckpointBuilder& builder, const std::string& prefix, DType dtype, std::int64_t e,
               std::int64_t h, std::int64_t i, bool transposed) {
  builder.add(prefix + "experts.gate_up_proj", dtype,
              transposed ? Shape{e, h, 2 * i} : Shape{e, 2 * i, h});
  builder.add(prefix + "experts.down_proj", dtype, transposed ? Shape{e, i, h} : Shape{e, h, i});
}

void erase_experts(CheckpointBuilder& builder) {
  std::erase_if(builder.tensors, [](const auto& entry) {
    return entry.first.find(".experts.") != std::string::npos;
  });
}

/// Where the up (or gate) operand i of expert e stands among the 2I rows or columns.
enum class Order { interleaved, halves };

void expect_fused(const CheckpointBuilder& builder, const MoeLayer& layer,
                  const std::string& prefix, bool transposed, Order order) {
  const std::int64_t h = layer.expert_width();
  const std::int64_t inter = layer.intermediate;
  const Tensor& gate_up = builder.tensors.at(prefix + "experts.gate_up_proj");
  const Tensor& down = builder.tensors.at(prefix + "experts.down_proj");
  for (std::int64_t e = 0; e < layer.expert_count(); ++e) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    ASSERT_EQ(expert.gate.rows, inter);
    ASSERT_EQ(expert.down.rows, h);
    for (std::int64_t i = 0; i < inter; ++i) {
      const std::int64_t gate_at = order == Order::halves ? i : 2 * i;
      const std::int64_t up_at = order == Order::halves ? inter + i : 2 * i + 1;
      for (std::int64_t k = 0; k < h; ++k) {
        const auto index = [&](std::int64_t at) {
          return transposed ? (e * h + k) * 2 * inter + at : (e * 2 * inter + at) * h + k;
        };
        ASSERT_EQ(read_value(expert.gate, i, k), stored_value(gate_up, index(gate_at)));
        ASSERT_EQ(read_value(expert.up, i, k), stored_value(gate_up, index(up_at)));
        ASSERT_EQ(
            read_value(expert.down, k, i),
            stored_value(down, transposed ? (e * inter + i) * h + k : (e * h + k) * inter + i));
      }
    }
  }
}

TEST(GptOss, ReadsTheTransposedPlainRelease) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    CheckpointBuilder builder;
    build_gpt_oss(builder, {48, 24, 3, 2, 1});  // H = 2I: the shape says nothing
    builder.config.erase("quantization_config");
    builder.config["swiglu_limit"] = 5;
    const std::string prefix = "model.layers.0.mlp.";
    for (const char* name : {"gate_up_proj", "down_proj"}) {
      builder.tensors.erase(prefix + "experts." + name + "_blocks");
      builder.tensors.erase(prefix + "experts." + name + "_scales");
    }
    add_fused(builder, prefix, dtype, 3, 48, 24, true);
    const MoeLayer layer = builder.write_and_load(0);
    EXPECT_EQ(layer.gate_order, GateOrder::interleaved);
    EXPECT_EQ(layer.activation.limit, 5.0f);
    expect_fused(builder, layer, prefix, true, Order::interleaved);
    EXPECT_EQ(read_value(layer.experts[1].up_bias, 0, 2),
              stored_value(builder.tensors.at(prefix + "experts.gate_up_proj_bias"), 48 + 5));
  }
}

// ---- Qwen3

TEST(Qwen3Moe, TakesRenormalisationFromTheConfigAndNotByDefault) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, {16, 8, 4, 1, 1});
  EXPECT_TRUE(builder.write_and_load(0).routing.renormalize);
  builder.config.erase("norm_topk_prob");
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_EQ(fact(layer, "renormalize"), "false from default of Qwen3MoeConfig");
  EXPECT_EQ(layer.routing.method, RoutingMethod::softmax_topk);
  EXPECT_EQ(layer.routing.top_k, 1);
}

TEST(Qwen3Moe, FindsSparseLayers) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, {16, 8, 2, 1, 1});
  builder.config["num_hidden_layers"] = 9;
  builder.config["decoder_sparse_step"] = 2;
  builder.config["mlp_only_layers"] = {3};
  builder.write();
  EXPECT_EQ(builder.open().moe_layers(), (std::vector<std::int64_t>{1, 5, 7}));
}

TEST(Qwen3Moe, ReadsTheFusedFormOfTransformers5) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, {24, 12, 3, 2, 1});  // 2I = H
  erase_experts(builder);
  add_fused(builder, "model.layers.0.mlp.", DType::bf16, 3, 24, 12, false);
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.gate_order, GateOrder::gate_up);
  EXPECT_EQ(layer.weight_format, "bf16");
  expect_fused(builder, layer, "model.layers.0.mlp.", false, Order::halves);
}

TEST(Qwen3Vl, ReadsTransposedHalvesFromTheNestedModel) {
  for (const std::int64_t intermediate : {std::int64_t{12}, std::int64_t{10}}) {
    CheckpointBuilder builder;
    build_qwen3(builder, Storage::bf16, {24, intermediate, 3, 2, 1});
    json text = builder.config;
    text.erase("norm_topk_prob");
    text["model_type"] = "qwen3_vl_moe_text";
    builder.config = {{"model_type", "qwen3_vl_moe"},
                      {"text_config", text},
                      {"vision_config", {{"hidden_size", 7}}}};
    builder.tensors.clear();
    const std::string prefix = "model.language_model.layers.0.mlp.";
    builder.add(prefix + "gate.weight", DType::bf16, {3, 24});
    builder.add("model.visual.blocks.0.mlp.linear_fc1.weight", DType::bf16, {3, 5});
    add_fused(builder, prefix, DType::bf16, 3, 24, intermediate, true);
    const MoeLayer layer = builder.write_and_load(0);
    EXPECT_EQ(layer.gate_order, GateOrder::gate_up);
    EXPECT_TRUE(layer.routing.renormalize);
    EXPECT_EQ(fact(layer, "hidden"), "24 from config.json: text_config.hidden_size");
    expect_fused(builder, layer, prefix, true, Order::halves);
  }
}

TEST(Qwen3Vl, ReadsQuantizedExpertsOneByOne) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::fp8_block, {40, 24, 2, 2, 1});
  std::map<std::string, Tensor> renamed;
  for (auto& [name, tensor] : builder.tensors) {
    const std::string to = "model.language_model." + name.substr(6);
    tensor.name = to;
    renamed[to] = tensor;
  }
  builder.tensors = renamed;
  builder.config = {{"model_type", "qwen3_vl_moe"},
                    {"text_config", builder.config},
                    {"quantization_config", fp8_config()}};
  const MoeLayer layer = builder.write_and_load(0);
  expect_expert(builder, layer.experts[1], "model.language_model.layers.0.mlp.experts.1",
                Storage::fp8_block, 24, 40, kGated, "down_proj");
}

TEST(Qwen3Moe, KeepsDifferentGlobalScalesOfGateAndUp) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::nvfp4_ct, {32, 48, 2, 2, 1});
  const std::string module = "model.layers.0.mlp.experts.0.";
  builder.add_values<float>(module + "gate_proj.weight_global_scale", DType::f32, {1}, {1000.5f});
  builder.add_values<float>(module + "up_proj.weight_global_scale", DType::f32, {1}, {2048.25f});
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.experts[0].gate.global_scale, 1000.5f);
  EXPECT_EQ(layer.experts[0].up.global_scale, 2048.25f);
}

// ---- DeepSeek

TEST(DeepseekV3, ReadsBlockFp8WithSharedExperts) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::fp8_block, {144, 136, 4, 2, 1});
  builder.config["quantization_config"] = fp8_config();
  builder.config["n_shared_experts"] = 2;
  std::erase_if(builder.tensors, [](const auto& entry) {
    return entry.first.find("shared_experts") != std::string::npos;
  });
  builder.add_expert("model.layers.0.mlp.shared_experts", Storage::fp8_block, 272, 144, kGated,
                     "down_proj");
  const MoeLayer layer = builder.write_and_load(0, 3);
  ASSERT_TRUE(layer.shared.has_value());
  expect_expert(builder, *layer.shared, "model.layers.0.mlp.shared_experts", Storage::fp8_block,
                272, 144, kGated, "down_proj");
  expect_expert(builder, layer.experts[3], "model.layers.0.mlp.experts.3", Storage::fp8_block, 136,
                144, kGated, "down_proj");
  EXPECT_EQ(layer.routing.method, RoutingMethod::deepseek_v3);
  EXPECT_EQ(layer.routing.groups, 2);
  EXPECT_EQ(layer.routing.kept_groups, 1);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.scaling, 2.5f);
  EXPECT_EQ(fact(layer, "scaling"), "2.5 from default of DeepseekV3Config");
  EXPECT_EQ(layer.selection_bias.cols, 4);
}

TEST(DeepseekV3, HasNoSharedExpertWithoutTheKeyAndTheTensors) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::bf16, {16, 8, 4, 2, 1});
  std::erase_if(builder.tensors, [](const auto& entry) {
    return entry.first.find("shared_experts") != std::string::npos;
  });
  for (const json& value : {json(0), json(nullptr)}) {
    builder.config["n_shared_experts"] = value;
    EXPECT_FALSE(builder.write_and_load(0).shared.has_value());
  }
  builder.config.erase("n_shared_experts");
  EXPECT_FALSE(builder.write_and_load(0).shared.has_value());
}

TEST(DeepseekV3, TakesTheSharedWidthFromTheTensorsIfTheKeyIsAbsent) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::bf16, {16, 8, 4, 2, 1});
  builder.config.erase("n_shared_experts");
  EXPECT_EQ(builder.write_and_load(0).shared->up.rows, 8);
}

TEST(DeepseekV3, SkipsDenseAndMultiTokenPredictionLayers) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::bf16, {16, 8, 4, 2, 7});
  builder.config["num_hidden_layers"] = 6;  // layer 6 of the file is for multi-token prediction
  builder.config["first_k_dense_replace"] = 1;
  builder.config["moe_layer_freq"] = 2;
  builder.add("model.layers.6.eh_proj.weight", DType::bf16, {3, 3});
  builder.write(2);
  const Checkpoint checkpoint = builder.open();
  EXPECT_EQ(checkpoint.moe_layers(), (std::vector<std::int64_t>{2, 4}));
  const MoeLayer layer = checkpoint.load_layer(4);
  expect_expert(builder, layer.experts[2], "model.layers.4.mlp.experts.2", Storage::bf16, 8, 16,
                kGated, "down_proj");
  EXPECT_THROW(checkpoint.load_layer(6), Error);
}

TEST(DeepseekV3, ReadsTheFusedFormOfTransformers5) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::bf16, {24, 10, 4, 2, 1});
  erase_experts(builder);
  add_fused(builder, "model.layers.0.mlp.", DType::f32, 4, 24, 10, false);
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.weight_format, "f32");
  EXPECT_TRUE(layer.shared.has_value());
  expect_fused(builder, layer, "model.layers.0.mlp.", false, Order::halves);
}

TEST(DeepseekV4, ReadsMxfp4ExpertsAndTheLimit) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::mxfp4_v4, Storage::fp8_block_v4, {96, 64, 4, 2, 1});
  const MoeLayer layer = builder.write_and_load(0, 2);
  expect_expert(builder, layer.experts[3], "layers.0.ffn.experts.3", Storage::mxfp4_v4, 64, 96,
                {"w1", "w3"}, "w2");
  EXPECT_EQ(layer.activation.limit, 10.0f);
  EXPECT_EQ(layer.shared_activation.limit, 10.0f);
  EXPECT_EQ(layer.routing.method, RoutingMethod::sqrt_softplus);
  EXPECT_EQ(layer.routing.scaling, 1.5f);
  EXPECT_EQ(layer.routing.groups, 1);
  EXPECT_EQ(fact(layer, "expert_formats"), "mxfp4 from config.json: expert_dtype");
}

TEST(DeepseekV4, LetsTheTableDecideIfThereIsABiasToo) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::mxfp4_v4, Storage::fp8_block_v4, {32, 32, 4, 2, 1});
  builder.add("layers.0.ffn.gate.tid2eid", DType::i64, {10, 2});
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.expert_table.shape, (Shape{10, 2}));
  EXPECT_FALSE(layer.selection_bias);
}

TEST(DeepseekV4, ReadsTheModeloptConversionToNvfp4) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::nvfp4, Storage::fp8_block_v4, {96, 64, 4, 2, 1});
  builder.config["quantization_config"]["moe_quant_algo"] = "NVFP4";
  builder.add_expert("mtp.0.ffn.experts.0", Storage::mxfp4_v4, 64, 96, {"w1", "w3"}, "w2");
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.weight_format, "nvfp4");
  expect_expert(builder, layer.experts[0], "layers.0.ffn.experts.0", Storage::nvfp4, 64, 96,
                {"w1", "w3"}, "w2");
  EXPECT_EQ(fact(layer, "quantization_check").substr(0, 23), "agrees with the tensors");
}

TEST(DeepseekV4, ReadsBlockFp8ExpertsOfTheBaseModel) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::fp8_block_v4_f32, Storage::fp8_block_v4_f32,
                    {144, 136, 2, 2, 1});
  builder.config["expert_dtype"] = "fp8";
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_EQ(layer.weight_format, "fp8_block");
  expect_expert(builder, layer.experts[1], "layers.0.ffn.experts.1", Storage::fp8_block_v4_f32, 136,
                144, {"w1", "w3"}, "w2");
}

TEST(DeepseekV4, ReadsTheNamesAndTheFusedFormOfTransformers5) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::bf16, Storage::bf16, {24, 12, 4, 2, 1});
  builder.config.erase("quantization_config");
  builder.config.erase("expert_dtype");
  builder.tensors.clear();
  const std::string prefix = "model.layers.0.mlp.";
  builder.add(prefix + "gate.weight", DType::bf16, {4, 24});
  builder.add(prefix + "gate.e_score_correction_bias", DType::f32, {4});
  builder.add_expert(prefix + "shared_experts", Storage::bf16, 12, 24, kGated, "down_proj");
  add_fused(builder, prefix, DType::bf16, 4, 24, 12, false);
  const MoeLayer layer = builder.write_and_load(0);
  expect_fused(builder, layer, prefix, false, Order::halves);
  EXPECT_TRUE(layer.shared.has_value());
  EXPECT_TRUE(layer.selection_bias);
}

// ---- NemotronH

TEST(NemotronH, ReadsMixedPrecisionPerModule) {
  CheckpointBuilder builder;  // K = 136 of down_proj is no multiple of 16: only its FP8 form exists
  build_nemotron_h(builder, Storage::nvfp4_i8, Storage::fp8_tensor_1, {128, 136, 4, 1, 1});
  json layers = json::object();
  for (int e = 0; e < 4; ++e) {
    const std::string module = fmt::format("backbone.layers.1.mixer.experts.{}.", e);
    layers[module + "up_proj"] = {{"quant_algo", "NVFP4"}, {"group_size", 16}};
    layers[module + "down_proj"] = {{"quant_algo", "FP8"}};
  }
  layers["backbone.layers.1.mixer.shared_experts.up_proj"] = {{"quant_algo", "NVFP4"}};
  layers["backbone.layers.1.mixer.shared_experts.down_proj"] = {{"quant_algo", "FP8"}};
  builder.config["quantization_config"] = {{"quant_method", "modelopt"},
                                           {"quant_algo", "MIXED_PRECISION"},
                                           {"quantized_layers", layers}};
  const MoeLayer layer = builder.write_and_load(1, 3);
  EXPECT_EQ(layer.weight_format, "nvfp4+fp8_tensor");
  for (std::size_t e = 0; e < 4; ++e) {
    const std::string module = fmt::format("backbone.layers.1.mixer.experts.{}.", e);
    expect_linear(builder, layer.experts[e].up, module + "up_proj", Storage::nvfp4_i8, 136, 128);
    expect_linear(builder, layer.experts[e].down, module + "down_proj", Storage::fp8_tensor_1, 128,
                  136);
    EXPECT_TRUE(layer.experts[e].up_input_scale.has_value());
  }
  EXPECT_EQ(fact(layer, "quantization_check").substr(0, 23), "agrees with the tensors");
  EXPECT_EQ(fact(layer, "quantization").substr(0, 24), "modelopt MIXED_PRECISION");
}

TEST(NemotronH, TakesTheQuantizationFromHfQuantConfigAlone) {
  CheckpointBuilder builder;
  build_nemotron_h(builder, Storage::fp8_tensor, Storage::fp8_tensor, {32, 24, 4, 2, 1}, "model.");
  write_bytes(builder.folder / "hf_quant_config.json",
              json{{"producer", {{"name", "modelopt"}}},
                   {"quantization",
                    {{"quant_algo", "FP8"}, {"exclude_modules", {"model.layers.0*", "lm_head"}}}}}
                  .dump());
  const MoeLayer layer = builder.write_and_load(1);
  EXPECT_EQ(fact(layer, "quantization"), "modelopt FP8 from hf_quant_config.json: quantization");
  EXPECT_EQ(fact(layer, "quantization_check").substr(0, 23), "agrees with the tensors");
}

TEST(NemotronH, ReadsLatentProjections) {
  CheckpointBuilder builder;
  build_nemotron_h(builder, Storage::bf16, Storage::bf16, {40, 24, 4, 2, 1}, "model.", 16);
  const MoeLayer layer = builder.write_and_load(1);
  EXPECT_EQ(layer.latent, 16);
  EXPECT_EQ(layer.expert_width(), 16);
  const std::string prefix = "model.layers.1.mixer.";
  expect_linear(builder, layer.latent_in, prefix + "fc1_latent_proj", Storage::bf16, 16, 40);
  expect_linear(builder, layer.latent_out, prefix + "fc2_latent_proj", Storage::bf16, 40, 16);
  expect_linear(builder, layer.experts[3].up, prefix + "experts.3.up_proj", Storage::bf16, 24, 16);
  expect_linear(builder, layer.experts[3].down, prefix + "experts.3.down_proj", Storage::bf16, 16,
                24);
  expect_linear(builder, layer.shared->up, prefix + "shared_experts.up_proj", Storage::bf16, 48,
                40);
  EXPECT_EQ(layer.router.codes.format, Format::f32);
  EXPECT_EQ(layer.activation.form, ActivationForm::relu2);
  EXPECT_EQ(layer.routing.groups, 1);
  EXPECT_EQ(layer.routing.scaling, 2.5f);
}

TEST(NemotronH, ReadsStackedExperts) {
  CheckpointBuilder builder;
  build_nemotron_h(builder, Storage::bf16, Storage::bf16, {40, 24, 3, 2, 1}, "model.", 16);
  erase_experts(builder);
  const std::string prefix = "model.layers.1.mixer.experts.";
  builder.add(prefix + "up_proj", DType::bf16, {3, 24, 16});
  builder.add(prefix + "down_proj", DType::bf16, {3, 16, 24});
  const MoeLayer layer = builder.write_and_load(1);
  EXPECT_EQ(layer.gate_order, GateOrder::none);
  for (std::int64_t e = 0; e < 3; ++e) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    EXPECT_FALSE(expert.gate);
    for (std::int64_t i = 0; i < 24; ++i) {
      for (std::int64_t k = 0; k < 16; ++k) {
        ASSERT_EQ(read_value(expert.up, i, k),
                  stored_value(builder.tensors.at(prefix + "up_proj"), (e * 24 + i) * 16 + k));
        ASSERT_EQ(read_value(expert.down, k, i),
                  stored_value(builder.tensors.at(prefix + "down_proj"), (e * 16 + k) * 24 + i));
      }
    }
  }
}

TEST(NemotronH, FindsMoeLayersByEitherKey) {
  CheckpointBuilder builder;
  build_nemotron_h(builder, Storage::bf16, Storage::bf16, {16, 8, 4, 2, 1});
  builder.write();
  EXPECT_EQ(builder.open().moe_layers(), (std::vector<std::int64_t>{1}));
  builder.config["layers_block_type"] = {"moe", "mamba", "moe", "attention", "mlp"};
  builder.write();
  EXPECT_EQ(builder.open().moe_layers(), (std::vector<std::int64_t>{0, 2}));
}

TEST(NemotronH, DoesWithoutASharedExpert) {
  CheckpointBuilder builder;
  build_nemotron_h(builder, Storage::bf16, Storage::bf16, {16, 8, 4, 2, 1});
  std::erase_if(builder.tensors, [](const auto& entry) {
    return entry.first.find("shared_experts") != std::string::npos;
  });
  builder.config["n_shared_experts"] = 0;
  EXPECT_FALSE(builder.write_and_load(1).shared.has_value());
}

}  // namespace
}  // namespace moeref::testing
