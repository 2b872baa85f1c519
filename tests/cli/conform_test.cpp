// Cases that are damaged on purpose must fail, and undamaged ones pass: the bounds are sound and
// not slack.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "cli/conform/ops.hpp"
#include "cli/conform/runner.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref::conform {
namespace {

namespace fs = std::filesystem;
using moeref::testing::EditableFile;
using moeref::testing::TempFolder;
using Json = nlohmann::json;

const fs::path kModels = fs::path(MOEREF_DATA_DIR) / "golden" / "models";

void edit_json_file(const fs::path& path, const std::function<void(Json&)>& edit) {
  Json value = Json::parse(std::ifstream(path));
  edit(value);
  fs::permissions(path, fs::perms::owner_write, fs::perm_options::add);
  std::ofstream(path) << value.dump();
}

/// A case and its checkpoint in a folder of their own, to damage.
struct CopiedCase {
  TempFolder folder;
  fs::path checkpoint;
  fs::path path;
  EditableFile file;

  CopiedCase(const std::string& model, const std::string& layer_and_tokens)
      : checkpoint(folder / model),
        path(folder / "case.safetensors"),
        file(kModels / ("moe_block_" + model + "_" + layer_and_tokens + ".safetensors")) {
    fs::copy(kModels / model, checkpoint);
  }
  /// Without the hashes, which would tell any change of the weights: the arithmetic alone must see
  /// it.
  void forget_hashes() {
    file.edit_json("params", [](Json& params) { params.erase("dequant_sha256"); });
  }
  void edit_config(const std::function<void(Json&)>& edit) {
    edit_json_file(checkpoint / "config.json", edit);
  }
  void edit_weights(const std::function<void(EditableFile&)>& edit) {
    EditableFile weights(checkpoint / "model.safetensors");
    edit(weights);
    fs::remove(checkpoint / "model.safetensors");
    weights.write(checkpoint / "model.safetensors");
  }
  CaseResult run() const {
    file.write(path);
    return run_case(read_golden_case(path));
  }
};

/// Names of the findings that failed.
std::set<std::string> failures(const CaseResult& result) {
  std::set<std::string> names;
  for (const Finding& finding : result.findings) {
    if (!finding.passed) names.insert(finding.output);
  }
  return names;
}

using Names = std::set<std::string>;

const char* const kDeepseekV3 = "deepseek_v3_fp8_h256_i128_e8";
const char* const kDeepseekV4 = "deepseek_v4_mxfp4_h128_i64_e8";
const char* const kGptOss = "gpt_oss_mxfp4_h128_i192_e8";
const char* const kNemotron = "nemotron_h_modelopt_nvfp4_h128_i208_e8";

TEST(Conform, PassesAnUntouchedCopy) {
  EXPECT_EQ(CopiedCase(kDeepseekV3, "l1_t7").run().verdict, Verdict::passed);
}

TEST(Conform, FailsForOneFlippedWeightCode) {
  const auto flip = [](EditableFile& weights, int expert) {
    std::byte& code =
        weights["model.layers.1.mlp.experts." + std::to_string(expert) + ".down_proj.weight"]
            .bytes[5];
    code ^= std::byte{0x08};  // the lowest bit of the exponent: a factor of two
  };
  CopiedCase copied(kDeepseekV3, "l1_t7");
  const int expert = copied.file.get<std::int32_t>("out.topk_ids", 0);
  copied.edit_weights([&](EditableFile& weights) { flip(weights, expert); });
  const Names with_hashes = failures(copied.run());
  EXPECT_TRUE(with_hashes.contains("params.dequant_sha256.down.f64"));
  EXPECT_TRUE(with_hashes.contains("params.dequant_sha256.down.f32"));
  EXPECT_FALSE(with_hashes.contains("params.dequant_sha256.up.f32"));
  copied.forget_hashes();
  EXPECT_EQ(failures(copied.run()),
            (Names{"out.routed_f64", "out.slot_f64", "out.final_f64", "out.module_f32"}));
}

TEST(Conform, FailsForOneSmallestStepOfOneMxfp4Code) {
  CopiedCase copied(kDeepseekV4, "l1_t7");
  copied.forget_hashes();
  const int expert = copied.file.get<std::int32_t>("out.topk_ids", 0);
  copied.edit_weights([&](EditableFile& weights) {
    weights["layers.1.ffn.experts." + std::to_string(expert) + ".w3.weight"].bytes[0] ^=
        std::byte{0x01};
  });
  EXPECT_TRUE(failures(copied.run()).contains("out.routed_f64"));
}

/// Moves one stored element to value + step * bound of what moeref computes.
CaseResult run_with_moved_element(const std::string& model, const std::string& output,
                                  double step) {
  CopiedCase copied(model, "l1_t7");
  copied.file.write(copied.path);
  const OpResult computed = run_moe_block(read_golden_case(copied.path));
  const auto& bounded = std::get<bounds::BoundedOutput>(computed.outputs.find(output)->second);
  const std::size_t index = bounded.value.size() / 2;
  const double moved = bounded.value[index] + step * bounded.bound[index];
  const std::string name = "out." + output;
  if (copied.file[name].dtype == DType::f64) {
    copied.file.set<double>(name, index, moved);
  } else {
    copied.file.set<float>(name, index, static_cast<float>(moved));
  }
  return copied.run();
}

TEST(Conform, FailsForAnElementBeyondItsBoundAndPassesOneWithin) {
  for (const std::string model : {kDeepseekV3, kDeepseekV4, kNemotron}) {
    for (const std::string output :
         {"routed_f64", "shared_f64", "final_f64", "slot_f64", "module_f32"}) {
      EXPECT_EQ(failures(run_with_moved_element(model, output, 3.0)), Names{"out." + output})
          << model;
      EXPECT_EQ(failures(run_with_moved_element(model, output, -1.5)), Names{"out." + output})
          << model;
      EXPECT_EQ(run_with_moved_element(model, output, 0.5).verdict, Verdict::passed)
          << model << output;
    }
    // Other outputs are computed from the stored weights, so they move too, where their bound is
    // narrower.
    EXPECT_TRUE(
        failures(run_with_moved_element(model, "topk_weights", 3.0)).contains("out.topk_weights"))
        << model;
  }
}

TEST(Conform, HasBoundsThatTheOriginalsComeNear) {
  // Sums stay far below their worst order, by about the square root of their length; more than that
  // would be slack.
  for (const std::string model : {kDeepseekV3, kDeepseekV4, kNemotron}) {
    for (const Finding& finding : CopiedCase(model, "l1_t33").run().findings) {
      if (!finding.rule.starts_with("bound") || !finding.output.starts_with("out.")) continue;
      EXPECT_LT(finding.worst_ratio, 1.0) << model << " " << finding.output;
      // DeepSeek-V4 keeps its weights in f64, its case compares them as if they were f32.
      if (model == kDeepseekV4 && finding.output == "out.topk_weights") continue;
      EXPECT_GT(finding.worst_ratio, 0x1p-12) << model << " " << finding.output;
    }
  }
}

TEST(Conform, FailsForGateAndUpSwapped) {
  CopiedCase copied(kDeepseekV3, "l1_t7");
  copied.forget_hashes();
  copied.edit_weights([](EditableFile& weights) {
    for (int expert = 0; expert < 8; ++expert) {
      const std::string prefix = "model.layers.1.mlp.experts." + std::to_string(expert) + ".";
      for (const std::string suffix : {".weight", ".weight_scale_inv"}) {
        std::swap(weights[prefix + "gate_proj" + suffix], weights[prefix + "up_proj" + suffix]);
      }
    }
  });
  EXPECT_EQ(failures(copied.run()),
            (Names{"out.routed_f64", "out.slot_f64", "out.final_f64", "out.module_f32"}));
}

TEST(Conform, FailsForAnotherLimit) {
  for (const double limit : {9.0, 11.0, 1e9}) {
    CopiedCase copied(kDeepseekV4, "l1_t33");
    copied.edit_config([&](Json& config) { config["swiglu_limit"] = limit; });
    const Names failed = failures(copied.run());
    EXPECT_TRUE(failed.contains("out.routed_f64")) << limit;
    EXPECT_TRUE(failed.contains("out.module_f32")) << limit;
  }
}

TEST(Conform, FailsForRoutedScalingLeftOut) {
  CopiedCase copied(kDeepseekV3, "l1_t7");
  copied.edit_config([](Json& config) { config["routed_scaling_factor"] = 1.0; });
  EXPECT_EQ(failures(copied.run()), (Names{"out.topk_weights", "out.module_f32"}));
}

TEST(Conform, FailsForWeightsWithoutNormalisation) {
  CopiedCase copied(kDeepseekV3, "l1_t7");
  copied.edit_config([](Json& config) { config["norm_topk_prob"] = false; });
  EXPECT_EQ(failures(copied.run()), (Names{"out.topk_weights", "out.module_f32"}));
}

TEST(Conform, FailsForAnExpertThatWasNotChosen) {
  CopiedCase copied(kGptOss, "l0_t7");
  std::set<std::int32_t> chosen;
  for (std::size_t slot = 0; slot < 4; ++slot)
    chosen.insert(copied.file.get<std::int32_t>("out.topk_ids", slot));
  std::int32_t other = 0;
  while (chosen.contains(other)) ++other;
  copied.file.set<std::int32_t>("out.topk_ids", 2, other);
  const CaseResult result = copied.run();
  EXPECT_TRUE(failures(result).contains("out.topk_ids"));
  const auto ids =
      std::find_if(result.findings.begin(), result.findings.end(),
                   [](const Finding& finding) { return finding.output == "out.topk_ids"; });
  EXPECT_EQ(ids->differing, 1);
}

TEST(Conform, FailsForIdsOutsideTheLayer) {
  CopiedCase copied(kGptOss, "l0_t7");
  copied.file.set<std::int32_t>("out.topk_ids", 0, 8);
  const CaseResult result = copied.run();
  EXPECT_TRUE(failures(result).contains("out.topk_ids"));
  EXPECT_NE(describe(result).find("1 of 7 tokens differ"), std::string::npos) << describe(result);
  copied.file.set<std::int32_t>("out.topk_ids", 0,
                                copied.file.get<std::int32_t>("out.topk_ids", 1));
  EXPECT_TRUE(failures(copied.run()).contains("out.topk_ids")) << "one expert twice";
}

TEST(Conform, TakesSlotsInAnyOrderButOnlyWithTheirWeights) {
  CopiedCase copied(kGptOss, "l0_t7");
  const auto swap_slots = [&]<typename T>(const std::string& name, std::size_t width, T) {
    for (std::size_t i = 0; i < width; ++i) {
      const T first = copied.file.get<T>(name, i);
      copied.file.set<T>(name, i, copied.file.get<T>(name, width + i));
      copied.file.set<T>(name, width + i, first);
    }
  };
  swap_slots("out.topk_ids", 1, std::int32_t{});
  EXPECT_EQ(failures(copied.run()), (Names{"out.topk_weights", "out.slot_f64", "out.routed_f64"}));
  swap_slots("out.topk_weights", 1, double{});
  EXPECT_EQ(failures(copied.run()), (Names{"out.slot_f64"}));
  swap_slots("out.slot_f64", 128, double{});
  EXPECT_EQ(copied.run().verdict, Verdict::passed);
}

TEST(Conform, FailsForOneBitOfTheHiddenStates) {
  CopiedCase copied(kNemotron, "l1_t7");
  copied.file["in.hidden"].bytes[0] ^= std::byte{0x01};
  const Names failed = failures(copied.run());
  for (const std::string name :
       {"in.router_logits_f64", "out.routed_f64", "out.shared_f64", "out.slot_f64"}) {
    EXPECT_TRUE(failed.contains(name)) << name;
  }
}

TEST(Conform, FailsForAnotherTokenIdInAHashLayer) {
  CopiedCase copied(kDeepseekV4, "l0_t33");
  copied.file.set<std::int64_t>("in.input_ids", 0,
                                copied.file.get<std::int64_t>("in.input_ids", 0) + 1);
  EXPECT_TRUE(failures(copied.run()).contains("out.topk_ids"));
}

TEST(Conform, FailsForAnUnknownOutputAndAnUnknownLogicalTensor) {
  CopiedCase copied(kNemotron, "l1_t1");
  copied.file.tensors["out.extra_f64"] = copied.file["out.routed_f64"];
  copied.file.edit_json(
      "params", [](Json& params) { params["dequant_sha256"]["gate_proj"] = Json::object(); });
  EXPECT_EQ(failures(copied.run()), (Names{"out.extra_f64", "params.dequant_sha256.gate_proj"}));
}

TEST(Conform, ComparesBitsWhereNoRuleIsGiven) {
  CopiedCase copied(kDeepseekV3, "l1_t1");
  copied.file.edit_json("compare", [](Json& compare) { compare.erase("out.module_f32"); });
  const CaseResult result = copied.run();
  const auto found =
      std::find_if(result.findings.begin(), result.findings.end(),
                   [](const Finding& finding) { return finding.output == "out.module_f32"; });
  EXPECT_EQ(found->rule, "bits");
  EXPECT_GT(found->differing, 0);
}

TEST(Conform, FailsForARoutingWeightWrongInItsEighteenthBit) {
  const std::string name = "moe_routing_negbias_deepseek_v3_fp8_h256_i128_e8_l1.safetensors";
  TempFolder folder;
  fs::create_directory_symlink(fs::absolute(kModels / kDeepseekV3), folder / kDeepseekV3);
  EditableFile file(kModels / name);
  file.write(folder / name);
  EXPECT_EQ(run_case(read_golden_case(folder / name)).verdict, Verdict::passed);
  const float weight = file.get<float>("out.topk_weights", 7);
  file.set<float>("out.topk_weights", 7, weight * (1.0f + 0x1p-18f));
  file.write(folder / name);
  EXPECT_EQ(failures(run_case(read_golden_case(folder / name))), Names{"out.topk_weights"});
}

/// A golden case of another folder, changed and run.
CaseResult run_changed(const std::string& name, const std::function<void(EditableFile&)>& edit) {
  const TempFolder folder;
  const fs::path source = kModels.parent_path() / name;
  fs::create_directory_symlink(source.parent_path() / "weights", folder / "weights");
  EditableFile file(source);
  edit(file);
  file.write(folder / "case.safetensors");
  return run_case(read_golden_case(folder / "case.safetensors"));
}

TEST(Conform, ChecksTheSumsOfTensorsThatAreNotStored) {
  const auto with = [](const Json& sums) {
    return run_changed(
        "forward-triton/fwd_bf16_relu2_t33_bm64.safetensors", [&](EditableFile& file) {
          file.edit_json("params", [&](Json& params) { params["not_stored"] = sums; });
        });
  };
  EXPECT_EQ(with(Json::object()).verdict, Verdict::passed);
  const CaseResult wrong = with({{"out.gemm1", {{"crc32", 1}}}});
  EXPECT_EQ(failures(wrong), Names{"params.not_stored.out.gemm1"});
  for (const Json& sums : {Json("none"), Json({{"out.gemm1", 1}}),
                           Json({{"out.gemm1", {{"crc32", 0x1'0000'0001}}}})}) {
    const CaseResult refused = with(sums);
    EXPECT_EQ(refused.verdict, Verdict::failed) << sums;
    EXPECT_NE(refused.error.find("params.not_stored"), std::string::npos) << refused.error;
  }
}

TEST(Conform, TakesOneMatrixAnOperandForAGemm) {
  const std::string name = "tensorcore-h200/b_triton_e4m3_swap_m16.safetensors";
  EXPECT_EQ(run_changed(name, [](EditableFile&) {}).verdict, Verdict::passed);
  const CaseResult refused = run_changed(name, [](EditableFile& file) {
    file["in.a"].shape = {2, 8, 512};
  });
  EXPECT_EQ(refused.verdict, Verdict::failed);
  EXPECT_NE(refused.error.find("in.a: has more than one matrix"), std::string::npos)
      << refused.error;
}

}  // namespace
}  // namespace moeref::conform
