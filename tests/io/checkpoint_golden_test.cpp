// The eight tiny checkpoints in the real models' on-disk form: fields, provenance, and every
// decoded value by its hash.

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/safetensors.hpp"
#include "quant/dequantize.hpp"

namespace moeref {
namespace {

const std::filesystem::path kModels = std::filesystem::path(MOEREF_DATA_DIR) / "golden/models";

std::string sha256(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

struct Hashes {
  std::string f64;
  std::string f32;
};

/// Of the dequantized values of all matrices, one after the other.
Hashes hash(const std::vector<const ScaledMatrix*>& matrices) {
  std::vector<double> wide;
  std::vector<float> narrow;
  for (const ScaledMatrix* matrix : matrices) {
    const auto count = static_cast<std::size_t>(matrix->rows * matrix->cols);
    std::vector<double> wide_part(count);
    dequantize(*matrix, wide_part);
    wide.insert(wide.end(), wide_part.begin(), wide_part.end());
    std::vector<float> narrow_part(count);
    dequantize(*matrix, DequantizeOrder::checkpoint, Format::f32, narrow_part);
    narrow.insert(narrow.end(), narrow_part.begin(), narrow_part.end());
  }
  return {sha256(std::as_bytes(std::span(wide))), sha256(std::as_bytes(std::span(narrow)))};
}

using Members = std::map<std::string, std::vector<const ScaledMatrix*>>;

void add(Members& members, const std::string& name, const ScaledMatrix& matrix) {
  if (matrix) members[name].push_back(&matrix);
}

/// Every logical tensor of a layer under the name that `dequant_sha256` uses.
Members members_of(const MoeLayer& layer) {
  Members members;
  add(members, "router", layer.router);
  add(members, "router_bias", layer.router_bias);
  add(members, "corr", layer.selection_bias);
  add(members, "latent1", layer.latent_in);
  add(members, "latent2", layer.latent_out);
  for (const Expert& expert : layer.experts) {
    add(members, "gate", expert.gate);
    add(members, "up", expert.up);
    add(members, "down", expert.down);
    add(members, "gate_bias", expert.gate_bias);
    add(members, "up_bias", expert.up_bias);
    add(members, "down_bias", expert.down_bias);
  }
  if (layer.shared) {
    add(members, "shared_gate", layer.shared->gate);
    add(members, "shared_up", layer.shared->up);
    add(members, "shared_down", layer.shared->down);
  }
  return members;
}

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kModels)) {
    const std::string name = entry.path().stem().string();
    if (name.starts_with("moe_block_")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class GoldenCheckpoint : public ::testing::TestWithParam<std::string> {
 protected:
  GoldenCheckpoint()
      : params(nlohmann::json::parse(SafetensorsFile::open(kModels / (GetParam() + ".safetensors"))
                                         ->metadata()
                                         .at("params"))),
        checkpoint(Checkpoint::open(kModels / params.at("checkpoint").get<std::string>())),
        layer(checkpoint.load_layer(params.at("layer").get<std::int64_t>())) {}

  nlohmann::json params;
  Checkpoint checkpoint;
  MoeLayer layer;
};

TEST_P(GoldenCheckpoint, DecodesToTheRecordedHashes) {
  const Members members = members_of(layer);
  const nlohmann::json& recorded = params.at("dequant_sha256");
  ASSERT_EQ(members.size(), recorded.size());
  for (const auto& [name, expected] : recorded.items()) {
    ASSERT_TRUE(members.contains(name)) << name;
    const Hashes found = hash(members.at(name));
    EXPECT_EQ(found.f64, expected.at("f64").get<std::string>()) << name;
    EXPECT_EQ(found.f32, expected.at("f32").get<std::string>()) << name;
    const auto shape = expected.at("shape").get<std::vector<std::int64_t>>();
    const ScaledMatrix& first = *members.at(name).front();
    EXPECT_EQ(first.cols, shape.back()) << name;
    if (shape.size() == 3) {
      EXPECT_EQ(static_cast<std::int64_t>(members.at(name).size()), shape[0]) << name;
      EXPECT_EQ(first.rows, shape[1]) << name;
    }
  }
}

TEST_P(GoldenCheckpoint, HasTheRecordedSizes) {
  EXPECT_EQ(layer.model_type, params.at("model_type").get<std::string>());
  EXPECT_EQ(layer.layer, params.at("layer").get<std::int64_t>());
  EXPECT_EQ(layer.hidden, params.at("hidden").get<std::int64_t>());
  EXPECT_EQ(layer.expert_count(), params.at("experts").get<std::int64_t>());
  EXPECT_EQ(layer.routing.top_k, params.at("top_k").get<std::int64_t>());
  EXPECT_EQ(layer.intermediate, layer.experts[0].up.rows);
}

TEST_P(GoldenCheckpoint, HasTheRecordedFormat) {
  const std::map<std::string, std::string> names{
      {"gptoss_mxfp4", "mxfp4"},     {"dsv4_mxfp4", "mxfp4"},
      {"fp8_block128", "fp8_block"}, {"fp8_channel", "fp8_channel"},
      {"fp8_tensor", "fp8_tensor"},  {"modelopt_nvfp4", "nvfp4"},
      {"ct_nvfp4", "nvfp4_ct"},      {"bf16", "bf16"}};
  EXPECT_EQ(layer.weight_format, names.at(params.at("schemes").at("experts").get<std::string>()));
}

TEST_P(GoldenCheckpoint, HasTheRecordedRoutingAndActivation) {
  const nlohmann::json& recorded = params.at("routing_and_activation");
  const std::map<std::string, RoutingMethod> kinds{{"topk_softmax", RoutingMethod::topk_softmax},
                                                   {"softmax_topk", RoutingMethod::softmax_topk},
                                                   {"sigmoid_group", RoutingMethod::deepseek_v3},
                                                   {"sqrtsoftplus", RoutingMethod::sqrt_softplus}};
  EXPECT_EQ(layer.routing.method, kinds.at(recorded.at("kind").get<std::string>()));
  EXPECT_EQ(layer.routing.renormalize, recorded.value("norm", true));
  EXPECT_EQ(layer.routing.scaling, recorded.value("scale", 1.0f));
  EXPECT_EQ(layer.routing.groups, recorded.value("n_group", std::int64_t{1}));
  EXPECT_EQ(layer.routing.kept_groups, recorded.value("topk_group", std::int64_t{1}));
  EXPECT_EQ(layer.routing.mask_fill, MaskFill::minus_infinity);
  const std::string act = recorded.at("act").get<std::string>();
  EXPECT_EQ(layer.activation.form, act == "relu2" ? ActivationForm::relu2 : ActivationForm::swiglu);
  EXPECT_EQ(layer.activation.alpha, act == "swiglu_oss" ? 1.702f : 1.0f);
  EXPECT_EQ(layer.activation.beta, act == "swiglu_oss" ? 1.0f : 0.0f);
  EXPECT_EQ(layer.activation.limit, recorded.value("limit", kNoLimit));
  if (layer.shared) {
    EXPECT_EQ(layer.shared_activation.form, layer.activation.form);
    EXPECT_EQ(layer.shared_activation.limit, layer.activation.limit);
  }
}

TEST_P(GoldenCheckpoint, NamesEveryTensorOfTheBlockInItsProvenance) {
  const std::string number = fmt::format("layers.{}.", layer.layer);
  const auto inside = [&](const std::string& name) {
    return name.find(number) != std::string::npos &&
           (name.find(".mlp.") != std::string::npos || name.find(".ffn.") != std::string::npos ||
            name.find(".mixer.") != std::string::npos);
  };
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint.folder())) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::open(entry.path());
    for (const auto& [name, tensor] : file->tensors()) {
      if (!inside(name)) continue;
      const std::string source = entry.path().filename().string() + ": " + name;
      const auto found =
          std::find_if(layer.provenance.begin(), layer.provenance.end(),
                       [&](const Provenance& fact) { return fact.source == source; });
      ASSERT_NE(found, layer.provenance.end()) << source;
      EXPECT_EQ(found->value,
                fmt::format("{} {}", moeref::name(tensor.dtype), to_string(tensor.shape)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenCheckpoint, ::testing::ValuesIn(golden_names()),
                         [](const auto& test) { return test.param; });

std::string provenance(const MoeLayer& layer, const std::string& item) {
  for (const Provenance& fact : layer.provenance) {
    if (fact.item == item) return fact.value + " from " + fact.source;
  }
  return "absent";
}

MoeLayer load(const std::string& name, std::int64_t layer) {
  return Checkpoint::open(kModels / name).load_layer(layer);
}

TEST(GptOssGolden, ViewsInterleavedRowsOfOneBuffer) {
  const MoeLayer layer = load("gpt_oss_mxfp4_h128_i192_e8", 0);
  EXPECT_EQ(layer.gate_order, GateOrder::interleaved);
  EXPECT_TRUE(layer.router_bias);
  EXPECT_FALSE(layer.selection_bias);
  EXPECT_FALSE(layer.shared);
  const Expert& expert = layer.experts[3];
  EXPECT_EQ(expert.gate.codes.data, expert.up.codes.data);
  EXPECT_EQ(expert.gate.codes.row_stride, 2 * 128);
  EXPECT_EQ(expert.up.codes.origin - expert.gate.codes.origin, 128);
  EXPECT_EQ(expert.up.scales->data - expert.gate.scales->data, 128 / 32);
  EXPECT_EQ(expert.gate.scales->row_stride, 2 * 128 / 32);
  EXPECT_EQ(expert.gate.name, "model.layers.0.mlp.experts.gate_up_proj_blocks");
  EXPECT_EQ(provenance(layer, "limit"), "7 from config.json: swiglu_limit");
  EXPECT_EQ(provenance(layer, "alpha"), "1.702 from constant of GptOssExperts");
  EXPECT_EQ(provenance(layer, "quantization_check"),
            "agrees with the tensors from config.json: quantization_config");
}

TEST(DeepseekV3Golden, ListsMoeLayersBehindTheDenseOnes) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / "deepseek_v3_fp8_h256_i128_e8");
  EXPECT_EQ(checkpoint.model_type(), "deepseek_v3");
  EXPECT_EQ(checkpoint.moe_layers(), (std::vector<std::int64_t>{1}));
  const MoeLayer layer = checkpoint.load_layer(1);
  EXPECT_EQ(layer.routing.sum_epsilon, 1e-20f);
  EXPECT_EQ(layer.gate_order, GateOrder::separate);
  EXPECT_EQ(provenance(layer, "kept_groups"), "2 from config.json: topk_group");
  EXPECT_EQ(provenance(layer, "weight_block"),
            "[128, 128] from config.json: quantization_config.weight_block_size");
}

TEST(DeepseekV4Golden, RoutesTheFirstLayerByTokenId) {
  const MoeLayer hashed = load("deepseek_v4_mxfp4_h128_i64_e8", 0);
  EXPECT_EQ(hashed.expert_table.shape, (Shape{32, 3}));
  EXPECT_FALSE(hashed.selection_bias);
  const MoeLayer scored = load("deepseek_v4_mxfp4_h128_i64_e8", 1);
  EXPECT_TRUE(scored.expert_table.bytes.empty());
  EXPECT_TRUE(scored.selection_bias);
  EXPECT_TRUE(scored.routing.renormalize);
  EXPECT_EQ(scored.shared->up.scales->format, Format::e8m0);
  EXPECT_EQ(scored.shared->up.scales->block_rows, 128);
  EXPECT_EQ(provenance(scored, "quantization_check"),
            "agrees with the tensors from config.json: quantization_config");
}

TEST(NemotronGolden, KeepsInputScalesAndHasNoGate) {
  const MoeLayer layer = load("nemotron_h_modelopt_nvfp4_h128_i208_e8", 1);
  EXPECT_EQ(layer.gate_order, GateOrder::none);
  EXPECT_FALSE(layer.gated());
  EXPECT_FALSE(layer.experts[0].gate);
  EXPECT_EQ(layer.experts[0].up.global_rule, GlobalScaleRule::multiply);
  ASSERT_TRUE(layer.experts[7].down_input_scale.has_value());
  const auto file = SafetensorsFile::open(kModels / "nemotron_h_modelopt_nvfp4_h128_i208_e8" /
                                          "model.safetensors");
  const std::string module = "backbone.layers.1.mixer.experts.7.down_proj.";
  EXPECT_EQ(*layer.experts[7].down_input_scale, file->at(module + "input_scale").at<float>(0));
  EXPECT_EQ(layer.experts[7].down.global_scale, file->at(module + "weight_scale_2").at<float>(0));
  EXPECT_EQ(layer.shared->up.rows, 96);
}

TEST(QwenGolden, DividesByCompressedTensorsGlobalScales) {
  const MoeLayer layer = load("qwen3_moe_ct_nvfp4_h128_i96_e8", 0);
  const Expert& expert = layer.experts[2];
  EXPECT_EQ(expert.gate.global_rule, GlobalScaleRule::divide);
  EXPECT_TRUE(expert.gate_input_scale.has_value());
  EXPECT_NE(expert.gate.global_scale, expert.down.global_scale);
}

TEST(QwenGolden, FindsWeightsAndScalesInDifferentShards) {
  const MoeLayer layer = load("qwen3_moe_fp8block_h128_i192_e8_sharded", 0);
  EXPECT_EQ(layer.storage.size(), 2u);
  EXPECT_EQ(layer.experts[0].gate.scales->format, Format::bf16);
}

TEST(CheckpointOpen, TakesConfigOrWeightFileForTheFolder) {
  const std::filesystem::path folder = kModels / "qwen3_moe_fp8block_h128_i192_e8_sharded";
  for (const char* file :
       {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}) {
    const Checkpoint checkpoint = Checkpoint::open(folder / file);
    EXPECT_EQ(checkpoint.folder(), folder);
    EXPECT_EQ(checkpoint.load_layer(0).expert_count(), 8);
  }
}

}  // namespace
}  // namespace moeref
