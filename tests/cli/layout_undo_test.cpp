// moeref layout undo as a user runs it: the way back of what apply wrote, and what it finds wrong.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cli/prepared_file.hpp"
#include "io/safetensors.hpp"
#include "layout/explain.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using namespace testing;

/// Checkpoint by checkpoint, the backends that take its format.
std::vector<std::pair<std::string, std::string>> pairs() {
  const json backends = json_of("layout list")["backends"];
  std::vector<std::pair<std::string, std::string>> all;
  const std::vector<std::pair<std::string, std::string>> models{
      {"gpt_oss_mxfp4_h128_i192_e8", "mxfp4"},
      {"deepseek_v3_fp8_h256_i128_e8", "fp8_block"},
      {"nemotron_h_modelopt_fp8_h128_i248_e8", "fp8_tensor"},
      {"nemotron_h_modelopt_nvfp4_h128_i208_e8", "nvfp4"},
      {"qwen3_moe_ct_fp8_channel_h128_i96_e8", "fp8_channel"},
      {"qwen3_moe_ct_nvfp4_h128_i96_e8", "nvfp4_ct"}};
  for (const auto& [model, format] : models) {
    for (const json& backend : backends) {
      for (const json& taken : backend["formats"]) {
        if (taken == format) all.emplace_back(model, backend["name"].get<std::string>());
      }
    }
  }
  return all;
}

TEST(LayoutUndo, GivesBackWhatApplyTook) {
  int applied = 0;
  for (const auto& [model, backend] : pairs()) {
    SCOPED_TRACE(model + " " + backend);
    const TempFolder folder;
    const auto path = [&](const char* name) { return (folder / name).string(); };
    const std::string apply = "layout apply " + kModels + model + " -q --backend ";
    const Outcome prepared = moeref_with(apply + backend + " -o " + path("prepared"));
    if (prepared.code == 2) {  // a rule of the backend refuses these sizes
      EXPECT_FALSE(fs::exists(path("prepared")));
      EXPECT_EQ(std::count(prepared.error.begin(), prepared.error.end(), '\n'), 1)
          << prepared.error;
      continue;
    }
    ASSERT_EQ(prepared.code, 0) << prepared.error;
    ++applied;
    expect_done(apply + "reference -o " + path("logical"));
    const json report = json_of("layout undo " + path("prepared") + " -o " + path("undone"));
    EXPECT_TRUE(report["right"].get<bool>());
    const auto logical = tensors_of(path("logical"));
    auto undone = tensors_of(path("undone"));
    for (const json& tensor : report["tensors"]) {
      EXPECT_EQ(tensor["missing"], 0) << tensor;
      const auto name = tensor["logical"].get<std::string>();
      if (name.empty() || !tensor["recoded"].empty()) continue;
      ASSERT_TRUE(logical.contains(name)) << name;
      EXPECT_TRUE(undone.at(name) == logical.at(name)) << name;
    }
    const json params = json::parse(SafetensorsFile::open(path("undone"))->metadata().at("params"));
    if (params.contains("recoded")) {
      expect_refused(
          "layout apply " + path("undone") + " --backend " + backend + " -o " + path("again"),
          {"rewritten"});
    } else if (report["absent"].empty()) {
      expect_done("layout apply " + path("undone") + " -q --backend " + backend + " -o " +
                  path("again"));
      EXPECT_TRUE(tensors_of(path("again")) == tensors_of(path("prepared")));
    }
  }
  EXPECT_GT(applied, 10);
}

TEST(LayoutUndo, KeepsTheRankInTheFile) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  for (const std::string rank : {"--tp 0/2", "--tp 1/2", "--ep 3/4", "--tp 1/2 --ep 1/2",
                                 "--tp 1/2 --option loader=unpadded"}) {
    SCOPED_TRACE(rank);
    const std::string options =
        rank.find("--option") == std::string::npos ? "" : rank.substr(rank.find("--option"));
    expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " " + rank + " -o " +
                path("prepared"));
    expect_done("layout undo " + path("prepared") + " -q -o " + path("logical"));
    expect_done("layout apply " + path("logical") + " -q --backend " + kTrtllm + " " + options +
                " -o " + path("again"));
    EXPECT_TRUE(tensors_of(path("prepared")) == tensors_of(path("again")));
    expect_refused("layout apply " + path("logical") + " --backend " + kTrtllm + " --tp 0/2 -o x",
                   {"--tp", "one rank's part"});
  }
}

TEST(LayoutUndo, NamesAWrongPad) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " -o " + path("prepared"));
  EditableFile file(path("prepared"));
  const auto opened = cli::open_prepared(path("prepared"));
  const PreparedTensor& w13 = opened.layer.tensors[cli::find_tensor(opened.layer, "w13")];
  std::int64_t byte = 0;
  while (!explain_byte(opened.layer, w13, byte).front().pad) ++byte;
  file["w13"].bytes[static_cast<std::size_t>(byte)] = std::byte{0x05};
  file.write(path("wrong"));
  const json report = json_of("layout undo " + path("wrong") + " -o " + path("out"), 1);
  EXPECT_FALSE(report["right"].get<bool>());
  for (const json& tensor : report["tensors"]) {
    EXPECT_EQ(tensor["wrong_pads"], tensor["tensor"] == "w13" ? 1 : 0);
    if (tensor["tensor"] != "w13") continue;
    const auto first = tensor["first_wrong"].get<std::string>();
    EXPECT_NE(first.find("padding by pad_halves"), std::string::npos) << first;
    EXPECT_NE(first.find("holds 0x5"), std::string::npos) << first;
    EXPECT_NE(first.find(fmt::format("byte {:#x}", byte)), std::string::npos) << first;
  }
  EXPECT_TRUE(tensors_of(path("out")).contains("w13"));
}

TEST(LayoutUndo, NamesAWrongCopy) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::vector<float> values{1, 2, 3, 4};
  const Tensor tensor = make_tensor<float>("s", DType::f32, {1, 2, 2}, values);
  const std::vector<TensorView> views{tensor.view()};
  write_safetensors(path("in"), views, {});
  expect_done("layout apply " + path("in") + " s -q --steps \"repeat_rows(2)\" -o " + path("out"));
  expect_done("layout undo " + path("out") + " -q -o " + path("back"));
  EXPECT_TRUE(tensors_of(path("back")).at("s") == tensor.bytes);
  EditableFile file(path("out"));
  file.set<float>("s", 3, 9.0f);
  file.write(path("wrong"));
  const json report = json_of("layout undo " + path("wrong") + " -o " + path("back"), 1);
  EXPECT_EQ(report["tensors"][0]["wrong_copies"], 1);
  EXPECT_EQ(report["tensors"][0]["first_wrong"],
            "byte 0xc holds 0x41100000: expert 0, row 0, column 1, unlike its first copy");
}

TEST(LayoutUndo, NamesAWrongFactor) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::string undo = "layout undo " + path("changed") + " -o " + path("out");
  for (const std::string& backend :
       {kTrtllm, std::string("reference"), std::string("marlin_nvfp4")}) {
    SCOPED_TRACE(backend);
    expect_done("layout apply " + kNvfp4 + " -q --backend " + backend + " -o " + path("prepared"));
    expect_done("layout undo " + path("prepared") + " -q -o " + path("out"));
    int recomputed = 0;
    const json report = json_of("layout undo " + path("prepared") + " -o " + path("out"));
    EXPECT_FALSE(report["factors"].empty());
    for (const json& factors : report["factors"]) {
      const auto name = factors["tensor"].get<std::string>();
      EditableFile file(path("prepared"));
      file[name].bytes.back() ^= std::byte{1};
      file.write(path("changed"));
      const bool checked = factors["recomputed"].get<bool>();
      recomputed += checked ? 1 : 0;
      const json changed_report = json_of(undo, checked ? 1 : 0);
      for (const json& entry : changed_report["factors"]) {
        const bool changed = entry["tensor"] == name && entry["recomputed"].get<bool>();
        EXPECT_EQ(entry["wrong"], changed ? 1 : 0) << entry;
      }
      file[name].bytes.resize(file[name].bytes.size() - 4);
      file[name].shape = {static_cast<std::int64_t>(file[name].bytes.size() / 4)};
      file.write(path("changed"));
      expect_refused(undo, {name, "F32"});
      file.tensors.erase(name);
      file.write(path("changed"));
      expect_refused(undo, {name, "missing"});
    }
    EXPECT_EQ(recomputed > 0, backend != "marlin_nvfp4");
  }
}

TEST(LayoutUndo, RefusesOptionsThatTheFileAnswers) {
  const TempFolder folder;
  const std::string file = (folder / "prepared").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + file);
  for (const char* option : {"--order up_gate", "--bits 4", "--block 1x32", "--dtype F32"}) {
    const std::string name = std::string(option).substr(0, std::string(option).find(' '));
    expect_refused("layout undo " + file + " -o x " + option, {name, "--steps"});
    expect_refused("layout explain " + file + " w13 --at 0 " + option, {name, "--steps"});
  }
  expect_refused("layout undo " + file + " -o x --shape 1,2,4", {"--shape", "--steps"});
  expect_refused("layout explain w13 --backend reference --steps swap_halves --at 0", {"--steps"});
}

TEST(LayoutUndo, GivesBackAnEmptyRank) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::string empty = " -q --backend flashinfer_trtllm_mxfp4 --tp 7/8 -o ";
  expect_done("layout apply " + kGptOss + empty + path("prepared"));
  expect_done("layout undo " + path("prepared") + " -q -o " + path("logical"));
  expect_done("layout apply " + path("logical") + " -q --backend flashinfer_trtllm_mxfp4 -o " +
              path("again"));
  EXPECT_TRUE(tensors_of(path("prepared")) == tensors_of(path("again")));
}

}  // namespace
}  // namespace moeref
