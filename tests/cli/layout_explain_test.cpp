// moeref layout explain as a user runs it: bytes of prepared files and places of elements.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/cli/layout_command.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using namespace testing;

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
  EXPECT_EQ(global["projection"], "up");
  EXPECT_EQ(json_of("layout explain " + file + " w13_scale_2 --find \"expert=1 up\"")["index"], 3);
  EXPECT_EQ(json_of("layout explain " + file + " w13_scale_2 --find \"expert=1 gate\"")["index"],
            2);
  expect_refused("layout explain " + file + " w13_scale_2 --find expert=1", {"gate or up"});
  const json shaped = json_of(
      "layout explain w13_scale_2 --backend reference --shape "
      "experts=4,hidden=64,intermediate=64,format=nvfp4 --at 1");
  EXPECT_EQ(shaped["expert"], 0);
  EXPECT_EQ(shaped["projection"], "up");
  const std::string rows =
      "layout explain w13_scale1 --backend aiter_fp8_tensor --shape "
      "experts=2,hidden=64,intermediate=128,format=fp8_tensor ";
  const json row = json_of(rows + "--at 300");
  EXPECT_EQ(row["expert"], 1);
  EXPECT_EQ(row["row"], 44);
  EXPECT_EQ(json_of(rows + "--find \"expert=1 row=44\"")["index"], 300);
  expect_refused(rows + "--find expert=1", {"row="});
  expect_refused(rows + "--find \"expert=1 row=256\"", {"256"});
  expect_refused(rows + "--at 512", {"512"});
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
  expect_refused(find + "\"expert=0 gate row=0 row=1 col=0\"", {"row", "twice"});
  expect_refused(find + "\"expert=0 gate up row=0 col=0\"", {"gate", "up"});
  expect_refused("layout explain w13 --backend reference --shape experts=2,experts=3 --at 0",
                 {"experts", "twice"});
  expect_refused("layout explain " + file + " --find \"expert=0 row=0 col=0\"",
                 {"gate, up or down"});
  expect_refused("layout explain w13 --backend " + kTrtllm + " --shape hidden=100 --at 0",
                 {"hidden"});
  expect_refused("layout explain w13 --backend " + kTrtllm + " --shape width=100 --at 0",
                 {"width"});
  expect_refused("layout explain " + kGptOss + "/model.safetensors w13 --at 0", {"prepared"});
}

}  // namespace
}  // namespace moeref
