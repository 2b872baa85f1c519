// Whatever is wrong with the files of a checkpoint is told in one line that names the file, the
// tensor, what it has and what is needed.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"
#include "tests/io/checkpoint_faults.hpp"
#include "tests/support/error_of.hpp"

namespace moeref::testing {
namespace {

using nlohmann::json;

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    build_qwen3(builder, Storage::bf16, kSmall);
    builder.write(2);
  }
  void write_index(const json& weight_map) {
    write_bytes(builder.folder / "model.safetensors.index.json",
                json{{"weight_map", weight_map}}.dump());
  }
  json weight_map() const {
    return json::parse(read_bytes(builder.folder / "model.safetensors.index.json"))
        .at("weight_map");
  }
  /// Some tensor that lies there.
  std::string tensor_in(const std::string& wanted) const {
    const json map = weight_map();
    for (const auto& [name, file] : map.items()) {
      if (file == wanted) return name;
    }
    return "none";
  }
  std::string open_message() {
    return error_of([&] { builder.open(); });
  }
  CheckpointBuilder builder;
};

TEST_F(Files, MissingShardIsNamedWithWhatItHolds) {
  std::filesystem::remove(builder.folder / "model-00002-of-00002.safetensors");
  expect_says(open_message(),
              {"model-00002-of-00002.safetensors", "shard is missing", "tensors are in it"});
  std::filesystem::remove(builder.folder / "model.safetensors.index.json");
  expect_says(open_message(), {"shard 2 of 2 is missing"});
}

TEST_F(Files, TensorThatOnlyTheIndexKnowsIsNamed) {
  json map = weight_map();
  map["model.extra.weight"] = "model-00001-of-00002.safetensors";
  write_index(map);
  expect_says(open_message(),
              {"model-00001-of-00002.safetensors", "has no tensor model.extra.weight"});
}

TEST_F(Files, TensorInAnotherFileThanTheIndexSaysIsNamed) {
  json map = weight_map();
  const std::string name = tensor_in("model-00002-of-00002.safetensors");
  map[name] = "model-00001-of-00002.safetensors";
  write_index(map);
  expect_says(open_message(), {"model-00001-of-00002.safetensors: has no tensor " + name,
                               "it is in model-00002-of-00002.safetensors"});
}

TEST_F(Files, TensorInTwoFilesIsNamed) {
  const std::string name = tensor_in("model-00002-of-00002.safetensors");
  std::vector<TensorView> views{builder.tensors.at(name).view()};
  const json map = weight_map();
  for (const auto& [key, file] : map.items()) {
    if (file == "model-00001-of-00002.safetensors") views.push_back(builder.tensors.at(key).view());
  }
  write_safetensors(builder.folder / "model-00001-of-00002.safetensors", views, {});
  expect_says(open_message(), {"model-00001-of-00002.safetensors: " + name, "also in model-00002"});
}

TEST_F(Files, TensorListedTwiceIsNamed) {
  write_bytes(
      builder.folder / "model.safetensors.index.json",
      R"({"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "a": "y.safetensors"}})");
  expect_says(open_message(), {"model.safetensors.index.json", "tensor a is in two files"});
}

TEST_F(Files, FileNamesThatLeaveTheFolderAreRefused) {
  for (const char* name :
       {"../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\x.safetensors",
        "C:x.safetensors", "model.bin", ".safetensors", "", "a\nb/../c.safetensors"}) {
    json map = weight_map();
    map["model.layers.0.mlp.gate.weight"] = name;
    write_index(map);
    expect_says(open_message(), {"model.safetensors.index.json", "model.layers.0.mlp.gate.weight",
                                 "plain name of a .safetensors file"});
  }
}

TEST_F(Files, IndexOfAnotherFormIsRefused) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"([])", "needs a JSON object"},
      {R"({})", "has no object \"weight_map\""},
      {R"({"weight_map": []})", "has no object \"weight_map\""},
      {R"({"weight_map": {}})", "weight_map is empty"},
      {R"({"weight_map": {"a": 3}})", "tensor a has a number"},
      {R"({"weight_map": {"a": {"b": "c"}}})", "tensor a has an object"},
      {R"({"weight_map": {"a": ["b"]}})", "tensor a has a list"},
      {R"({"weight_map": {"a")", "not valid JSON"},
      {"", "not valid JSON"},
      {"{\"x\": " + std::string(100000, '[') + std::string(100000, ']') + "}", "nested deeper"},
      {"{\"x\": " + std::string(100000, '['), "nested deeper"},
  };
  for (const auto& [text, says] : cases) {
    write_bytes(builder.folder / "model.safetensors.index.json", text);
    expect_says(open_message(), {"model.safetensors.index.json", says});
  }
}

TEST_F(Files, MalformedConfigIsToldWithLineAndColumn) {
  write_bytes(builder.folder / "config.json", "{\n  \"model_type\": \"qwen3_moe\",\n  \"x\": }\n");
  expect_says(open_message(), {"config.json", "not valid JSON", "line 3, column 8"});
}

TEST_F(Files, HostileConfigIsRefused) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "not valid JSON"},
      {"[]", "needs a JSON object"},
      {"{\"a\": \xFF}", "not valid JSON"},
      {"{\"a\": \"\xC3\"}", "not valid JSON"},
      {"{\"a\": 1e999}", "not valid JSON"},
      {"{\"a\": 1, \"a\": 2}", "stands twice"},
      {"{\"a\": " + std::string(200000, '{'), "not valid JSON"},
      {"{\"a\": " + std::string(200000, '['), "nested deeper"},
      {std::string("{\"a\": 1}\0\0", 10), "not valid JSON"},
  };
  for (const auto& [text, says] : cases) {
    write_bytes(builder.folder / "config.json", text);
    expect_says(open_message(), {"config.json", says});
  }
  std::filesystem::resize_file(builder.folder / "config.json", std::uintmax_t{1} << 32);
  expect_says(open_message(), {"config.json", "4294967296 bytes", "more than"});
}

TEST_F(Files, MissingFilesAreNamed) {
  std::filesystem::remove(builder.folder / "config.json");
  expect_says(open_message(), {"config.json", "no such file"});
  expect_says(error_of([&] { Checkpoint::open(builder.folder / "nowhere"); }),
              {"nowhere", "no such folder"});
  expect_says(error_of([&] { Checkpoint::open(builder.folder / "model.safetensors.index.txt"); }),
              {"model.safetensors.index.txt", "no such folder"});
  write_bytes(builder.folder / "notes.txt", "");
  expect_says(error_of([&] { Checkpoint::open(builder.folder / "notes.txt"); }),
              {"notes.txt", "name the folder"});
}

TEST(EmptyFolder, SaysWhatIsNeeded) {
  TempFolder folder;
  write_bytes(folder / "config.json", R"({"model_type": "gpt_oss", "num_hidden_layers": 2})");
  expect_says(error_of([&] { Checkpoint::open(folder.path()); }),
              {"0 safetensors files", "model.safetensors", "model.safetensors.index.json"});
}

// ---- nothing hostile crashes

/// Damages a copy of the text files at random; whatever happens is an Error or a layer.
TEST(RandomDamage, GivesAnErrorOrALayerAndNothingElse) {
  CheckpointBuilder builder;
  build_deepseek_v4(builder, Storage::nvfp4, Storage::fp8_block_v4, {32, 32, 4, 2, 1}, 32);
  builder.write(2);
  std::mt19937 random(20240611);
  int refused = 0;
  for (const char* name :
       {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}) {
    const std::string sound = read_bytes(builder.folder / name);
    for (int round = 0; round < 400; ++round) {
      std::string text = sound;
      const std::size_t edits = 1 + random() % 3;
      for (std::size_t i = 0; i < edits; ++i) {
        const std::size_t at = random() % std::min<std::size_t>(text.size(), 6000);
        constexpr std::string_view kBytes = "0123456789-eE\"{}[],:.ntf\\/ \x00\xFF";
        switch (random() % 3) {
          case 0:
            text[at] = kBytes[random() % kBytes.size()];
            break;
          case 1:
            text.erase(at, 1 + random() % 4);
            break;
          default:
            text.insert(at, text.substr(random() % text.size(), random() % 8));
        }
      }
      write_bytes(builder.folder / name, text);
      try {
        builder.open().load_layer(0);
      } catch (const Error& error) {
        ++refused;
        EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos)
            << error.what();
      }
    }
    write_bytes(builder.folder / name, sound);
  }
  EXPECT_GT(refused, 300);
  EXPECT_EQ(builder.open().load_layer(0).expert_count(), 4);
}

}  // namespace
}  // namespace moeref::testing
