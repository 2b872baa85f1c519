// Prepared files with hostile metadata, or with tensors that contradict it.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/layout_source.hpp"
#include "cli/layout_undoing.hpp"
#include "cli/prepared_file.hpp"
#include "layout/explain.hpp"
#include "quant/error.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using namespace testing;

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

}  // namespace
}  // namespace moeref
