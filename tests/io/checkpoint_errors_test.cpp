// Whatever is wrong with the tensors is told in one line that names the file, the tensor, what it
// has and what is needed.

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/io/checkpoint_faults.hpp"

namespace moeref::testing {
namespace {

using nlohmann::json;

const std::string kExpert = "model.layers.0.mlp.experts.1.";

void qwen_fp8(CheckpointBuilder& b) {
  qwen(b, Storage::fp8_block);
  b.config["quantization_config"] = fp8_config();
}

std::function<void(CheckpointBuilder&)> with_scale(Storage storage, const std::string& suffix,
                                                   std::size_t byte, std::vector<int> values) {
  return [=](CheckpointBuilder& b) {
    qwen(b, storage);
    b.config["quantization_config"] = fp8_config();
    for (std::size_t i = 0; i < values.size(); ++i) {
      b.tensors.at(kExpert + "up_proj" + suffix).bytes[byte + i] =
          static_cast<std::byte>(values[i]);
    }
  };
}

std::vector<Fault> tensor_faults() {
  return {
      {"missing_weight",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.tensors.erase(kExpert + "up_proj.weight");
       },
       {"tensor model.layers.0.mlp.experts.1.up_proj.weight is missing", "nearest",
        "experts.1.gate_proj.weight"}},
      {"missing_router",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.tensors.erase("model.layers.0.mlp.gate.weight");
       },
       {"tensor model.layers.0.mlp.gate.weight is missing"}},
      {"missing_bias",
       [](CheckpointBuilder& b) {
         v3(b);
         b.tensors.erase("model.layers.0.mlp.gate.e_score_correction_bias");
       },
       {"gate.e_score_correction_bias is missing", "model.layers.0.mlp.gate.weight"}},
      {"missing_layer",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.config["num_hidden_layers"] = 2;
       },
       {"no tensor of layer 1 begins with model.layers.1.mlp."},
       1},
      {"weight_and_weight_packed",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4_ct);
         b.add(kExpert + "up_proj.weight", DType::bf16, {48, 32});
       },
       {"model.safetensors: " + kExpert + "up_proj.weight", "weight_packed is there too"}},
      {"fp8_without_scale",
       [](CheckpointBuilder& b) {
         qwen_fp8(b);
         b.tensors.erase(kExpert + "down_proj.weight_scale_inv");
       },
       {kExpert + "down_proj.weight", "F8_E4M3 [32, 48] without any scale", "weight_scale_inv"}},
      {"fp4_without_global_scale",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4);
         b.tensors.erase(kExpert + "down_proj.weight_scale_2");
       },
       {kExpert + "down_proj.weight", "U8 [32, 24]", ".weight_scale F8_E4M3 [32, 3]",
        ".weight_scale + .weight_scale_2 (nvfp4)"}},
      {"plain_weight_with_scale",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add(kExpert + "up_proj.weight_scale", DType::f32, {1});
       },
       {kExpert + "up_proj.weight", "BF16 [48, 32] with scales [.weight_scale F32 [1]]",
        "no scale"}},
      {"two_scales",
       [](CheckpointBuilder& b) {
         qwen_fp8(b);
         b.add(kExpert + "up_proj.weight_scale", DType::f32, {1});
       },
       {kExpert + "up_proj.weight", ".weight_scale F32 [1]", ".weight_scale_inv F32 [1, 1]"}},
      {"four_dimensional_scale",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::fp8_tensor);
         b.add(kExpert + "up_proj.weight_scale", DType::f32, {1, 1, 1, 1});
       },
       {kExpert + "up_proj.weight_scale", "[1, 1, 1, 1]", "FP8_PB_WO", "not supported"}},
      {"unknown_dtype",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add_values<double>(kExpert + "up_proj.weight", DType::f64, {48, 32},
                              std::vector<double>(48 * 32));
       },
       {kExpert + "up_proj.weight", "F64 [48, 32]", "needs BF16, F16, F32 or F8_E4M3"}},
      {"e5m2",
       [](CheckpointBuilder& b) {
         qwen_fp8(b);
         b.tensors.at(kExpert + "up_proj.weight").dtype = DType::f8_e5m2;
       },
       {kExpert + "up_proj.weight", "F8_E5M2"}},
      {"smoothing_scale",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4);
         b.add(kExpert + "up_proj.pre_quant_scale", DType::bf16, {32});
       },
       {kExpert + "up_proj.pre_quant_scale", "not supported"}},
      {"block_scale_shape",
       [](CheckpointBuilder& b) {
         qwen_fp8(b);
         b.add(kExpert + "up_proj.weight_scale_inv", DType::f32, {1, 2});
       },
       {kExpert + "up_proj.weight_scale_inv", "[1, 2]", "needs [1, 1]", "128 x 128", "[48, 32]"}},
      {"no_block_size",
       [](CheckpointBuilder& b) {
         qwen_fp8(b);
         b.config["quantization_config"].erase("weight_block_size");
       },
       {"weight_scale_inv", "no weight_block_size", "add it"}},
      {"channel_scale_shape",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::fp8_channel);
         b.add(kExpert + "up_proj.weight_scale", DType::f32, {47, 1});
       },
       {kExpert + "up_proj.weight_scale", "[47, 1]", "[48, 1]"}},
      {"group_scale_shape",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4);
         b.add(kExpert + "up_proj.weight_scale", DType::f8_e4m3, {48, 3});
       },
       {kExpert + "up_proj.weight_scale", "[48, 3]", "needs [48, 2]", "1 x 16"}},
      {"k_not_divisible_by_16",
       [](CheckpointBuilder& b) {
         build_qwen3(b, Storage::nvfp4, {32, 136, 4, 2, 1});
       },
       {"experts.0.down_proj.weight", "K = 136 (moe_intermediate_size)", "multiple of 16",
        "nvfp4"}},
      {"k_not_divisible_by_32",
       [](CheckpointBuilder& b) { build_qwen3(b, Storage::mxfp4_v4, kSmall); },
       {"experts.0.down_proj.weight", "K = 48", "multiple of 32", "mxfp4"}},
      {"mxfp8_k_not_divisible_by_32",
       [](CheckpointBuilder& b) { build_qwen3(b, Storage::mxfp8, kSmall); },
       {"experts.0.down_proj.weight", "K = 48", "multiple of 32", "mxfp8"}},
      {"gate_and_up_differ",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add(kExpert + "up_proj.weight", DType::bf16, {64, 32});
       },
       {kExpert + "up_proj.weight", "has shape [64, 32], needs [48, 32]", "moe_intermediate_size"}},
      {"transposed_weight",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add(kExpert + "up_proj.weight", DType::bf16, {32, 48});
       },
       {"has shape [32, 48], needs [48, 32]"}},
      {"unpacked_fp4",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4);
         b.add(kExpert + "up_proj.weight", DType::u8, {48, 32});
       },
       {"has shape [48, 32], needs [48, 16]", "two codes a byte"}},
      {"router_shape",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add("model.layers.0.mlp.gate.weight", DType::bf16, {5, 32});
       },
       {"model.layers.0.mlp.gate.weight", "has shape [5, 32], needs [4, 32]"}},
      {"router_dtype",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add("model.layers.0.mlp.gate.weight", DType::f8_e4m3, {4, 32});
       },
       {"model.layers.0.mlp.gate.weight", "F8_E4M3", "needs BF16, F16 or F32"}},
      {"nan_block_scale",
       with_scale(Storage::fp8_block, ".weight_scale_inv", 0, {0, 0, 0xC0, 0x7F}),
       {kExpert + "up_proj.weight_scale_inv", "scale 0", "NaN"}},
      {"infinite_bf16_scale",
       with_scale(Storage::fp8_block_bf16, ".weight_scale_inv", 0, {0x80, 0x7F}),
       {kExpert + "up_proj.weight_scale_inv", "is infinite", "finite"}},
      {"nan_f16_scale",
       with_scale(Storage::fp8_block_f16, ".weight_scale_inv", 0, {0x01, 0x7C}),
       {kExpert + "up_proj.weight_scale_inv", "is NaN"}},
      {"infinite_tensor_scale",
       with_scale(Storage::fp8_tensor, ".weight_scale", 0, {0, 0, 0x80, 0x7F}),
       {kExpert + "up_proj.weight_scale", "is infinite"}},
      {"nan_channel_scale",
       with_scale(Storage::fp8_channel, ".weight_scale", 8, {1, 0, 0x80, 0xFF}),
       {kExpert + "up_proj.weight_scale", "scale 2 of [48, 1]", "NaN"}},
      {"nan_input_scale",
       with_scale(Storage::fp8_tensor, ".input_scale", 0, {0, 0, 0xC0, 0x7F}),
       {kExpert + "up_proj.input_scale", "NaN"}},
      {"nan_global_scale",
       with_scale(Storage::nvfp4, ".weight_scale_2", 0, {0, 0, 0xC0, 0x7F}),
       {kExpert + "up_proj.weight_scale_2", "NaN"}},
      {"zero_divisor",
       with_scale(Storage::nvfp4_ct, ".weight_global_scale", 0, {0, 0, 0, 0}),
       {kExpert + "up_proj.weight_global_scale", "is 0", "divide"}},
      {"nan_nvfp4_block_scale",
       with_scale(Storage::nvfp4, ".weight_scale", 5, {0x7F}),
       {kExpert + "up_proj.weight_scale", "block scale 5 is 0x7F, a NaN"}},
      {"negative_nvfp4_block_scale",
       with_scale(Storage::nvfp4_ct, ".weight_scale", 7, {0xB8}),
       {kExpert + "up_proj.weight_scale", "block scale 7 is 0xB8", "sign bit"}},
      {"minus_zero_nvfp4_block_scale",
       with_scale(Storage::nvfp4, ".weight_scale", 0, {0x80}),
       {"block scale 0 is 0x80", "sign bit"}},
      {"global_scale_with_two_elements",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::nvfp4);
         b.add(kExpert + "up_proj.weight_scale_2", DType::f32, {2});
       },
       {kExpert + "up_proj.weight_scale_2", "F32 [2]", "needs one float"}},
      {"nan_selection_bias",
       [](CheckpointBuilder& b) {
         v3(b);
         b.add_values<float>("model.layers.0.mlp.gate.e_score_correction_bias", DType::f32, {4},
                             {0.0f, 1.0f, std::nanf(""), 0.0f});
       },
       {"e_score_correction_bias", "expert 2 is NaN"}},
      {"nan_mxfp4_scale",
       [](CheckpointBuilder& b) {
         build_gpt_oss(b, {64, 32, 2, 1, 1});
         b.tensors.at("model.layers.0.mlp.experts.down_proj_scales").bytes[9] = std::byte{0xFF};
       },
       {"experts.down_proj_scales", "E8M0 scale 9 is 0xFF, a NaN"}},
      {"gpt_oss_width",
       [](CheckpointBuilder& b) {
         build_gpt_oss(b, {64, 32, 2, 1, 1});
         b.config["intermediate_size"] = 40;
       },
       {"gate_up_proj_blocks", "U8 [2, 64, 2, 16]", "needs U8 [2, 80, 2, 16]"}},
      {"gpt_oss_k",
       [](CheckpointBuilder& b) {
         build_gpt_oss(b, {64, 32, 2, 1, 1});
         b.config["hidden_size"] = 80;
         b.add("model.layers.0.mlp.router.weight", DType::bf16, {2, 80});
       },
       {"gate_up_proj_blocks", "K = 80 (hidden_size)", "multiple of 32"}},
      {"fused_shape",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add("model.layers.0.mlp.experts.gate_up_proj", DType::bf16, {4, 32, 96});
         b.add("model.layers.0.mlp.experts.down_proj", DType::bf16, {4, 48, 32});
       },
       {"experts.gate_up_proj", "has shape [4, 32, 96], needs [4, 96, 32]",
        "model_type qwen3_moe"}},
      {"fused_fp8",
       [](CheckpointBuilder& b) {
         qwen(b, Storage::bf16);
         b.add("model.layers.0.mlp.experts.gate_up_proj", DType::f8_e4m3, {4, 96, 32});
       },
       {"experts.gate_up_proj", "F8_E4M3", "needs BF16, F16 or F32"}},
      {"shared_expert_denied",
       v3_with("n_shared_experts", 0),
       {"shared_experts", "n_shared_experts is 0"}},
      {"shared_expert_width",
       v3_with("n_shared_experts", 2),
       {"shared_experts.gate_proj.weight", "[48, 32], needs [96, 32]", "n_shared_experts"}},
      {"shared_expert_absent",
       [](CheckpointBuilder& b) {
         v3(b);
         std::erase_if(b.tensors, [](const auto& entry) {
           return entry.first.find("shared_experts") != std::string::npos;
         });
       },
       {"shared_experts.gate_proj.weight is missing"}},
      {"table_shape",
       [](CheckpointBuilder& b) {
         build_deepseek_v4(b, Storage::bf16, Storage::bf16, kSmall);
         b.add("layers.0.ffn.gate.tid2eid", DType::i64, {10, 3});
       },
       {"gate.tid2eid", "I64 [10, 3]", "needs I64 [vocab_size, 2]"}},
      {"table_rows",
       [](CheckpointBuilder& b) {
         build_deepseek_v4(b, Storage::bf16, Storage::bf16, kSmall);
         b.add("layers.0.ffn.gate.tid2eid", DType::i64, {9, 2});
       },
       {"gate.tid2eid", "has 9 rows", "10 tokens"}},
      {"table_expert",
       [](CheckpointBuilder& b) {
         build_deepseek_v4(b, Storage::bf16, Storage::bf16, kSmall);
         std::vector<std::int64_t> ids(20, 1);
         ids[7] = 4;
         b.add_values("layers.0.ffn.gate.tid2eid", DType::i64, {10, 2}, ids);
       },
       {"gate.tid2eid", "token 3 slot 1 is expert 4", "0 to 3"}},
      {"no_selection",
       [](CheckpointBuilder& b) {
         build_deepseek_v4(b, Storage::bf16, Storage::bf16, kSmall);
         b.tensors.erase("layers.0.ffn.gate.bias");
       },
       {"layers.0.ffn.gate.bias is missing"}},
      {"stacked_shape",
       [](CheckpointBuilder& b) {
         build_nemotron_h(b, Storage::bf16, Storage::bf16, kSmall);
         b.add("backbone.layers.1.mixer.experts.up_proj", DType::bf16, {4, 32, 48});
       },
       {"experts.up_proj", "has shape [4, 32, 48], needs [4, 48, 32]"},
       1},
  };
}

class FaultyTensor : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultyTensor, IsRefusedInOneLine) { expect_refused(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Checkpoint, FaultyTensor, ::testing::ValuesIn(tensor_faults()),
                         fault_name);

}  // namespace
}  // namespace moeref::testing
