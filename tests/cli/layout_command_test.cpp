// moeref layout as a user runs it: prepared files, the way back, explanations, hostile metadata.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cli/layout_source.hpp"
#include "cli/layout_undoing.hpp"
#include "cli/prepared_file.hpp"
#include "io/safetensors.hpp"
#include "layout/explain.hpp"
#include "quant/error.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::EditableFile;
using testing::TempFolder;

const std::string kModels = MOEREF_DATA_DIR "/golden/models/";
const std::string kGptOss = kModels + "gpt_oss_mxfp4_h128_i192_e8";
const std::string kNvfp4 = kModels + "qwen3_moe_ct_nvfp4_h128_i96_e8";
const std::string kTrtllm = "flashinfer_trtllm_nvfp4";

struct Outcome {
  int code = -1;
  std::string out;
  std::string error;
};

Outcome moeref_with(const std::string& arguments) {
  const TempFolder folder;
  const std::string command = MOEREF_BINARY " " + arguments + " >" + (folder / "out").string() +
                              " 2>" + (folder / "error").string();
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, testing::read_bytes(folder / "out"),
          testing::read_bytes(folder / "error")};
}

void expect_done(const std::string& arguments) {
  const Outcome outcome = moeref_with(arguments);
  EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.out << outcome.error;
}

/// Exit code 2, nothing on stdout, one line on stderr that holds every part.
void expect_refused(const std::string& arguments, const std::vector<std::string>& parts) {
  const Outcome outcome = moeref_with(arguments);
  EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.out << outcome.error;
  EXPECT_EQ(outcome.out, "") << arguments;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.error.find(part), std::string::npos)
        << arguments << "\nlacks: " << part << "\nsays:  " << outcome.error;
  }
}

json json_of(const std::string& arguments, int code = 0) {
  const Outcome outcome = moeref_with(arguments + " --json");
  EXPECT_EQ(outcome.code, code) << arguments << "\n" << outcome.error;
  return json::parse(outcome.out, nullptr, false);
}

/// The bytes of every tensor, by name.
std::map<std::string, std::vector<std::byte>> tensors_of(const std::string& path) {
  std::map<std::string, std::vector<std::byte>> all;
  const auto file = SafetensorsFile::open(path);
  for (const auto& [name, view] : file->tensors()) {
    all[name] = {view.bytes.begin(), view.bytes.end()};
  }
  return all;
}

// ---------------------------------------------------------------- list

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

// ---------------------------------------------------------------- apply and undo

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

// ---------------------------------------------------------------- explain

TEST(LayoutExplain, AnswersInBothDirections) {
  const TempFolder folder;
  const std::string file = (folder / "prepared.safetensors").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " -o " + file);
  const json found = json_of("layout explain " + file + " --find \"expert=3 gate row=17 col=37\"");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0]["tensor"], "w13");
  EXPECT_EQ(found[1]["tensor"], "w13_scale");
  EXPECT_EQ(found[1]["places"][0]["text"],
            "expert 3, gate scale row 17, column 2 (weight row 17, columns 32..47)");
  for (const json& entry : found) {
    const json at = json_of("layout explain " + file + " " + entry["tensor"].get<std::string>() +
                            " --at byte:" + entry["places"][0]["byte"].dump());
    bool named = false;
    for (const json& meaning : at["meanings"]) {
      named = named || meaning["text"] == entry["places"][0]["text"];
    }
    EXPECT_TRUE(named) << at;
  }
  const json scale = json_of(
      "layout explain " + file + " w13_scale --find \"expert=3 projection gate row=17 col=2\"", 2);
  EXPECT_TRUE(scale.is_discarded());
  const json block =
      json_of("layout explain " + file + " w13_scale --find \"expert=3 gate row=17 col=2\"");
  EXPECT_EQ(block[0]["places"], found[1]["places"]);
  // A shape alone answers the same.
  const json shape = json_of("layout explain --backend " + kTrtllm +
                             " --shape experts=8,hidden=128,intermediate=96 --find \"expert=3 gate "
                             "row=17 col=37\"");
  EXPECT_EQ(shape[0]["places"][0]["bit"], found[0]["places"][0]["bit"]);
  EXPECT_EQ(shape[1]["places"][0]["bit"], found[1]["places"][0]["bit"]);
  const json rank = json_of("layout explain --backend " + kTrtllm +
                            " w13 --shape experts=8,hidden=128,intermediate=512 --tp 1/2 --ep 1/4 "
                            "--find \"expert=3 up row=256 col=0\"");
  EXPECT_EQ(rank[0]["places"].size(), 1u);
}

TEST(LayoutExplain, TellsFormulaAndExpertOfFactors) {
  const TempFolder folder;
  const std::string file = (folder / "prepared.safetensors").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + file);
  const json global = json_of("layout explain " + file + " w13_scale_2 --at 5");
  EXPECT_EQ(global["expert"], 2);
  EXPECT_NE(global["formula"], "");
  const json found = json_of("layout explain " + file + " w2_scale_2 --find expert=6");
  EXPECT_EQ(found["index"], 6);
  expect_refused("layout explain " + file + " w2_scale_2 --at 8", {"w2_scale_2", "8"});
  // A rank has its own global scales, and the activation scales of all experts.
  expect_done("layout apply " + kNvfp4 + " -q --ep 1/4 --backend reference -o " + file);
  EXPECT_EQ(json_of("layout explain " + file + " w13_scale_2 --at 2")["expert"], 3);
  EXPECT_EQ(json_of("layout explain " + file + " w13_input_scale --at 2")["expert"], 1);
  expect_refused("layout explain " + file + " w2_scale_2 --find expert=1", {"2..3"});
}

TEST(LayoutExplain, RefusesPlacesThatAreNot) {
  const TempFolder folder;
  const std::string file = (folder / "prepared.safetensors").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " -o " + file);
  const std::string at = "layout explain " + file + " w13 --at ";
  expect_refused(at + "131072", {"w13", "131072"});
  expect_refused(at + "byte:0x20000", {"w13", "131072"});
  expect_refused(at + "byte:", {"--at"});
  expect_refused(at + "-1", {"--at"});
  expect_refused(at + "99999999999999999999", {"--at"});
  expect_refused(at + "[1,2]", {"[1,2]", "[8, 256, 64]"});
  expect_refused(at + "[8,0,0]", {"[8,0,0]"});
  expect_refused(at + "[1,2,3", {"[1,2,3"});
  expect_refused("layout explain " + file + " w14 --at 0", {"w14", "w13_scale"});
  expect_refused("layout explain " + file + " --at 0", {"--at", "w13"});
  expect_refused("layout explain " + file, {"--at", "--find"});
  const std::string find = "layout explain " + file + " w13 --find ";
  expect_refused(find + "\"expert=8 gate row=0 col=0\"", {"expert 8"});
  expect_refused(find + "\"expert=0 gate row=96 col=0\"", {"row 96"});
  expect_refused(find + "\"expert=0 gate row=0 col=128\"", {"column 128"});
  expect_refused(find + "\"expert=0 down row=0 col=0\"", {"down", "gate and up"});
  expect_refused(find + "\"expert=0 row=0 col=0\"", {"gate or up"});
  expect_refused(find + "\"expert=0 gate\"", {"row"});
  expect_refused(find + "\"gate row=0 col=0\"", {"expert"});
  expect_refused(find + "\"expert=-1 gate row=0 col=0\"", {"-1"});
  expect_refused("layout explain " + file + " --find \"expert=0 row=0 col=0\"",
                 {"gate, up or down"});
  expect_refused("layout explain w13 --backend " + kTrtllm + " --shape hidden=100 --at 0",
                 {"hidden"});
  expect_refused("layout explain w13 --backend " + kTrtllm + " --shape width=100 --at 0",
                 {"width"});
  expect_refused("layout explain " + kGptOss + "/model.safetensors w13 --at 0", {"prepared"});
}

// ---------------------------------------------------------------- hostile metadata

/// Every way in which the value of a JSON leaf may be wrong.
std::vector<json> wrong_values() {
  return {json(-1),        json(0),          json(1),
          json(3),         json(1 << 20),    json(INT64_MAX),
          json(INT64_MIN), json(UINT64_MAX), json(std::int64_t{1} << 40),
          json(1e308),     json(0.5),        json("x"),
          json(nullptr),   json(true),       json::array(),
          json::object(),  json({1, 2}),     json(std::string(300, 'y'))};
}

/// All places of a JSON value, leaves and branches, as pointers.
void collect(const json& value, const json::json_pointer& at,
             std::vector<json::json_pointer>& all) {
  if (!at.empty()) all.push_back(at);
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) collect(item, at / key, all);
  } else if (value.is_array() && !value.empty()) {
    all.push_back(at / 0);
  }
}

/// Opens, explains and undoes; an Error is a proper answer, whatever else is not.
void use(const fs::path& path, const fs::path& out) {
  try {
    const cli::PreparedFile file = cli::open_prepared(path);
    for (const PreparedTensor& tensor : file.layer.tensors) {
      if (tensor.from == nullptr || byte_count(tensor) == 0) continue;
      for (const std::int64_t byte : {std::int64_t{0}, byte_count(tensor) - 1}) {
        for (const Meaning& meaning : explain_byte(file.layer, tensor, byte)) describe(meaning);
      }
    }
    std::vector<cli::Undoing> undoings = cli::plan_undo(file, file.layer.backend == nullptr);
    cli::CaseWriter writer;
    cli::add_undone(writer, file, undoings, 1);
    writer.write(out, {});
    for (cli::Undoing& undoing : undoings) cli::explain_wrong(file, undoing);
    cli::check_factors(file);
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
  }
}

/// Prepares the layer of a file of logical tensors.
void prepare_again(const fs::path& path) {
  try {
    const cli::LayerSource source = cli::open_layer_source(path.string(), std::nullopt, {});
    cli::BackendChoice choice;
    choice.backend = "reference";
    const PreparedLayer layer = cli::plan_source(source, choice);
    for (const PreparedTensor& tensor : layer.tensors) make(tensor, 1);
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
  }
}

void expect_survives_mutations(const std::string& prepared, const TempFolder& folder) {
  EditableFile file(prepared);
  const json params = json::parse(file.metadata.at("params"));
  std::vector<json::json_pointer> places;
  collect(params, json::json_pointer(), places);
  EXPECT_GT(places.size(), 10u);
  const auto try_params = [&](const json& changed, const std::string& what) {
    SCOPED_TRACE(what);
    file.metadata["params"] = changed.dump();
    file.write(folder / "changed");
    EXPECT_NO_THROW(use(folder / "changed", folder / "out"));
    EXPECT_NO_THROW(prepare_again(folder / "changed"));
  };
  for (const auto& place : places) {
    for (const json& value : wrong_values()) {
      json changed = params;
      changed[place] = value;
      try_params(changed, place.to_string() + " = " + value.dump());
    }
    if (place.back().find_first_not_of("0123456789") == std::string::npos) continue;
    json changed = params;
    changed[place.parent_pointer()].erase(place.back());
    try_params(changed, place.to_string() + " absent");
  }
}

TEST(PreparedFile, AnswersHostileMetadataWithOneLine) {
  const TempFolder folder;
  const std::string prepared = (folder / "prepared").string();
  expect_done("layout apply " + kNvfp4 + " -q --tp 1/2 --backend " + kTrtllm + " -o " + prepared);
  expect_survives_mutations(prepared, folder);
  expect_done("layout apply " + kModels + "deepseek_v3_fp8_h256_i128_e8 -q --ep 1/4 --backend " +
              "reference -o " + prepared);
  expect_survives_mutations(prepared, folder);
  const std::string undone = (folder / "undone").string();
  expect_done("layout undo " + prepared + " -q -o " + undone);
  expect_survives_mutations(undone, folder);
}

TEST(PreparedFile, AnswersHostileStepsWithOneLine) {
  const TempFolder folder;
  const std::string prepared = (folder / "prepared").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend reference -o " + (folder / "in").string());
  expect_done("layout apply " + (folder / "in").string() +
              " w13 -q --bits 4 --order gate_up --steps \"pad_halves(64) shuffle_rows(128)\" -o " +
              prepared);
  expect_survives_mutations(prepared, folder);
  EditableFile file(prepared);
  for (const char* steps :
       {"repeat_rows(1048576) repeat_rows(1048576)", "pad_cols(1048576) pad_rows(1048576)", "(",
        ")", "shuffle_rows(0)", "pad_halves(99999999999999999999)", "block_major_k(1048575)", ""}) {
    file.edit_json("params", [&](json& params) { params["steps"] = steps; });
    file.write(folder / "changed");
    EXPECT_NO_THROW(use(folder / "changed", folder / "out")) << steps;
  }
}

TEST(PreparedFile, RefusesTensorsThatAreNotTheMetadatas) {
  const TempFolder folder;
  const std::string prepared = (folder / "prepared").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " -o " + prepared);
  const std::string changed = (folder / "changed").string();
  const std::string undo = "layout undo " + changed + " -o " + (folder / "out").string();
  EditableFile file(prepared);
  file["w13"].shape = {8, 128, 128};
  file["w13"].dtype = DType::i8;
  file.write(changed);
  expect_refused(undo, {"changed: w13", "I8"});
  file = EditableFile(prepared);
  file.tensors.erase("w2");
  file.write(changed);
  expect_refused(undo, {"w2"});
  file = EditableFile(prepared);
  file["w2"].shape = {4, 128, 64};
  file["w2"].bytes.resize(4 * 128 * 64);
  file.write(changed);
  expect_refused(undo, {"changed: w2", "[4, 128, 64]", "[8, 128, 64]"});
  file.metadata["params"] = "{";
  file.write(changed);
  expect_refused(undo, {"JSON"});
  file.metadata.clear();
  file.write(changed);
  expect_refused(undo, {"prepared"});
  EXPECT_FALSE(fs::exists(folder / "out"));
}

// ---------------------------------------------------------------- audit, golden, backends

TEST(LayoutAudit, ExitsWithOneIfTheFunctionDoesNotSurvive) {
  const json kept =
      json_of("layout audit " + kTrtllm + " --shape experts=2,hidden=128,intermediate=96");
  EXPECT_TRUE(kept["survives"].get<bool>());
  const json broken = json_of("layout audit " + kTrtllm +
                                  " --shape experts=2,hidden=128,intermediate=96 --option "
                                  "pad=whole_upstream --option loader=unpadded "
                                  "--option align=64",
                              1);
  EXPECT_FALSE(broken["survives"].get<bool>());
  EXPECT_GT(broken["differing"], 0);
  EXPECT_NE(broken["first_difference"], "");
  EXPECT_TRUE(json_of("layout audit " + kTrtllm + " " + kNvfp4)["survives"].get<bool>());
  expect_refused("layout audit nope", {"nope"});
  expect_refused("layout audit " + kTrtllm + " --shape format=int3", {"int3"});
  expect_refused("layout audit " + kTrtllm + " --tp 0/2", {"--tp", "--shape"});
}

TEST(LayoutAudit, FindsTheSmallestShapeThatAVariantBreaks) {
  const json report = json_of(
      "layout audit " + kTrtllm + " --option pad=whole_upstream loader=unpadded align=64", 1);
  EXPECT_FALSE(report["broken"].empty());
  ASSERT_EQ(report["variants"].size(), 1u);
  const json& variant = report["variants"].begin().value();
  EXPECT_FALSE(variant["survives"].get<bool>());
  EXPECT_NE(variant["shape"].get<std::string>().find("gated=true"), std::string::npos);
  EXPECT_GT(variant["smallest_broken"]["differing"], 0);
}

TEST(Golden, WritesTheWeightsOfABackend) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  const json report = json_of("golden " + kNvfp4 + " --tokens 1 --weights --backend reference," +
                              kTrtllm + " -o " + out);
  ASSERT_EQ(report.size(), 2u);
  EXPECT_EQ(report[0]["final_sha256"], report[1]["final_sha256"]);
  EXPECT_EQ(report[1]["params"]["numerics"], "reference");
  const std::string prepared = (folder / "prepared").string();
  expect_done("layout apply " + kNvfp4 + " -q --backend " + kTrtllm + " -o " + prepared);
  const auto golden = tensors_of(report[1]["file"].get<std::string>());
  for (const auto& [name, bytes] : tensors_of(prepared)) {
    EXPECT_TRUE(golden.at("weights." + name) == bytes) << name;
  }
  const std::string undone = (folder / "undone").string();
  expect_done("layout undo " + report[1]["file"].get<std::string>() + " -q -o " + undone);
  const auto logical = tensors_of(report[0]["file"].get<std::string>());
  EXPECT_TRUE(tensors_of(undone).at("w13") == logical.at("weights.w13"));
  expect_done("layout apply " + report[0]["file"].get<std::string>() + " -q --backend " + kTrtllm +
              " -o " + undone);
  EXPECT_TRUE(tensors_of(undone) == tensors_of(prepared));
  expect_refused("golden " + kGptOss + " --tokens 1 --backend " + kTrtllm + " -o " + out,
                 {"nvfp4"});
  const json all = json_of("golden " + kNvfp4 + " --tokens 1 --weights --backend '*' -o " + out);
  EXPECT_GE(all.size(), 2u);
}

TEST(Backends, AreListed) {
  const json report = json_of("backends");
  EXPECT_EQ(report["backends"][0]["name"], "reference");
}

}  // namespace
}  // namespace moeref
