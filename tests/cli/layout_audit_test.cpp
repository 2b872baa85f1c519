// moeref layout audit, golden --weights and backends as a user runs them.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tests/cli/layout_command.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using namespace testing;

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

TEST(LayoutAudit, FindsAnActivationThatTheKernelLacks) {
  expect_refused("layout audit flashinfer_cutedsl_v2 --shape limit=0.5", {"limit", "0.5"});
  const json dropped = json_of(
      "layout audit flashinfer_cutedsl_v2 --shape limit=0.5 --option swiglu=dropped_upstream", 1);
  EXPECT_NE(dropped["first_difference"].get<std::string>().find("activation"), std::string::npos);
  const json report = json_of("layout audit flashinfer_cutedsl_v2");
  EXPECT_FALSE(report["variants"]["swiglu=dropped_upstream"]["survives"].get<bool>());
  EXPECT_NE(
      report["variants"]["swiglu=dropped_upstream"]["shape"].get<std::string>().find("limit="),
      std::string::npos);
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

TEST(Golden, NamesFilesByTheOptionsOfTheBackend) {
  const TempFolder folder;
  const std::string golden = "golden " + kGptOss +
                             " --tokens 1 --weights --backend marlin_mxfp4 -o " +
                             (folder / "out").string();
  std::set<std::string> files;
  for (const char* option : {"", " --option pad=none", " --option scales=v1"}) {
    files.insert(json_of(golden + option)[0]["file"].get<std::string>());
  }
  EXPECT_EQ(files.size(), 3u);
  for (const std::string& file : files) EXPECT_TRUE(std::filesystem::exists(file)) << file;
  expect_refused("golden " + kGptOss + " --backend '*' --option a=b -o " + (folder / "x").string(),
                 {"--option", "a=b"});
  expect_refused("golden " + kGptOss + " --backend reference,marlin_mxfp4 --option pad=none -o " +
                     (folder / "x").string(),
                 {"reference", "pad=none"});
  EXPECT_EQ(json_of("golden " + kGptOss + " --tokens 1 --backend reference,reference -o " +
                    (folder / "x").string())
                .size(),
            1u);
  expect_refused("run " + kGptOss + " --backend reference,triton_bf16", {"--backend", "2"});
}

TEST(Backends, AreListed) {
  const json report = json_of("backends");
  EXPECT_EQ(report["backends"][0]["name"], "reference");
}

}  // namespace
}  // namespace moeref
