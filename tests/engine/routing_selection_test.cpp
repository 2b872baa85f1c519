// selection_fault: which experts may come out where ties are open.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <random>
#include <string>
#include <vector>

#include "engine/routing_kernels.hpp"
#include "tests/engine/routing_fixtures.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

Routing routing_of(RoutingMethod method, std::int64_t top_k, std::int64_t groups,
                   std::int64_t kept) {
  Routing routing = make(method, top_k);
  routing.groups = groups;
  routing.kept_groups = kept;
  return routing;
}

/// Whether some set of best groups makes `chosen` (a bit for each expert) a set of best experts.
bool may_come_out(const std::vector<float>& values, const Routing& routing, bool largest,
                  bool zero_fill, unsigned chosen) {
  const auto groups = static_cast<unsigned>(routing.groups);
  const std::size_t width = values.size() / groups;
  std::vector<float> scores;
  for (unsigned g = 0; g < groups; ++g) {
    std::vector<float> group(values.begin() + static_cast<std::ptrdiff_t>(g * width),
                             values.begin() + static_cast<std::ptrdiff_t>((g + 1) * width));
    std::sort(group.begin(), group.end(), std::greater<>());
    scores.push_back(largest ? group[0] : group[0] + group[1]);
  }
  for (unsigned kept = 0; kept < 1u << groups; ++kept) {
    if (std::popcount(kept) != static_cast<int>(routing.kept_groups)) continue;
    bool best = true;
    for (unsigned in = 0; in < groups; ++in) {
      for (unsigned out = 0; out < groups; ++out) {
        if ((kept >> in & 1) != 0 && (kept >> out & 1) == 0 && scores[out] > scores[in])
          best = false;
      }
    }
    if (!best) continue;
    float worst_in = kInfinity;
    float best_out = -kInfinity;
    for (std::size_t e = 0; e < values.size(); ++e) {
      const bool stays = (kept >> (e / width) & 1) != 0;
      const float value = stays ? values[e] : zero_fill ? 0.0f : -kInfinity;
      if ((chosen >> e & 1) != 0) {
        worst_in = std::min(worst_in, value);
      } else {
        best_out = std::max(best_out, value);
      }
    }
    if (worst_in >= best_out && worst_in > -kInfinity) return true;
  }
  return false;
}

TEST(SelectionFault, KnowsEveryChoiceThatTiesAllow) {
  constexpr std::size_t kExperts = 12;
  std::mt19937 bits(3);
  std::size_t allowed = 0;
  std::size_t refused = 0;
  for (int round = 0; round < 60; ++round) {
    const bool zero_fill = round % 2 == 0;
    const RoutingKernel& kernel =
        find_routing_kernel(zero_fill ? "sglang_grouped_topk" : "sglang_biased_grouped_topk");
    const std::int64_t groups = round % 3 == 0 ? 4 : 3;
    const Routing routing =
        routing_of(zero_fill ? RoutingMethod::softmax_topk : RoutingMethod::deepseek_v3, 3, groups,
                   1 + round / 3 % (groups - 1));
    // Few different values; in a softmax -200 gives the score 0.
    Floats logits;
    for (std::size_t e = 0; e < kExperts; ++e) {
      constexpr float kValues[] = {0.0f, 1.0f, -200.0f};
      logits.push_back(kValues[bits() % (round % 5 == 0 ? 3 : 2)]);
    }
    if (zero_fill && round % 4 == 0) {
      std::fill(logits.begin(), logits.begin() + 9, -200.0f);
      logits[static_cast<std::size_t>(bits() % 9)] = 0.0f;
    }
    // One slot each gives the scores.
    Routing all = routing;
    all.top_k = kExperts;
    all.kept_groups = groups;
    all.renormalize = false;
    const Route scored = route_logits_as(kernel, all, logits, kExperts, {});
    std::vector<float> values(kExperts);
    for (std::size_t i = 0; i < kExperts; ++i) {
      values[static_cast<std::size_t>(scored.ids[i])] = scored.weights[i];
    }
    for (unsigned chosen = 0; chosen < 1u << kExperts; ++chosen) {
      if (std::popcount(chosen) != 3) continue;
      Ids ids;
      for (std::size_t e = 0; e < kExperts; ++e) {
        if ((chosen >> e & 1) != 0) ids.push_back(static_cast<std::int32_t>(e));
      }
      std::rotate(ids.begin(), ids.begin() + round % 3, ids.end());  // any order of slots
      Routing weighed = routing;
      weighed.renormalize = false;  // sums of 0 are no question of the selection
      const auto fault = selection_fault(kernel, weighed, logits, {}, ids);
      const bool may = may_come_out(values, routing, zero_fill, zero_fill, chosen);
      ASSERT_EQ(may, !fault) << kernel.name << " round " << round << " experts " << chosen << ": "
                             << fault.value_or("allowed");
      ++(may ? allowed : refused);
    }
  }
  EXPECT_GT(allowed, 500u);
  EXPECT_GT(refused, 5000u);
}

TEST(SelectionFault, AcceptsWhatEveryKernelChooses) {
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (!kernel.selects) continue;
    for (const std::int64_t groups : {1, 8}) {
      for (const bool renormalize : {true, false}) {
        Routing routing = routing_of(kernel.methods.front(), kernel.lanes_first ? 1 : 8, groups,
                                     groups == 1 ? 1 : 3);
        routing.renormalize = renormalize;
        for (std::uint64_t seed = 0; seed < 5; ++seed) {
          const Floats logits = grid_logits(1, 256, seed);
          Route route;
          try {
            route = route_logits_as(kernel, routing, logits, 256, {});
          } catch (const Error&) {
            break;
          }
          EXPECT_EQ(selection_fault(kernel, routing, logits, {}, route.ids), std::nullopt)
              << kernel.name;
          Ids wrong = route.ids;
          const auto worst = std::min_element(logits.begin(), logits.end()) - logits.begin();
          wrong.back() = static_cast<std::int32_t>(worst);
          EXPECT_TRUE(selection_fault(kernel, routing, logits, {}, wrong)) << kernel.name;
        }
      }
    }
  }
}

TEST(SelectionFault, HoldsKernelsToTheirTieRule) {
  const Floats equal(128, 1.0f);
  const Routing routing = routing_of(RoutingMethod::topk_softmax, 2, 1, 1);
  const auto fault = [&](std::string_view kernel, const Ids& ids) {
    return selection_fault(find_routing_kernel(kernel), routing, equal, {}, ids)
        .value_or("may come out");
  };
  EXPECT_EQ(fault("sgl_topk_softmax", {0, 1}), "may come out");
  EXPECT_EQ(fault("sgl_topk_softmax", {0, 2}), "slot 1 has expert 2, needs 1");
  EXPECT_EQ(fault("sgl_topk_softmax", {1, 0}), "slot 0 has expert 1, needs 0");
  EXPECT_EQ(fault("sglang_raw_logits_topk", {77, 3}), "may come out");
  EXPECT_EQ(fault("sglang_raw_logits_topk", {77, 77}), "expert 77 is named twice");
  EXPECT_EQ(fault("sglang_raw_logits_topk", {77, 128}), "id 128 is not in [0, 128)");
  EXPECT_EQ(fault("sglang_raw_logits_topk", {77}), "1 ids, top_k is 2");
}

TEST(SelectionFault, TellsWhatIsWrong) {
  const RoutingKernel& torch = find_routing_kernel("sglang_biased_grouped_topk");
  const Routing routing = routing_of(RoutingMethod::deepseek_v3, 2, 4, 2);
  // Groups of two: sums 1, 1, 0.5 and 0.5 of scores (0.5, 0.5), (0.5, 0.5), (0.5, 0), (0.5, 0).
  const Floats logits{0, 0, 0, 0, 0, -200, 0, -200};
  const auto fault = [&](const Ids& ids) {
    return selection_fault(torch, routing, logits, {}, ids).value_or("may come out");
  };
  EXPECT_EQ(fault({3, 0}), "may come out");
  EXPECT_EQ(fault({0, 4}),
            "expert 4 lies in group 2 with the score 0.5, which cannot stay: 2 have more");
  const RoutingKernel& general = find_routing_kernel("sgl_topk_softmax_general");
  const Routing softmax = routing_of(RoutingMethod::topk_softmax, 2, 1, 1);
  const Floats three{1.0f, 2.0f, 2.0f, 0.0f, 2.0f, 1.0f};
  const auto general_fault = [&](const Ids& ids) {
    return selection_fault(general, softmax, three, {}, ids).value_or("may come out");
  };
  EXPECT_EQ(general_fault({4, 1}), "may come out");
  EXPECT_TRUE(starts_with(general_fault({4, 0}), "expert 1 with the choice value 0."));
  // Its slots fall by value, which torch leaves open.
  const Floats falling{1.0f, 2.0f, 3.0f, 0.0f, -1.0f, 0.5f};
  EXPECT_EQ(selection_fault(general, softmax, falling, {}, Ids{1, 2}),
            "slot 1 (expert 2) belongs before slot 0");
  EXPECT_EQ(selection_fault(find_routing_kernel("sglang_raw_logits_topk"), softmax, falling, {},
                            Ids{1, 2}),
            std::nullopt);
}

}  // namespace
}  // namespace moeref
