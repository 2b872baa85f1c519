// What must not show in a routing: the other tokens, their order, threads, the rounding mode.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "tests/engine/routing_fixtures.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

TEST(RouteLogits, PermutingTokensPermutesResults) {
  constexpr std::int64_t kTokens = 97;
  const Floats logits = grid_logits(kTokens, 16, 11);
  std::vector<std::size_t> order(kTokens);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937_64(3));
  Floats permuted;
  for (const std::size_t token : order) {
    permuted.insert(permuted.end(), &logits[token * 16], &logits[token * 16] + 16);
  }
  for (const RoutingMethod method : kAllMethods) {
    const Routing routing = full_routing(method);
    const Route route = route_logits(routing, logits, 16, full_bias(method));
    const Route after = route_logits(routing, permuted, 16, full_bias(method));
    for (std::size_t i = 0; i < order.size(); ++i) {
      for (std::size_t slot = 0; slot < 4; ++slot) {
        EXPECT_EQ(after.ids[i * 4 + slot], route.ids[order[i] * 4 + slot]);
        EXPECT_EQ(std::bit_cast<std::uint32_t>(after.weights[i * 4 + slot]),
                  std::bit_cast<std::uint32_t>(route.weights[order[i] * 4 + slot]));
      }
    }
  }
}

TEST(RouteLogits, AnotherTokenChangesNothingElse) {
  const Floats logits = grid_logits(50, 16, 12);
  for (const RoutingMethod method : kAllMethods) {
    const Routing routing = full_routing(method);
    const Route whole = route_logits(routing, logits, 16, full_bias(method));
    Route cut = whole;
    cut.tokens = 49;
    cut.ids.resize(49 * 4);
    cut.weights.resize(49 * 4);
    const std::span<const float> fewer = std::span<const float>(logits).first(49 * 16);
    EXPECT_TRUE(same_bytes(cut, route_logits(routing, fewer, 16, full_bias(method))));
  }
}

TEST(RouteLogits, ThreadsDoNotShowInTheBytes) {
  const Floats logits = grid_logits(301, 16, 13);
  for (const RoutingMethod method : kAllMethods) {
    const Routing routing = full_routing(method);
    const Route one = route_logits(routing, logits, 16, full_bias(method), 1);
    for (const int threads : {0, 2, 7}) {
      EXPECT_TRUE(same_bytes(one, route_logits(routing, logits, 16, full_bias(method), threads)));
    }
    EXPECT_TRUE(same_bytes(weigh_given_experts(routing, logits, 16, one.ids, 7),
                           weigh_given_experts(routing, logits, 16, one.ids, 1)));
  }
}

TEST(RouteLogits, RoundingModeOfTheHostDoesNotShow) {
  const Floats logits = grid_logits(40, 16, 14);
  for (const RoutingMethod method : kAllMethods) {
    const Routing routing = full_routing(method);
    const Route expected = route_logits(routing, logits, 16, full_bias(method));
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      std::fesetround(mode);
      const Route route = route_logits(routing, logits, 16, full_bias(method));
      const int kept = std::fegetround();
      std::fesetround(FE_TONEAREST);
      EXPECT_TRUE(same_bytes(expected, route));
      EXPECT_EQ(kept, mode);
    }
  }
}

}  // namespace
}  // namespace moeref
