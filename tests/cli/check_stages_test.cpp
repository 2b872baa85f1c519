// check on dumps of stages: which stage differs first, and whether it had a wrong input or computed
// something else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/golden_job.hpp"
#include "cli/moe_case.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::json;
using testing::kModels;
using testing::moeref_with;
using ::testing::Not;
using testing::Outcome;
using testing::TempFolder;

using Stages = std::map<std::string, Tensor, std::less<>>;

/// A golden file with all stages, and a GPU's run of the same.
class Case {
 public:
  Case(const std::string& checkpoint, const std::string& options, int tokens = 4)
      : checkpoint_(kModels + checkpoint) {
    const Outcome made =
        moeref_with("golden " + checkpoint_ + " " + options + " --stages --threads 1 --tokens " +
                    std::to_string(tokens) + " -o " + (folder_ / "golden").string());
    EXPECT_EQ(made.code, 0) << made.error;
    golden_ = fs::directory_iterator(folder_ / "golden")->path().string();
    job_ = cli::read_golden_job(golden_, checkpoint_);
    job_.options.stages = true;
    own_ = run({});
  }

  /// Everything that a run gives whose stages are those given, and what follows from them.
  std::vector<Tensor> run(const Stages& given) const {
    cli::GoldenJob job = job_;
    job.options.given = &given;
    cli::GlobalOptions global;
    global.quiet = true;
    global.threads = 1;
    std::vector<Tensor> tensors = cli::output_tensors(
        job.layer, cli::compute_case(job.layer, job.inputs, job.options, global, ""), job.options);
    for (Tensor& tensor : tensors) {
      const auto found = given.find(std::string_view(tensor.name).substr(4));
      if (found != given.end()) tensor.bytes = found->second.bytes;
    }
    return tensors;
  }
  const std::vector<Tensor>& own() const { return own_; }
  const Tensor& stage(const std::string& name) const {
    return *std::find_if(own_.begin(), own_.end(),
                         [&](const Tensor& tensor) { return tensor.name == "out." + name; });
  }
  std::vector<std::string> stages() const {
    std::vector<std::string> names;
    for (const Tensor& tensor : own_) {
      const std::string name = tensor.name.substr(4);
      if (name != "final" && name != "router_logits" && !name.starts_with("topk_")) {
        names.push_back(name);
      }
    }
    return names;
  }
  const std::string& golden() const { return golden_; }
  const cli::GoldenJob& job() const { return job_; }

  /// check of a file with these tensors; `only`: names that the GPU dumped, empty = all.
  Outcome check(const std::vector<Tensor>& tensors, const std::string& options,
                const std::set<std::string>& only = {}) const {
    const std::string actual = (folder_ / "gpu.safetensors").string();
    std::vector<TensorView> views;
    for (const Tensor& tensor : tensors) {
      TensorView view = tensor.view();
      view.name = tensor.name.substr(4);  // as a GPU's dump has them
      if (only.empty() || only.contains(view.name)) views.push_back(view);
    }
    write_safetensors(actual, views, {});
    return moeref_with("check " + actual + " " + golden_ + " --threads 1 " + options);
  }
  json report(const std::vector<Tensor>& tensors, const std::set<std::string>& only = {}) const {
    const Outcome outcome = check(tensors, "--json --checkpoint " + checkpoint_, only);
    EXPECT_EQ(outcome.error, "");
    return json::parse(outcome.out, nullptr, false);
  }
  const std::string& checkpoint() const { return checkpoint_; }

 private:
  TempFolder folder_;
  std::string checkpoint_;
  std::string golden_;
  cli::GoldenJob job_;
  std::vector<Tensor> own_;
};

/// The last row with other signs, scales twice as large: as many elements as counted.
Tensor changed(Tensor stage, const std::string& name, std::int64_t& count) {
  const std::size_t width = static_cast<std::size_t>(info(stage.dtype).bits / 8);
  const std::size_t row = static_cast<std::size_t>(stage.shape.back()) * width;
  count = stage.shape.back();
  for (std::size_t at = stage.bytes.size() - row; at < stage.bytes.size(); at += width) {
    std::byte& top = stage.bytes[at + width - 1];
    if (!name.ends_with("_s")) {
      top ^= stage.dtype == DType::u8 ? std::byte{0x88} : std::byte{0x80};
    } else if (width == 4) {
      const float twice = 2.0f * load<float>(stage.bytes.data() + at);
      std::memcpy(stage.bytes.data() + at, &twice, sizeof twice);
    } else if (stage.dtype == DType::f8_e8m0) {
      top = static_cast<std::byte>(std::to_integer<int>(top) + 1);
    } else {
      top = static_cast<std::byte>(std::to_integer<int>(top) ^ 8);  // E4M3: twice or half
    }
  }
  return stage;
}

/// What a stage is computed from.
std::string input_of(const std::string& stage, const std::vector<std::string>& stages) {
  const auto has = [&](const char* name) {
    return std::find(stages.begin(), stages.end(), name) != stages.end();
  };
  if (stage == "shared_act") return "shared_gemm1";
  if (stage == "shared_gemm2") return "shared_act";
  if (stage == "gemm1") return has("a1_q") ? "a1_q" : has("fc1") ? "fc1" : "";
  if (stage == "act") return "gemm1";
  if (stage == "a2_q" || stage == "a2_s") return "act";
  if (stage == "gemm2") return has("a2_q") ? "a2_q" : "act";
  if (stage == "combine") return "gemm2";
  if (stage == "final") return has("combine") ? "combine" : "gemm2";
  return stage.starts_with("a1_") && has("fc1") ? "fc1" : "";
}

struct Run {
  const char* name;
  const char* checkpoint;
  const char* options;
};
constexpr Run kRuns[] = {
    {"reference", "gpt_oss_mxfp4_h128_i192_e8", "--numerics reference"},
    {"block_replay", "deepseek_v3_fp8_h256_i128_e8",
     "--layer 1 --backend triton_fp8_block --numerics replay"},
    {"block_backend", "deepseek_v3_fp8_h256_i128_e8",
     "--layer 1 --backend deepgemm_fp8 --numerics backend"},
    {"channel_replay", "qwen3_moe_ct_fp8_channel_h128_i96_e8",
     "--backend triton_fp8_channel --numerics replay"},
    {"mxfp4_by_expert", "gpt_oss_mxfp4_h128_i192_e8",
     "--backend flashinfer_sm90_mxfp4 --numerics replay"},
    {"fp8_by_expert", "nemotron_h_modelopt_fp8_h128_i248_e8",
     "--layer 1 --backend flashinfer_cutlass_fp8 --numerics replay"},
    {"nvfp4_by_expert", "nemotron_h_modelopt_nvfp4_h128_i208_e8",
     "--layer 1 --backend flashinfer_cutlass_nvfp4 --numerics backend"},
    {"mxfp4_rank", "gpt_oss_mxfp4_h128_i192_e8",
     "--backend flashinfer_sm90_mxfp4 --numerics backend --ep 1/2"},
};

class CheckStages : public ::testing::TestWithParam<Run> {};

TEST_P(CheckStages, TellsWrongInputFromWrongComputation) {
  const Case made(GetParam().checkpoint, GetParam().options);
  EXPECT_EQ(made.report(made.own())["verdict"], "identical");
  const std::vector<std::string> stages = made.stages();
  ASSERT_GE(stages.size(), 3u);
  for (const std::string& name : stages) {
    if (name == "a1_s" && made.stage(name).shape == Shape{1}) continue;  // inside other numbers
    std::int64_t count = 0;
    const Stages given{{name, changed(made.stage(name), name, count)}};
    const std::vector<Tensor> tensors = made.run(given);
    const json report = made.report(tensors);
    SCOPED_TRACE(name + ": " + report.dump());
    // Slots without an expert of the rank are no rows of anything.
    EXPECT_EQ(report["first_differing"], name);
    ASSERT_FALSE(report["causes"].empty());
    EXPECT_FALSE(report.contains("not_explained"));
    for (const json& cause : report["causes"]) {
      const bool is_first = cause["stage"] == name;
      EXPECT_EQ(cause["follows_from_input"], !is_first) << cause["stage"];
      EXPECT_EQ(cause["differing"], is_first ? count : 0) << cause["stage"];
      EXPECT_EQ(cause["input"], input_of(cause["stage"], stages)) << cause["stage"];
    }
    EXPECT_EQ(report["causes"][0]["stage"], name);
    // Every stage that differs is explained.
    std::size_t differing = 0;
    for (const json& tensor : report["tensors"]) {
      if (tensor["verdict"] != "identical") ++differing;
    }
    EXPECT_EQ(report["causes"].size(), differing);
  }
}

TEST_P(CheckStages, FindsTwoFaults) {
  const Case made(GetParam().checkpoint, GetParam().options);
  std::int64_t count = 0;
  Stages given{{"gemm1", changed(made.stage("gemm1"), "gemm1", count)}};
  const std::vector<Tensor> first = made.run(given);
  const auto gemm2 = std::find_if(first.begin(), first.end(),
                                  [](const Tensor& tensor) { return tensor.name == "out.gemm2"; });
  given.emplace("gemm2", changed(*gemm2, "gemm2", count));
  const json report = made.report(made.run(given));
  std::map<std::string, bool> follows;
  for (const json& cause : report["causes"]) follows[cause["stage"]] = cause["follows_from_input"];
  EXPECT_FALSE(follows.at("gemm1")) << report.dump();
  EXPECT_TRUE(follows.at("act")) << report.dump();
  EXPECT_FALSE(follows.at("gemm2")) << report.dump();
  EXPECT_EQ(report["first_differing"], "gemm1");
}

TEST_P(CheckStages, GoesBackToTheStagesThatAreDumped) {
  const Case made(GetParam().checkpoint, GetParam().options);
  std::int64_t count = 0;
  const Stages given{{"act", changed(made.stage("act"), "act", count)}};
  const json report = made.report(made.run(given), {"act", "final"});
  EXPECT_EQ(report["first_differing"], "act") << report.dump();
  for (const json& cause : report["causes"]) {
    const bool is_act = cause["stage"] == "act";
    EXPECT_EQ(cause["input"], is_act ? "" : "act");
    EXPECT_EQ(cause["follows_from_input"], !is_act);
  }
  EXPECT_THAT(report["not_compared"].get<std::vector<std::string>>(), ::testing::Contains("gemm2"));
}

INSTANTIATE_TEST_SUITE_P(Runs, CheckStages, ::testing::ValuesIn(kRuns),
                         [](const auto& run) { return run.param.name; });

TEST(CheckByExpert, TellsTokenAndSlot) {
  const Case made("gpt_oss_mxfp4_h128_i192_e8",
                  "--backend flashinfer_sm90_mxfp4 --numerics replay");
  const Tensor& gemm1 = made.stage("gemm1");
  ASSERT_EQ(gemm1.shape, (Shape{16, 512}));
  const Tensor& ids = made.stage("topk_ids");
  // The last row is the last slot with the largest expert.
  std::int64_t last = 0;
  for (std::int64_t slot = 0; slot < 16; ++slot) {
    if (ids.view().at<std::int32_t>(slot) >= ids.view().at<std::int32_t>(last)) last = slot;
  }
  Tensor other = gemm1;
  other.bytes[other.bytes.size() - 1 - 2 * 100] ^= std::byte{0x80};  // column 411
  const std::vector<Tensor> tensors = made.run({{"gemm1", other}});
  const json report = made.report(tensors);
  for (const json& tensor : report["tensors"]) {
    if (tensor["tensor"] != "gemm1") continue;
    EXPECT_EQ(tensor["first"]["at"], "token " + std::to_string(last / 4) + ", slot " +
                                         std::to_string(last % 4) + ", column 411");
    EXPECT_EQ(tensor["worst_rows"][0]["index"], last / 4);
    EXPECT_EQ(tensor["worst_experts"][0]["index"], ids.view().at<std::int32_t>(last));
    EXPECT_EQ(tensor["differing"], 1);
  }
  const Outcome text = made.check(tensors, "--checkpoint " + made.checkpoint());
  EXPECT_EQ(text.code, 1);
  EXPECT_THAT(text.out, HasSubstr("gemm1: computed something else: recomputed from the layer's "
                                  "inputs, 1 elements differ from the file's"));
  EXPECT_THAT(text.out, HasSubstr("act: wrong input: recomputed from the file's own gemm1 it is "
                                  "what the file holds"));
  EXPECT_THAT(text.out, HasSubstr("wrong: the first difference is in gemm1"));
}

TEST(CheckByExpert, RefusesGoldenFilesThatAreNotProper) {
  const Case made("gpt_oss_mxfp4_h128_i192_e8",
                  "--backend flashinfer_sm90_mxfp4 --numerics replay");
  const TempFolder folder;
  const std::string other = (folder / "other.safetensors").string();
  const auto with = [&](const std::string& key, const json& value) {
    testing::EditableFile file(made.golden());
    file.edit_json("params", [&](json& params) { params[key] = value; });
    file.write(other);
    return "check " + made.golden() + " " + other;
  };
  for (const json& rank : {json("0/0"), json("2/2"), json("-1/2"), json("all"), json(1),
                           json("0/3"), json("0/99999999999999999999")}) {
    testing::expect_refused(with("ep", rank), {"other.safetensors"});
  }
  for (const json& experts : {json(-8), json(0), json("many"), json(8.5), json(nullptr)}) {
    testing::expect_refused(with("experts", experts), {"other.safetensors"});
  }
  // Not as many rows as there are experts to go through.
  EXPECT_EQ(moeref_with(with("experts", 1'000'000'000'000'000'000)).code, 0);
  // Ids of a type that no routing has.
  testing::EditableFile file(made.golden());
  Tensor& ids = file["out.topk_ids"];
  ids.dtype = DType::u8;
  ids.shape.back() *= 4;
  file.write(other);
  const Outcome outcome = moeref_with("check " + made.golden() + " " + other);
  EXPECT_EQ(outcome.code, 0) << outcome.error;  // the output decides
  EXPECT_THAT(outcome.out, HasSubstr("topk_ids: wrong: it is I32 [4, 4], the golden tensor is U8"));
}

TEST(GivenStages, KeepTheBitsOfAKernelsNan) {
  for (const auto& [level, code] : {std::pair{"replay", 0x7FFF}, std::pair{"backend", 0x7FC0}}) {
    const Case made("gpt_oss_mxfp4_h128_i192_e8",
                    std::string("--backend flashinfer_sm90_mxfp4 --numerics ") + level);
    Tensor gemm2 = made.stage("gemm2");
    const std::uint16_t nan = 0xFFC1;  // of column 0 of the first row
    std::memcpy(gemm2.bytes.data(), &nan, sizeof nan);
    std::set<int> nans;
    for (const Tensor& tensor : made.run({{"gemm2", gemm2}})) {
      if (tensor.name != "out.final") continue;
      for (std::int64_t i = 0; i < element_count(tensor.shape); ++i) {
        const int seen = tensor.view().at<std::uint16_t>(i);
        if ((seen & 0x7FFF) > 0x7F80) nans.insert(seen);
      }
    }
    EXPECT_EQ(nans, std::set<int>{code}) << level;
  }
}

TEST(CheckStages, SaysWhyStagesWereNotRecomputed) {
  const Case made("deepseek_v3_fp8_h256_i128_e8",
                  "--layer 1 --backend triton_fp8_block --numerics replay");
  std::int64_t count = 0;
  const std::vector<Tensor> tensors = made.run({{"act", changed(made.stage("act"), "act", count)}});
  // The golden file lies in a folder without its checkpoint.
  const Outcome text = made.check(tensors, "");
  EXPECT_EQ(text.code, 1) << text.error;
  EXPECT_THAT(text.out, HasSubstr("stages were not recomputed: "));
  EXPECT_THAT(text.out, HasSubstr("--checkpoint"));
  EXPECT_THAT(text.out, HasSubstr("wrong: the first difference is in act"));
  const json report = json::parse(made.check(tensors, "--json").out);
  EXPECT_TRUE(report["causes"].empty());
  EXPECT_THAT(report["not_explained"].get<std::string>(), HasSubstr("--checkpoint"));
  // The checkpoint of another layer.
  const json other = json::parse(
      made.check(tensors, "--json --checkpoint " + kModels + "gpt_oss_mxfp4_h128_i192_e8").out);
  EXPECT_FALSE(other["not_explained"].get<std::string>().empty());
  // Nothing to recompute from.
  const json alone = made.report(tensors, {"final"});
  EXPECT_EQ(alone["not_explained"], "no stage is dumped");
  // A stage of another type.
  std::vector<Tensor> wide = tensors;
  for (Tensor& tensor : wide) {
    if (tensor.name != "out.gemm2") continue;
    const std::vector<float> values = Stage{"gemm2", tensor}.values();
    tensor = make_tensor<float>("out.gemm2", DType::f32, tensor.shape, values);
  }
  EXPECT_THAT(made.report(wide)["not_explained"].get<std::string>(), HasSubstr("gemm2: is F32 "));
}

TEST(CheckStages, PutsSlotsInTheGoldenOrderFirst) {
  const Case made("deepseek_v3_fp8_h256_i128_e8",
                  "--layer 1 --backend triton_fp8_block --numerics replay");
  std::int64_t count = 0;
  std::vector<Tensor> tensors = made.run({{"act", changed(made.stage("act"), "act", count)}});
  // A GPU that lists the first two experts of every token the other way round.
  for (Tensor& tensor : tensors) {
    const std::string name = tensor.name.substr(4);
    const bool by_slot =
        tensor.shape.size() >= 2 && tensor.shape[1] == 3 &&
        std::set<std::string>{"gemm1", "act", "a2_q", "a2_s", "gemm2", "topk_ids", "topk_weights"}
            .contains(name);
    if (!by_slot) continue;
    const std::size_t bytes = tensor.bytes.size() / 12;
    for (std::size_t token = 0; token < 4; ++token) {
      const auto first = tensor.bytes.begin() + static_cast<std::ptrdiff_t>(3 * token * bytes);
      const auto width = static_cast<std::ptrdiff_t>(bytes);
      std::swap_ranges(first, first + width, first + width);
    }
  }
  const json report = made.report(tensors);
  EXPECT_EQ(report["first_differing"], "act") << report.dump();
  for (const json& cause : report["causes"]) {
    EXPECT_EQ(cause["follows_from_input"], cause["stage"] != "act") << report.dump();
  }
}

TEST(CheckStages, ExplainsNothingOfAnotherRouting) {
  const Case made("deepseek_v3_fp8_h256_i128_e8",
                  "--layer 1 --backend triton_fp8_block --numerics replay");
  std::vector<Tensor> tensors = made.own();
  for (Tensor& tensor : tensors) {
    if (tensor.name == "out.topk_ids") {
      std::int32_t id = load<std::int32_t>(tensor.bytes.data());
      std::set<std::int32_t> taken;
      for (int k = 0; k < 3; ++k) taken.insert(load<std::int32_t>(tensor.bytes.data() + 4 * k));
      while (taken.contains(id)) id = (id + 1) % 8;
      std::memcpy(tensor.bytes.data(), &id, sizeof id);
    }
    if (tensor.name == "out.final") tensor.bytes[1] ^= std::byte{0x80};
  }
  const json report = made.report(tensors);
  EXPECT_EQ(report["verdict"], "wrong");
  EXPECT_EQ(report["first_differing"], "topk_ids");
  EXPECT_THAT(report["not_explained"].get<std::string>(),
              HasSubstr("its topk_ids are not those of the golden file"));
}

TEST(CheckStages, LetTheOutputDecide) {
  // A stage that differs, as of another rounding, and an output that does not.
  const Case made("qwen3_moe_ct_fp8_channel_h128_i96_e8",
                  "--backend triton_fp8_channel --numerics replay");
  std::vector<Tensor> tensors = made.own();
  for (Tensor& tensor : tensors) {
    if (tensor.name == "out.gemm1") tensor.bytes[0] ^= std::byte{1};
  }
  const Outcome outcome = made.check(tensors, "--json --checkpoint " + made.checkpoint());
  EXPECT_EQ(outcome.code, 0);
  const json report = json::parse(outcome.out);
  EXPECT_EQ(report["verdict"], "identical");
  EXPECT_EQ(report["first_differing"], "gemm1");
  EXPECT_EQ(report["causes"].size(), 1u);
  EXPECT_EQ(report["causes"][0]["differing"], 1);
}

}  // namespace
}  // namespace moeref
