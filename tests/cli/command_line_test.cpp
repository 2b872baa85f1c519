// The program as a user runs it: exit codes, the one line that bad input gets, files that are whole
// or absent.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "io/safetensors.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

const std::string kModels = MOEREF_DATA_DIR "/golden/models/";
const std::string kGptOss = kModels + "gpt_oss_mxfp4_h128_i192_e8";

struct Outcome {
  int code = -1;
  std::string out;
  std::string error;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Outcome moeref_with(const std::string& arguments, const std::string& before = "") {
  const TempFolder folder;
  const std::string command = before + " " MOEREF_BINARY " " + arguments + " >" +
                              (folder / "out").string() + " 2>" + (folder / "error").string();
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(folder / "out"),
          read(folder / "error")};
}

/// Exit code 2, nothing on stdout, one line on stderr that holds every part.
void expect_refused(const std::string& arguments, const std::vector<std::string>& parts) {
  const Outcome outcome = moeref_with(arguments);
  EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.out << outcome.error;
  EXPECT_EQ(outcome.out, "") << arguments;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  EXPECT_EQ(outcome.error.rfind("moeref: ", 0), 0u) << outcome.error;
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.error.find(part), std::string::npos)
        << arguments << "\nlacks: " << part << "\nsays:  " << outcome.error;
  }
}

TEST(CommandLine, PrintsItsVersion) {
  const Outcome outcome = moeref_with("--version");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out.rfind("moeref ", 0), 0u) << outcome.out;
}

TEST(CommandLine, HasHelpWithExamplesForEveryCommand) {
  for (const char* command :
       {"golden", "run", "check", "inspect", "synth", "dequantize", "conform"}) {
    const Outcome outcome = moeref_with(std::string(command) + " --help");
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_NE(outcome.out.find("Example"), std::string::npos) << outcome.out;
  }
}

TEST(CommandLine, RefusesBadUsage) {
  expect_refused("", {"subcommand"});
  expect_refused("golden", {"checkpoint"});
  expect_refused("golden " + kGptOss, {"--out"});
  expect_refused("frobnicate", {"frobnicate"});
  expect_refused("formats --isa sve9", {"--isa", "sve9", "scalar"});
  expect_refused("formats --threads -3", {"threads"});
  expect_refused("run " + kGptOss + " --tokens 0", {"--tokens"});
  expect_refused("run " + kGptOss + " --backend trtllm",
                 {"--backend", "trtllm", "flashinfer_trtllm_bf16"});
  expect_refused("run " + kGptOss + " --output int8", {"--output", "int8", "bf16"});
  expect_refused("run " + kGptOss + " --layer -2", {"layer -2", "the MoE layers are 0"});
  expect_refused("run " + kGptOss + " --seed -1", {"--seed"});
  expect_refused("run " + kGptOss + " --checkpoint x", {"--checkpoint", "golden file"});
  expect_refused("run " + kGptOss + " --tokens 99999999999", {"--tokens", "99999999999"});
  expect_refused("golden " + kGptOss + " --tokens 9223372036854775807 -o x", {"--tokens"});
  expect_refused("golden " + kGptOss + " --hidden x --tokens 3 -o x", {"--hidden", "--tokens"});
  expect_refused("run " + kGptOss + " --tp 3", {"--tp", "R/N"});
  expect_refused("dequantize " + kGptOss + " --to i4 -o x", {"--to", "i4"});
  expect_refused("dequantize " + kGptOss + " --order twice -o x", {"--order", "twice", "once"});
}

TEST(CommandLine, RefusesBadSelections) {
  expect_refused("run " + kGptOss + " --layer 7", {"7", "0"});
  expect_refused("run " + kModels + "deepseek_v3_fp8_h256_i128_e8 --layer 0", {"layer 0", "1"});
  expect_refused("run " + kGptOss + " --tp 0/5", {"intermediate size is 192", "5 ranks"});
  expect_refused("run " + kGptOss + " --ep 0/3", {"number of experts is 8", "3 ranks"});
  expect_refused("run " + kGptOss + " --ep 8/8", {"rank 8/8"});
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  expect_refused("golden " + kGptOss + " --layer two -o " + out, {"--layer", "two"});
  expect_refused("golden " + kGptOss + " --tokens 4-2 -o " + out, {"--tokens", "4-2"});
}

TEST(CommandLine, RefusesMissingFilesAndFolders) {
  expect_refused("run nowhere", {"nowhere"});
  expect_refused("check nothing.safetensors nothing.safetensors", {"nothing.safetensors"});
  expect_refused("inspect nothing.safetensors", {"nothing.safetensors"});
  expect_refused("conform nothing.safetensors", {"nothing.safetensors"});
  expect_refused("synth gpt-6 -o x", {"gpt-6", "gpt-oss-20b"});
}

TEST(CommandLine, RefusesQuantizersThatDoNotFitTheModel) {
  expect_refused("synth deepseek-v3 --quantizer ocp_mx -o x",
                 {"--quantizer", "deepseek-v3", "128 x 128", "ocp_mx", "deepgemm_fp8_block"});
  expect_refused("synth gpt-oss-20b --quantizer ocp_mx --quantizer-option block=16 -o x",
                 {"--quantizer", "1 x 16", "modelopt_mxfp4"});
  expect_refused("synth gpt-oss-20b-bf16 --quantizer ocp_mx -o x", {"bf16 weights"});
  expect_refused("synth gpt-oss-20b --quantizer-option block=32 -o x", {"--quantizer-option"});
}

TEST(CommandLine, RefusesRoutingThatDoesNotFit) {
  const TempFolder folder;
  const auto with = [&](const std::vector<std::int32_t>& ids, std::int64_t top_k) {
    const auto tokens = static_cast<std::int64_t>(ids.size()) / top_k;
    const std::vector<std::uint16_t> zeros(static_cast<std::size_t>(tokens * 128));
    const std::vector<float> weights(ids.size(), 0.5f);
    const Tensor hidden =
        make_tensor<std::uint16_t>("hidden_states", DType::bf16, {tokens, 128}, zeros);
    const Tensor id = make_tensor<std::int32_t>("topk_ids", DType::i32, {tokens, top_k}, ids);
    const Tensor weight = make_tensor<float>("topk_weights", DType::f32, {tokens, top_k}, weights);
    const std::vector<TensorView> views{hidden.view(), id.view(), weight.view()};
    write_safetensors(folder / "in.safetensors", views, {});
    return "run " + kGptOss + " --hidden " + (folder / "in.safetensors").string();
  };
  expect_refused(with({0, 8}, 2), {"8"});
  expect_refused(with({0, -2}, 2), {"-2"});
  expect_refused(with({1, 2, 3, 3}, 2), {"3", "token 1"});
  EXPECT_EQ(moeref_with(with({-1, 7}, 2)).code, 0);
  EXPECT_EQ(moeref_with(with({-1, -1}, 2)).code, 0);
}

TEST(CommandLine, RefusesHiddenStatesThatDoNotFit) {
  const TempFolder folder;
  const std::string path = (folder / "in.safetensors").string();
  const std::vector<float> values(2 * 64);
  const Tensor narrow = make_tensor<float>("hidden_states", DType::f32, {2, 64}, values);
  const std::vector<TensorView> one{narrow.view()};
  write_safetensors(path, one, {});
  expect_refused("run " + kGptOss + " --hidden " + path,
                 {path, "hidden_states", "[2, 64]", "[tokens, 128]"});
  const Tensor other = make_tensor<float>("x", DType::f32, {2, 64}, values);
  const std::vector<TensorView> none{other.view()};
  write_safetensors(path, none, {});
  expect_refused("run " + kGptOss + " --hidden " + path, {path, "hidden_states"});
}

TEST(CommandLine, RefusesATruncatedCheckpoint) {
  const TempFolder folder;
  const fs::path copy = folder / "model";
  fs::copy(kGptOss, copy);
  fs::permissions(copy / "model.safetensors", fs::perms::owner_all);
  fs::resize_file(copy / "model.safetensors", fs::file_size(copy / "model.safetensors") - 100);
  expect_refused("run " + copy.string(), {"model.safetensors", "100"});
}

TEST(CommandLine, LeavesNothingBehindWhenTheDiskIsFull) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  fs::create_directory(out);
  // A limit on file size stands for the full disk; SIGXFSZ must be ignored, then write() fails.
  const Outcome outcome = moeref_with("golden " + kGptOss + " --tokens 64 --stages -o " + out,
                                      "trap '' XFSZ; ulimit -f 100;");
  EXPECT_EQ(outcome.code, 2) << outcome.error;
  EXPECT_TRUE(fs::is_empty(out)) << outcome.error;
}

TEST(CommandLine, RefusesAFolderThatCannotBeWritten) {
  expect_refused("golden " + kGptOss + " -o /proc/moeref", {"/proc/moeref"});
  expect_refused("run " + kGptOss + " --tokens 1 -o /proc/moeref.safetensors", {"/proc"});
}

TEST(Golden, GivesTheSameBytesForTheSameCommand) {
  const TempFolder folder;
  const std::string first = (folder / "a").string();
  const std::string second = (folder / "b").string();
  const std::string command = "golden " + kGptOss + " --tokens 1,9 --stages --weights --seed 4 -o ";
  ASSERT_EQ(moeref_with(command + first).code, 0);
  ASSERT_EQ(moeref_with(command + second + " --threads 1 --isa scalar").code, 0);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(first)) {
    ++files;
    EXPECT_EQ(read(entry.path()), read(fs::path(second) / entry.path().filename()));
  }
  EXPECT_EQ(files, 2);
}

TEST(Golden, HoldsInputsRoutingStagesAndOutput) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  const Outcome outcome = moeref_with("golden " + kModels +
                                      "deepseek_v4_mxfp4_h128_i64_e8 --layer '*' --tokens 3 "
                                      "--stages --bounds --json -o " +
                                      out);
  ASSERT_EQ(outcome.code, 0) << outcome.error;
  const auto report = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(report.size(), 2u);  // layers 0 (by token id) and 1
  const auto file = SafetensorsFile::open(report[0]["file"].get<std::string>());
  for (const char* tensor :
       {"in.hidden_states", "in.input_ids", "out.router_logits", "out.topk_ids", "out.topk_weights",
        "out.gemm1", "out.act", "out.gemm2", "out.shared_gemm1", "out.shared_act",
        "out.shared_gemm2", "out.final", "low.final", "high.final"}) {
    EXPECT_NE(file->find(tensor), nullptr) << tensor;
  }
  EXPECT_EQ(file->at("out.gemm1").shape, (Shape{3, 3, 128}));
  EXPECT_EQ(file->at("out.final").dtype, DType::bf16);
  EXPECT_EQ(file->metadata().at("op"), "moe_forward");
}

TEST(Golden, IsItselfJudgedIdenticalAndRunsAgain) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  ASSERT_EQ(moeref_with("golden " + kGptOss + " --tokens 3 --seed 1 --ep 1/2 -o " + out).code, 0);
  const std::string file = fs::directory_iterator(out)->path().string();
  EXPECT_EQ(moeref_with("check " + file + " " + file).code, 0);
  expect_refused("run " + file, {"gpt_oss_mxfp4_h128_i192_e8", "--checkpoint"});
  expect_refused("run " + file + " --checkpoint " + kModels + "qwen3_moe_ct_nvfp4_h128_i96_e8",
                 {"model_type", "gpt_oss", "qwen3_moe"});
  expect_refused("run " + file + " --layer 0", {"--layer", "golden file"});
  expect_refused("run " + file + " --checkpoint " + kGptOss + " -o " + file, {"-o"});
  const Outcome again = moeref_with("run " + file + " --checkpoint " + kGptOss);
  EXPECT_EQ(again.code, 0) << again.error;
  EXPECT_NE(again.out.find("equal to the golden file"), std::string::npos) << again.out;
}

TEST(Check, ExitsWithOneAndNamesThePlace) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  ASSERT_EQ(moeref_with("golden " + kGptOss + " --tokens 3 -o " + out).code, 0);
  const std::string golden = fs::directory_iterator(out)->path().string();
  const auto file = SafetensorsFile::open(golden);
  TensorView final = file->at("out.final");
  std::vector<std::byte> bytes(final.bytes.begin(), final.bytes.end());
  bytes[2 * (2 * 128 + 5)] ^= std::byte{4};
  final.name = "output";
  final.bytes = bytes;
  const std::string actual = (folder / "gpu.safetensors").string();
  const std::vector<TensorView> views{final};
  write_safetensors(actual, views, {});
  const Outcome outcome = moeref_with("check " + actual + " " + golden + " --json");
  EXPECT_EQ(outcome.code, 1);
  const auto report = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(report["verdict"], "wrong");
  EXPECT_EQ(report["tensors"][0]["first"]["at"], "token 2, hidden 5");
  EXPECT_EQ(report["tensors"][0]["differing"], 1);
}

TEST(Check, RefusesAFileWithoutTheOutput) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  ASSERT_EQ(moeref_with("golden " + kGptOss + " --tokens 3 --stages -o " + out).code, 0);
  const std::string golden = fs::directory_iterator(out)->path().string();
  const auto file = SafetensorsFile::open(golden);
  TensorView act = file->at("out.act");
  act.name = "act";
  const std::string actual = (folder / "gpu.safetensors").string();
  const std::vector<TensorView> views{act};
  write_safetensors(actual, views, {});
  expect_refused("check " + actual + " " + golden, {"final", "found act", "--tensor"});
  const Outcome stage = moeref_with("check " + actual + " " + golden + " --tensor act");
  EXPECT_EQ(stage.code, 0) << stage.out << stage.error;
}

TEST(CommandLine, RefusesHiddenStatesWithNanScales) {
  const TempFolder folder;
  const std::string path = (folder / "in.safetensors").string();
  const std::vector<std::uint8_t> codes(128, 0x38);
  const std::vector<float> scales{std::numeric_limits<float>::quiet_NaN()};
  const Tensor hidden = make_tensor<std::uint8_t>("hidden_states", DType::f8_e4m3, {1, 128}, codes);
  const Tensor scale = make_tensor<float>("hidden_states_scale", DType::f32, {1, 1}, scales);
  const std::vector<TensorView> views{hidden.view(), scale.view()};
  write_safetensors(path, views, {});
  expect_refused("run " + kGptOss + " --hidden " + path, {"hidden_states_scale", "nan"});
}

TEST(CommandLine, ReportsAnOutputThatCannotBeWritten) {
  const TempFolder folder;
  const int status = std::system(
      (std::string(MOEREF_BINARY) + " formats >/dev/full 2>" + (folder / "error").string())
          .c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_NE(read(folder / "error").find("stdout"), std::string::npos);
}

TEST(Dequantize, WritesTheLogicalTensors) {
  const TempFolder folder;
  const std::string out = (folder / "out.safetensors").string();
  ASSERT_EQ(
      moeref_with("dequantize " + kModels + "deepseek_v3_fp8_h256_i128_e8 --to f64 -o " + out).code,
      0);
  const auto file = SafetensorsFile::open(out);
  EXPECT_EQ(file->at("gate").shape, (Shape{8, 128, 256}));
  EXPECT_EQ(file->at("down").dtype, DType::f64);
  EXPECT_EQ(file->at("shared_down").shape, (Shape{256, 128}));
  EXPECT_EQ(file->at("selection_bias").shape, (Shape{8}));
}

}  // namespace
}  // namespace moeref
