// Every storage form of one linear layer, built in a temporary folder and compared element by
// element; what the config says against the tensors; containers.

#include "io/checkpoint.hpp"

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "tests/io/checkpoint_builder.hpp"

namespace moeref::testing {
namespace {

using nlohmann::json;

// ---- storage forms

struct StorageCase {
  const char* name;
  Storage storage;
  Sizes sizes;
  json quantization;  ///< null = unquantized
  int shards = 1;
};

json compressed(const char* format, json weights) {
  return {
      {"quant_method", "compressed-tensors"},
      {"format", format},
      {"ignore", {"lm_head", "re:.*mlp.gate$"}},
      {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", std::move(weights)}}}}}};
}

json float8(const char* strategy) {
  return {{"num_bits", 8}, {"type", "float"}, {"strategy", strategy}};
}

json modelopt(const char* algorithm) {
  return {{"quant_method", "modelopt"}, {"quant_algo", algorithm}, {"ignore", {"lm_head"}}};
}

const Sizes kRagged{160, 136, 3, 2, 1};

std::vector<StorageCase> storage_cases() {
  const json nvfp4_ct = compressed(
      "nvfp4-pack-quantized", {{"num_bits", 4}, {"strategy", "tensor_group"}, {"group_size", 16}});
  json ct_block = compressed("float-quantized", float8("block"));
  ct_block["config_groups"]["group_0"]["weights"]["block_structure"] = {128, 128};
  return {
      {"bf16", Storage::bf16, kRagged, nullptr},
      {"f16", Storage::f16, kRagged, nullptr},
      {"f32", Storage::f32, kRagged, nullptr},
      {"fp8_block", Storage::fp8_block, kRagged, fp8_config(), 3},
      {"fp8_block_bf16", Storage::fp8_block_bf16, kRagged, fp8_config(), 2},
      {"fp8_block_f16", Storage::fp8_block_f16, kRagged, fp8_config()},
      {"fp8_block_ct", Storage::fp8_block_ct, kRagged, ct_block},
      {"fp8_channel", Storage::fp8_channel, kRagged,
       compressed("float-quantized", float8("channel"))},
      {"fp8_channel_flat", Storage::fp8_channel_flat, kRagged,
       compressed("float-quantized", float8("channel")), 5},
      {"fp8_tensor", Storage::fp8_tensor, kRagged, modelopt("FP8"), 2},
      {"fp8_tensor_1", Storage::fp8_tensor_1, kRagged, modelopt("FP8")},
      {"fp8_tensor_bf16", Storage::fp8_tensor_bf16, kRagged,
       compressed("float-quantized", float8("tensor"))},
      {"mxfp8", Storage::mxfp8, {96, 64, 3, 1, 1}, modelopt("MXFP8")},
      {"mxfp4_v4", Storage::mxfp4_v4, {96, 64, 3, 3, 1}, {{"quant_method", "mxfp4"}}},
      {"mxfp4_v4_u8", Storage::mxfp4_v4_u8, {96, 64, 3, 2, 1}, {{"quant_method", "mxfp4"}}},
      {"mxfp4_ct",
       Storage::mxfp4_ct,
       {96, 64, 3, 2, 1},
       compressed("mxfp4-pack-quantized", {{"num_bits", 4}, {"strategy", "group"}})},
      {"nvfp4", Storage::nvfp4, {80, 112, 3, 2, 1}, modelopt("NVFP4"), 3},
      {"nvfp4_i8", Storage::nvfp4_i8, {80, 112, 3, 2, 1}, modelopt("NVFP4")},
      {"nvfp4_ct", Storage::nvfp4_ct, {80, 112, 3, 2, 1}, nvfp4_ct, 2},
      {"nvfp4_ct_weight_only", Storage::nvfp4_ct_weight_only, {80, 112, 3, 2, 1}, nvfp4_ct},
  };
}

class StorageForm : public ::testing::TestWithParam<StorageCase> {};

TEST_P(StorageForm, IsRecognisedAndReadElementByElement) {
  const StorageCase& c = GetParam();
  CheckpointBuilder builder;
  build_qwen3(builder, c.storage, c.sizes);
  if (!c.quantization.is_null()) builder.config["quantization_config"] = c.quantization;
  const MoeLayer layer = builder.write_and_load(0, c.shards);
  EXPECT_EQ(layer.weight_format, format_name(c.storage));
  EXPECT_EQ(layer.routing.top_k, c.sizes.top_k);
  EXPECT_EQ(layer.gate_order, GateOrder::separate);
  ASSERT_EQ(layer.expert_count(), c.sizes.experts);
  for (std::int64_t e = 0; e < c.sizes.experts; ++e) {
    const std::string module = fmt::format("model.layers.0.mlp.experts.{}", e);
    expect_expert(builder, layer.experts[static_cast<std::size_t>(e)], module, c.storage,
                  c.sizes.intermediate, c.sizes.hidden, kGated, "down_proj");
  }
  EXPECT_EQ(fact(layer, "quantization_check").substr(0, 23), "agrees with the tensors");
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, StorageForm, ::testing::ValuesIn(storage_cases()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(BlockFp8, TakesTheBlockSizeFromTheConfig) {
  for (const std::int64_t block : {32, 64, 128}) {
    CheckpointBuilder builder;
    build_deepseek_v4(builder, Storage::mxfp4_v4, Storage::fp8_block_v4_u8, {96, 160, 2, 2, 1},
                      block);
    const MoeLayer layer = builder.write_and_load(0);
    ASSERT_TRUE(layer.shared.has_value());
    expect_expert(builder, *layer.shared, "layers.0.ffn.shared_experts", Storage::fp8_block_v4_u8,
                  160, 96, {"w1", "w3"}, "w2", block);
    EXPECT_EQ(layer.shared->gate.scales->block_rows, block);
  }
}

TEST(BlockFp8, NaNCodesStay) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::fp8_block, kRagged);
  builder.config["quantization_config"] = fp8_config();
  builder.tensors["model.layers.0.mlp.experts.1.up_proj.weight"].bytes[5] = std::byte{0xFF};
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_TRUE(std::isnan(read_value(layer.experts[1].up, 0, 5)));
}

TEST(Linear, ReadsABiasBesideTheWeight) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, kRagged);
  const std::string module = "model.layers.0.mlp.experts.2.";
  builder.add(module + "gate_proj.bias", DType::bf16, {kRagged.intermediate});
  builder.add(module + "down_proj.bias", DType::f32, {kRagged.hidden});
  const MoeLayer layer = builder.write_and_load(0);
  EXPECT_FALSE(layer.experts[1].gate_bias);
  EXPECT_FALSE(layer.experts[2].up_bias);
  ASSERT_EQ(layer.experts[2].gate_bias.cols, kRagged.intermediate);
  ASSERT_EQ(layer.experts[2].down_bias.cols, kRagged.hidden);
  for (std::int64_t i = 0; i < kRagged.intermediate; ++i) {
    EXPECT_EQ(read_value(layer.experts[2].gate_bias, 0, i),
              stored_value(builder.tensors.at(module + "gate_proj.bias"), i));
  }
}

// ---- config and tensors that disagree

TEST(QuantizationCheck, FollowsTensorsThatTheIgnoreListDenies) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::fp8_channel, {16, 8, 2, 1, 1});
  builder.config["quantization_config"] = compressed("float-quantized", float8("channel"));
  builder.config["quantization_config"]["ignore"] = {
      "re:model\\.layers\\.\\d+\\.mlp\\.experts\\.1\\..*"};
  const MoeLayer layer = builder.write_and_load(0);
  expect_expert(builder, layer.experts[1], "model.layers.0.mlp.experts.1", Storage::fp8_channel, 8,
                16, kGated, "down_proj");
  EXPECT_EQ(fact(layer, "quantization_check"),
            "stored as fp8_channel, the config says bf16 or f16 or f32; the tensors decide (3 of 6 "
            "modules, first model.layers.0.mlp.experts.1.gate_proj) from config.json: "
            "quantization_config");
}

TEST(QuantizationCheck, FollowsPlainTensorsThatTheConfigCallsQuantized) {
  for (const json& ignore :
       {json::array(), json::array({"Linear"}), json::array({"model.layers.0*"})}) {
    CheckpointBuilder builder;
    build_qwen3(builder, Storage::bf16, {16, 8, 2, 1, 1});
    builder.config["quantization_config"] = modelopt("NVFP4");
    builder.config["quantization_config"]["ignore"] = ignore;
    const MoeLayer layer = builder.write_and_load(0);
    EXPECT_EQ(layer.weight_format, "bf16");
    const std::string found = fact(layer, "quantization_check");
    if (ignore.empty()) {
      EXPECT_EQ(found.substr(0, 40), "stored as bf16, the config says nvfp4; t");
    } else {
      EXPECT_EQ(found.substr(0, 23), "agrees with the tensors") << ignore;
    }
  }
}

// ---- containers

TEST(Container, AcceptsNumberedShardsWithoutAnIndex) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, {16, 8, 2, 1, 1});
  builder.write(3);
  std::filesystem::remove(builder.folder / "model.safetensors.index.json");
  EXPECT_EQ(builder.open().load_layer(0).expert_count(), 2);
}

TEST(Container, ReadsScalesOfTheWantedLayerOnly) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::fp8_tensor, {16, 8, 2, 1, 2});
  builder.add_values<float>("model.layers.0.mlp.experts.0.up_proj.weight_scale", DType::f32, {},
                            {std::nanf("")});
  builder.tensors.erase("model.layers.0.mlp.experts.1.up_proj.weight");
  builder.write();
  const Checkpoint checkpoint = builder.open();
  EXPECT_EQ(checkpoint.load_layer(1).expert_count(), 2);
  EXPECT_THROW(checkpoint.load_layer(0), Error);
}

TEST(Container, KeepsTheFilesAliveWithTheLayer) {
  CheckpointBuilder builder;
  build_qwen3(builder, Storage::bf16, {16, 8, 2, 1, 1});
  builder.write(2);
  MoeLayer layer;
  {
    const Checkpoint checkpoint = builder.open();
    layer = checkpoint.load_layer(0);
  }
  expect_expert(builder, layer.experts[1], "model.layers.0.mlp.experts.1", Storage::bf16, 8, 16,
                kGated, "down_proj");
}

TEST(Container, OpensAHundredThousandTensorsQuickly) {
  CheckpointBuilder builder;
  build_deepseek_v3(builder, Storage::fp8_block, {1, 1, 256, 8, 65});
  builder.config["quantization_config"] = fp8_config();
  ASSERT_GT(builder.tensors.size(), 100000u);
  builder.write(16);
  const auto begin = std::chrono::steady_clock::now();
  const Checkpoint checkpoint = builder.open();
  const MoeLayer layer = checkpoint.load_layer(64);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(layer.expert_count(), 256);
  RecordProperty("seconds", fmt::format("{:.3f}", taken.count()));
  EXPECT_LT(
      taken.count(),
      10.0);  // an order of magnitude above what a busy machine needs: catches quadratic work only
}

}  // namespace
}  // namespace moeref::testing
