// moeref layout list and apply as a user runs them: what they tell, take and refuse.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using namespace testing;

TEST(LayoutList, FitsATerminalOf120Columns) {
  std::vector<std::string> commands{"layout list", "layout list --steps", "backends"};
  const json backends = json_of("layout list")["backends"];
  for (const json& backend : backends) {
    commands.push_back("layout list " + backend["name"].get<std::string>());
  }
  for (const std::string& command : commands) {
    const Outcome outcome = moeref_with(command);
    EXPECT_EQ(outcome.code, 0) << command << outcome.error;
    std::istringstream lines(outcome.out);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), 120u) << command << "\n" << line;
    }
  }
}

TEST(LayoutList, TellsOptionsRulesStepsAndFormulas) {
  const json report = json_of("layout list " + kTrtllm);
  EXPECT_EQ(report["name"], kTrtllm);
  EXPECT_FALSE(report["options"].empty());
  EXPECT_FALSE(report["rules"].empty());
  ASSERT_FALSE(report["recipes"].empty());
  EXPECT_TRUE(report["refused"].empty()) << report["refused"];
  const json& tensor = report["recipes"][0]["tensors"][0];
  EXPECT_EQ(tensor["name"], "w13");
  EXPECT_EQ(tensor["steps"][0]["step"], "swap_halves");
  EXPECT_EQ(tensor["steps"][0]["kind"], "move");
}

TEST(LayoutList, TellsWhatTheDefaultOptionsNeed) {
  std::istringstream words(moeref_with("layout list").out);
  std::string table;
  for (std::string word; words >> word;) table += word + " ";
  for (const char* needs :
       {"takes nvfp4, nvfp4_ct; needs hidden % 128 flashinfer_trtllm_mxfp4 ",
        "takes mxfp4; needs hidden % 32, intermediate % 32 flashinfer_trtllm_mxfp4_dsv4 ",
        "needs hidden % 64, intermediate % 16, intermediate % 32 if gated marlin_fp8 ",
        "hidden % 128 if fp8_block, intermediate % 128 if fp8_block marlin_mxfp8 ",
        "intermediate % 128 if gated and mxfp8 flashinfer_cutlass_fp8_block "}) {
    EXPECT_NE(table.find(needs), std::string::npos) << needs << "\n" << table;
  }
  const Outcome one = moeref_with("layout list " + kTrtllm);
  EXPECT_NE(one.out.find("hidden % 128 if hidden=as_is"), std::string::npos) << one.out;
  EXPECT_NE(one.out.find("padded intermediate % 64 if gated"), std::string::npos) << one.out;
}

TEST(LayoutList, ShowsARecipeOfEveryBackend) {
  const json backends = json_of("layout list")["backends"];
  for (const json& backend : backends) {
    const json report = json_of("layout list " + backend["name"].get<std::string>());
    EXPECT_FALSE(report["recipes"].empty()) << report["name"] << report["refused"];
  }
}

TEST(LayoutList, ShowsStepsAndOptionsChosen) {
  const json steps = json_of("layout list --steps")["steps"];
  EXPECT_GT(steps.size(), 8u);
  for (const json& step : steps) EXPECT_NE(step["source"], "");
  const Outcome whole = moeref_with("layout list " + kTrtllm + " --option pad=whole_upstream");
  EXPECT_NE(whole.out.find("pad_rows"), std::string::npos) << whole.out;
  expect_refused("layout list " + kTrtllm + " --option pad=no", {"pad=no", "per_half"});
  expect_refused("layout list flashinfer_trtlm_nvfp4", {"flashinfer_trtllm_nvfp4"});
  expect_refused("layout list --steps " + kTrtllm, {"--steps"});
  expect_refused("layout list --option a=b", {"--option"});
}

TEST(LayoutApply, TakesLogicalTensorsOfAnyOrder) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  expect_done("layout apply " + kGptOss + " -q --backend reference -o " + path("logical"));
  EditableFile file(path("logical"));
  file.metadata.clear();
  file.write(path("plain"));
  const std::string apply =
      "layout apply " + path("plain") + " --backend reference -o " + path("out") + " ";
  expect_refused(apply, {"weight format", "--format"});
  expect_refused(apply + "--format mxfp4", {"w13", "--order"});
  expect_refused(apply + "--format fp8_block --order gate_up", {"w13"});
  expect_refused(apply + "--format mxfp4 --order sideways", {"sideways", "gate_up"});
  expect_refused(apply + "--format mxfp4 --order none", {"--order", "gate and up"});
  expect_done(apply + "-q --format mxfp4 --order gate_up");
  const auto logical = tensors_of(path("logical"));
  auto again = tensors_of(path("out"));
  for (const char* name : {"w13", "w13_scale", "w13_bias", "w2", "w2_scale", "w2_bias"}) {
    EXPECT_TRUE(again.at(name) == logical.at(name)) << name;
  }
  // Rows 2i and 2i + 1 are gate and up row i; put there by a step, they come back in order.
  EditableFile columns(path("plain"));
  columns["w13_bias"].shape.push_back(1);
  columns.write(path("columns"));
  EditableFile mixed(path("plain"));
  for (const std::string name : {"w13", "w13_scale", "w13_bias"}) {
    expect_done("layout apply " + path("columns") + " " + name +
                " -q --order gate_up --steps \"interleave_halves(1)\" -o " + path("mixed"));
    mixed[name].bytes = EditableFile(path("mixed"))[name].bytes;
  }
  mixed.write(path("plain"));
  expect_done(apply + "-q --format mxfp4 --order interleaved");
  again = tensors_of(path("out"));
  for (const char* name : {"w13", "w13_scale", "w13_bias", "w2"}) {
    EXPECT_TRUE(again.at(name) == logical.at(name)) << name;
  }
}

TEST(LayoutApply, RefusesWhatDoesNotFit) {
  const TempFolder folder;
  const std::string out = " -o " + (folder / "out").string();
  expect_refused("layout", {"subcommand"});
  expect_refused("layout apply " + kGptOss + out, {"--backend", "--steps"});
  expect_refused("layout apply " + kGptOss + " --backend nope" + out, {"nope"});
  expect_refused("layout apply " + kGptOss + " --backend " + kTrtllm + out, {"nvfp4", "mxfp4"});
  expect_refused("layout apply " + kGptOss + " --backend reference --layer 9" + out, {"9", "0"});
  expect_refused("layout apply " + kGptOss + " --backend reference --order gate_up" + out,
                 {"--order", "checkpoint"});
  expect_refused("layout apply " + kGptOss + " w13 --backend reference" + out, {"w13", "--steps"});
  expect_refused("layout apply " + kGptOss + " --backend reference --tp 0/5" + out,
                 {"--tp", "192"});
  expect_refused("layout apply " + kGptOss + " --backend reference --option a=b" + out, {"a=b"});
  expect_refused("layout apply nowhere --backend reference" + out, {"nowhere"});
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(LayoutApply, RefusesStepsThatSayTooLittleOrTooMuch) {
  const TempFolder folder;
  const std::string in = (folder / "in").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + in);
  const std::string apply = "layout apply " + in + " w13 -o " + (folder / "out").string();
  for (const char* step :
       {"swap_halves", "swap_pairs", "interleave_halves(1)", "pad_halves(256)"}) {
    expect_refused(apply + " --steps \"" + step + "\"",
                   {"--order", std::string(step).substr(0, 8)});
  }
  expect_refused(apply + " --steps \"pad_rows(4)\" --tp 0/2", {"--steps", "--tp"});
  expect_refused(apply + " --steps \"pad_rows(4)\" --option a=b", {"--steps", "--option"});
  expect_refused("golden " + kGptOss + " --backend flashinfer_trtlm_mxfp4 -o " + in,
                 {"flashinfer_trtllm_mxfp4"});
}

TEST(LayoutApply, NeverReplacesWhatItReads) {
  const TempFolder folder;
  const fs::path model = folder / "model";
  fs::copy(kGptOss, model, fs::copy_options::recursive);
  const std::string weights = read_bytes(model / "model.safetensors");
  fs::create_symlink(model / "model.safetensors", folder / "link");
  const std::string apply = "layout apply " + model.string() + " --backend reference -o ";
  expect_refused(apply + (model / "model.safetensors").string(), {"model.safetensors", "-o"});
  expect_refused(apply + (model / "new.safetensors").string(), {"new.safetensors", "checkpoint"});
  expect_refused(apply + (folder / "link").string(), {"link", "model.safetensors"});
  expect_refused("golden " + model.string() + " -o " + model.string(), {"model", "checkpoint"});
  expect_refused("golden " + model.string() + " -o ''", {"--out"});
  expect_refused("run " + model.string() + " --tokens 1 -o " + (folder / "link").string(),
                 {"link", "model.safetensors"});
  expect_refused("dequantize " + model.string() + " -o " + (folder / "link").string(),
                 {"link", "model.safetensors"});
  EXPECT_TRUE(read_bytes(model / "model.safetensors") == weights);
  const std::string file = (folder / "file").string();
  expect_done(apply + file + " -q");
  const std::string prepared = read_bytes(file);
  expect_refused("layout apply " + file + " --backend marlin_mxfp4 -o " + file, {"file", "input"});
  expect_refused("layout undo " + file + " -o " + file, {"file", "input"});
  EXPECT_TRUE(read_bytes(file) == prepared);
}

TEST(LayoutApply, RefusesFactorsThatAreNotThoseOfTheMetadata) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + path("prepared"));
  expect_done("layout undo " + path("prepared") + " -q -o " + path("logical"));
  for (const char* file : {"prepared", "logical"}) {
    EditableFile changed(path(file));
    changed["w13_scale_2"].bytes[4] ^= std::byte{1};
    changed.write(path("changed"));
    expect_refused(
        "layout apply " + path("changed") + " --backend " + kTrtllm + " -o " + path("out"),
        {"w13_scale_2", "[1]"});
  }
}

TEST(LayoutApply, KeepsWhereALogicalFileCameFrom) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const auto params = [&](const char* name) {
    return json::parse(SafetensorsFile::open(path(name))->metadata().at("params"));
  };
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + path("prepared"));
  expect_done("layout undo " + path("prepared") + " -q -o " + path("logical"));
  expect_done("layout apply " + path("logical") + " -q --backend " + kTrtllm + " -o " +
              path("again"));
  EXPECT_EQ(params("again")["checkpoint"], params("prepared")["checkpoint"]);
  EXPECT_EQ(params("again")["layer"], 0);
  EditableFile plain(path("logical"));
  plain.metadata.clear();
  plain.write(path("plain"));
  expect_done("layout apply " + path("plain") + " -q --format nvfp4_ct --order gate_up --backend " +
              kTrtllm + " -o " + path("again"));
  EXPECT_EQ(params("again")["checkpoint"], "plain");
  EXPECT_FALSE(params("again").contains("layer"));
  // Audit takes such a file, too.
  expect_refused("layout audit " + kTrtllm + " " + path("plain"), {"--format"});
  expect_done("layout audit " + kTrtllm + " " + path("plain") +
              " --format nvfp4_ct --order gate_up");
  expect_refused("layout audit " + kTrtllm + " --format nvfp4_ct", {"--format", "--shape"});
}

TEST(LayoutApply, PutsOneTensorThroughSteps) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  std::vector<std::uint8_t> values(2 * 12 * 8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(i);
  const Tensor tensor = make_tensor<std::uint8_t>("x", DType::u8, {2, 12, 8}, values);
  const std::vector<TensorView> views{tensor.view()};
  write_safetensors(path("in"), views, {});
  const std::string apply = "layout apply " + path("in") + " x -o " + path("out") + " ";
  expect_done(apply + "--order up_gate --steps \"swap_halves pad_halves(8)\"");
  const auto out = SafetensorsFile::open(path("out"));
  EXPECT_EQ(out->at("x").shape, (Shape{2, 16, 8}));
  // The file has up first, swapped it is up first again.
  EXPECT_EQ(out->at("x").at<std::uint8_t>(8), 8);
  EXPECT_EQ(out->at("x").at<std::uint8_t>(6 * 8), 0);
  EXPECT_EQ(out->at("x").at<std::uint8_t>(8 * 8), 48);
  const json place = json_of("layout explain " + path("out") + " --at [1,9,3]");
  EXPECT_EQ(place["meanings"][0]["text"], "expert 1, gate row 1, column 3");
  EXPECT_EQ(place["meanings"][0]["value"], 96 + 48 + 8 + 3);
  expect_done("layout undo " + path("out") + " -q -o " + path("back"));
  auto back = tensors_of(path("back"));
  std::vector<std::byte> gate_first(tensor.bytes.begin() + 48, tensor.bytes.begin() + 96);
  EXPECT_TRUE(std::equal(gate_first.begin(), gate_first.end(), back.at("x").begin()));
  // The same from a file without metadata.
  EditableFile dump(path("out"));
  dump.metadata.clear();
  dump.write(path("dump"));
  expect_refused("layout undo " + path("dump") + " x -o y", {"prepared", "steps"});
  const std::string foreign = "layout undo " + path("dump") + " x -q --order gate_up -o " +
                              path("back2") + " --steps \"swap_halves pad_halves(8)\" --shape ";
  expect_done(foreign + "2,12,8");
  EXPECT_TRUE(tensors_of(path("back2")) == back);
  expect_refused(foreign + "2,40,8", {"dump", "x"});
  expect_refused(foreign + "2,12", {"dump"});
  expect_refused(foreign + "2,-12,8", {"--shape", "-12"});
  const json raw =
      json_of("layout explain " + path("dump") +
              " x --order gate_up --steps \"swap_halves pad_halves(8)\" --shape 2,12,8 "
              "--at byte:48");
  EXPECT_EQ(raw["meanings"][0]["step"], "pad_halves");
  expect_refused(apply + "--steps frobnicate", {"frobnicate"});
  expect_refused(apply + "--steps \"shuffle_rows(128)\"", {"x", "shuffle_rows"});
  expect_refused(apply + "--bits 3 --steps \"pad_rows(2)\"", {"x", "3"});
  expect_refused(apply + "--steps \"repeat_rows(1048576) repeat_rows(1048576)\"", {"repeat_rows"});
}

}  // namespace
}  // namespace moeref
