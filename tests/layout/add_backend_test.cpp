// A whole backend in one file, as README.md shows it, and what a user does with it. The same code
// as layout/backends/example_bf16.cpp and its line in layout/backends.inc put it into `moeref
// layout list` and everything else. It stands first: it needs no includes but its own.

// A name of its own, so that the library may have the example, too.
#define example_bf16 example_bf16_of_the_test

// README: begin
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"

namespace moeref::backends {

static Recipe example_recipe(const LayerShape& shape, const Options&) {
  refuse_biases(shape, "example_bf16");
  const std::int64_t padded = round_up(shape.stride, 64);
  const Steps shuffle{ShuffleRows{128}};
  const Steps w13{SwapHalves{}, PadHalves{.to = padded}};
  const Steps w2{PadCols{.to = padded}};
  return {.tensors = {tensor("w13", Slot::w13, w13, shuffle), tensor("w2", Slot::w2, w2, shuffle)},
          .kernel = {.order = up_first(shape), .intermediate = padded, .hidden = shape.hidden}};
}

extern const Backend example_bf16{
    .name = "example_bf16",
    .family = "Example",
    .summary = "bf16 weights, up before gate, rows shuffled",
    .formats = {"bf16"},
    .rules = {{"hidden", 32, "", "the shuffle moves rows inside blocks of 32"}},
    .recipe = example_recipe,
    .numerics = [](const NumericsRequest&) { return bf16_stages(); },
    .replay = {ReplayEvidence::none, "nobody has measured it"},
};

}  // namespace moeref::backends
// README: end

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/audit.hpp"
#include "layout/sample_layer.hpp"
#include "quant/error.hpp"
#include "tests/layout/backend_properties.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = fs::path(MOEREF_DATA_DIR).parent_path();

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

/// What the group of `pattern` matches in the text, in order.
std::vector<std::string> found_in(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::vector<std::string> found;
  for (std::sregex_iterator match(text.begin(), text.end(), regex), end; match != end; ++match) {
    found.push_back((*match)[1]);
  }
  return found;
}

/// Between two marks.
std::string part_of(const std::string& text, const std::string& begin, const std::string& end) {
  const std::size_t from = text.find(begin);
  const std::size_t to = from == std::string::npos ? from : text.find(end, from + begin.size());
  if (to == std::string::npos) return {};
  return text.substr(from + begin.size(), to - from - begin.size());
}

TEST(AddBackend, IsOneFileAndOneLine) {
  const std::vector<std::string> lines =
      found_in(text_of(kRoot / "layout/backends.inc"), R"(MOEREF_BACKEND\((\w+)\)\n)");
  std::vector<std::string> defined;
  for (const auto& entry : fs::directory_iterator(kRoot / "layout/backends")) {
    const fs::path& file = entry.path();
    if (file.extension() != ".cpp") continue;
    for (const std::string& name : found_in(text_of(file), R"(\bconst Backend (\w+)\{)")) {
      EXPECT_EQ(name, file.stem()) << file;
      defined.push_back(name);
    }
  }
  EXPECT_THAT(defined, ::testing::UnorderedElementsAreArray(lines));
  std::vector<std::string_view> listed;
  for (const Backend* backend : all_backends()) listed.push_back(backend->name);
  EXPECT_THAT(listed, ::testing::ElementsAreArray(lines));
}

TEST(AddBackend, IsWhatTheReadmeShows) {
  const std::string here = part_of(text_of(kRoot / "tests/layout/add_backend_test.cpp"),
                                   "README: begin\n", "// README: end");
  const std::string shown = part_of(text_of(kRoot / "README.md"),
                                    "`layout/backends/example_bf16.cpp`:\n\n```cpp\n", "```");
  EXPECT_FALSE(here.empty());
  EXPECT_EQ(shown, here);
}

TEST(AddBackend, PreparesTheTensorsOfALayer) {
  const MoeLayer layer = sample_layer({.intermediate = 96, .weight_format = "bf16"});
  const Backend& backend = backends::example_bf16;
  const PreparedLayer prepared = plan_layer(backend, parse_options(backend, {}), layer, Shard{});
  ASSERT_EQ(prepared.tensors.size(), 2u);
  EXPECT_EQ(prepared.tensors[0].shape, (Shape{2, 256, 256}));
  EXPECT_EQ(prepared.tensors[1].shape, (Shape{2, 256, 128}));

  const Tensor w13 = make(prepared.tensors[0], 1);
  // The first row of the shuffle stays; the first half is up.
  const std::byte* up = layer.experts[0].up.codes.data;
  EXPECT_TRUE(std::equal(up, up + 256 * 2, w13.bytes.begin()));
}

TEST(AddBackend, KeepsTheFunctionOfTheLayer) {
  const Backend& backend = backends::example_bf16;
  for (const bool gated : {true, false}) {
    const MoeLayer layer =
        sample_layer({.intermediate = 96, .gated = gated, .weight_format = "bf16"});
    for (std::int64_t rank = 0; rank < 2; ++rank) {
      const AuditReport report =
          audit(backend, parse_options(backend, {}), layer, {.tp_rank = rank, .tp_size = 2}, 1);
      EXPECT_TRUE(report.survives) << report.first_difference;
      EXPECT_GT(report.outputs, 0);
    }
  }
}

TEST(AddBackend, HasThePropertiesOfEveryBackend) {
  const Backend& backend = backends::example_bf16;
  const testing::ZooResult result = testing::walk_zoo(
      backend, {}, testing::layout_zoo(backend.formats, testing::ZooSize::usual), true);
  EXPECT_EQ(result.fault, "");
  EXPECT_EQ(result.breakage, "");
  EXPECT_GE(result.accepted, 10) << "rejected " << result.rejected;
}

TEST(AddBackend, SaysWhichRuleALayerBreaks) {
  const MoeLayer layer = sample_layer({.hidden = 72, .weight_format = "bf16"});
  const Backend& backend = backends::example_bf16;
  try {
    plan_layer(backend, parse_options(backend, {}), layer, Shard{});
    FAIL() << "hidden 72 is accepted";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "example_bf16: hidden is 72, it must be a multiple of 32: the shuffle moves rows "
              "inside blocks of 32");
  }
}

}  // namespace
}  // namespace moeref
