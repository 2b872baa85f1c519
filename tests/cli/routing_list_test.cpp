// What moeref routing tells.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "engine/routing_kernels.hpp"
#include "tests/cli/layout_command.hpp"

namespace moeref {
namespace {

using namespace testing;

/// Words of a report, one space between them; every line fits.
std::string told(const std::string& command) {
  const Outcome outcome = moeref_with(command);
  EXPECT_EQ(outcome.code, 0) << command << "\n" << outcome.error;
  std::istringstream lines(outcome.out);
  std::string all;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 120u) << line;
    std::istringstream words(line);
    for (std::string word; words >> word;) all += word + " ";
  }
  return all;
}

TEST(RoutingList, TellsEveryKernel) {
  const std::string list = told("routing");
  const json report = json_of("routing");
  const auto kernels = all_routing_kernels();
  ASSERT_EQ(report.size(), kernels.size());
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    const RoutingKernel& kernel = kernels[i];
    const std::string head = std::string(kernel.name) + " " + std::string(kernel.summary);
    EXPECT_NE(list.find(head), std::string::npos) << head;
    EXPECT_EQ(report[i]["name"], kernel.name);
    EXPECT_EQ(report[i]["evidence"], kernel.evidence);
    EXPECT_EQ(report[i]["rules"].size(), kernel.rules.size());
    EXPECT_EQ(report[i]["levels"].size(), kernel.replays.size() + 1);
    for (const RoutingRule& rule : kernel.rules) {
      EXPECT_NE(list.find(to_string(rule)), std::string::npos) << to_string(rule);
    }
  }
}

TEST(RoutingList, ExplainsOneKernel) {
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    const std::string text = told("routing " + std::string(kernel.name));
    for (const std::string_view part :
         {kernel.summary, kernel.source, kernel.open, kernel.replay_evidence}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    }
    EXPECT_EQ(json_of("routing " + std::string(kernel.name))["source"], kernel.source);
  }
  const std::string trap = told("routing sgl_topk_sigmoid");
  EXPECT_NE(trap.find("weights choice - bias; if the layer asks w * (1 / D), D = S; order of S: "
                      "serial"),
            std::string::npos)
      << trap;
  const std::string gate = told("routing sgl_moe_fused_gate");
  EXPECT_NE(gate.find("the worst leaves first, the last of equals"), std::string::npos) << gate;
  expect_refused("routing sgl_topk_sigmod", {"is no routing kernel", "sgl_topk_sigmoid"});
}

}  // namespace
}  // namespace moeref
