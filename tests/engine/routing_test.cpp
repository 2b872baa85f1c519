#include <gtest/gtest.h>

#include <vector>

#include "tests/engine/routing_fixtures.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

TEST(RouteLogits, ListsSlotsByFallingChoiceThenRisingIndex) {
  for (const RoutingMethod method : kAllMethods) {
    const Route route = route_logits(make(method, 4), Floats{1, 3, 1, 3, -2, 1}, 6, {});
    EXPECT_EQ(route.ids, (Ids{1, 3, 0, 2})) << static_cast<int>(method);
  }
}

TEST(RouteLogits, TreatsBothZerosAsEqual) {
  EXPECT_EQ(
      route_logits(make(RoutingMethod::topk_softmax, 2), Floats{-0.0f, 0.0f, -0.0f}, 3, {}).ids,
      (Ids{0, 1}));
}

TEST(RouteLogits, BreaksTiesOfScoresThatRoundToTheSameFloat) {
  // sigma(20) and sigma(30) are both 1 in f32 (e^-20 < 2^-25), so the lower index comes first.
  EXPECT_EQ(route_logits(make(RoutingMethod::sigmoid_topk, 1), Floats{20, 30}, 2, {}).ids,
            (Ids{0}));
  EXPECT_EQ(route_logits(make(RoutingMethod::topk_softmax, 1), Floats{20, 30}, 2, {}).ids,
            (Ids{1}));
}

TEST(RouteLogits, GivesEveryMethodItsWeights) {
  const Floats logits{0, 0, -kInfinity};
  struct Expectation {
    RoutingMethod method;
    bool renormalize;
    float weight;
  };
  const Expectation expectations[] = {
      {RoutingMethod::softmax_topk, true, 1.0f}, {RoutingMethod::softmax_topk, false, 1.0f},
      {RoutingMethod::topk_softmax, true, 1.0f}, {RoutingMethod::topk_softmax, false, 1.0f},
      {RoutingMethod::deepseek_v3, true, 1.0f},  {RoutingMethod::deepseek_v3, false, 1.0f},
      {RoutingMethod::llama4, true, 1.0f},       {RoutingMethod::topk_logits, true, 0.0f},
      {RoutingMethod::sigmoid_topk, true, 1.0f}, {RoutingMethod::sigmoid_topk, false, 1.0f},
      {RoutingMethod::minimax2, false, 1.0f},    {RoutingMethod::sqrt_softplus, false, 1.0f}};
  for (const auto& [method, renormalize, weight] : expectations) {
    Routing routing = make(method, 2);
    routing.renormalize = renormalize;
    routing.scaling = 2.0f;  // each of the two has the half
    const Route route = route_logits(routing, logits, 3, {});
    EXPECT_EQ(route.ids, (Ids{0, 1}));
    EXPECT_EQ(route.weights, (Floats{weight, weight})) << static_cast<int>(method);
  }
}

TEST(RouteLogits, TakesTheScoresAsTheyAreWithoutRenormalisation) {
  Routing routing = make(RoutingMethod::sigmoid_topk, 1);
  routing.renormalize = false;
  EXPECT_EQ(route_logits(routing, Floats{0, -3}, 2, {}).weights, (Floats{0.5f}));
  routing.renormalize = true;
  EXPECT_EQ(route_logits(routing, Floats{0, -3}, 2, {}).weights, (Floats{1.0f}));
}

TEST(RouteLogits, BiasSelectsButDoesNotWeigh) {
  for (const RoutingMethod method :
       {RoutingMethod::deepseek_v3, RoutingMethod::minimax2, RoutingMethod::sqrt_softplus}) {
    const Route route = route_logits(make(method, 2), Floats{5, 1, 1, 0}, 4, Floats{-9, 0, 2, 0});
    EXPECT_EQ(route.ids, (Ids{2, 1}));
    EXPECT_EQ(route.weights, (Floats{0.5f, 0.5f}));
  }
}

TEST(RouteLogits, BiasOfMinusInfinityKeepsAnExpertOut) {
  EXPECT_EQ(
      route_logits(make(RoutingMethod::minimax2, 2), Floats{5, 1, 0}, 3, Floats{-kInfinity, 0, 0})
          .ids,
      (Ids{1, 2}));
}

TEST(RouteLogits, KeepsGroupsByTheSumOfTheirTwoLargest) {
  Routing routing = make(RoutingMethod::deepseek_v3, 2);
  routing.groups = 2;
  routing.kept_groups = 1;
  // The largest value lies in group 0, the larger sum in group 1.
  EXPECT_EQ(route_logits(routing, Floats{4, -9, -9, 2, 1, -9}, 6, {}).ids, (Ids{3, 4}));
  // Equal sums: the lower group.
  EXPECT_EQ(route_logits(routing, Floats{1, 2, -9, 2, 1, -9}, 6, {}).ids, (Ids{1, 0}));
}

TEST(RouteLogits, RoundsGroupScoresToF32BeforeComparing) {
  Routing routing = make(RoutingMethod::deepseek_v3, 1);
  routing.groups = 2;
  routing.kept_groups = 1;
  // The scores are all 0 (sigma of -200). 1 + 2^-26 and 1 + 2^-25 both round to 1, so group 0 wins
  // although its exact sum is the smaller one.
  const Floats logits(4, -200.0f);
  routing.sum_epsilon = 1e-20f;
  EXPECT_EQ(route_logits(routing, logits, 4, Floats{1, 0x1p-26f, 1, 0x1p-25f}).ids, (Ids{0}));
  EXPECT_EQ(route_logits(routing, logits, 4, Floats{1, 0x1p-26f, 1, 0x1p-23f}).ids, (Ids{2}));
}

TEST(RouteLogits, GroupOfOneHasItsOwnValue) {
  Routing routing = make(RoutingMethod::deepseek_v3, 2);
  routing.groups = 4;
  routing.kept_groups = 2;
  EXPECT_EQ(route_logits(routing, Floats{-1, 3, 2, -5}, 4, {}).ids, (Ids{1, 2}));
}

TEST(RouteLogits, MaskFillDecidesWhenKeptChoicesAreNegative) {
  Routing routing = make(RoutingMethod::deepseek_v3, 2);
  routing.groups = 2;
  routing.kept_groups = 1;
  const Floats bias(4, -2.0f);
  EXPECT_EQ(route_logits(routing, Floats{1, 2, -1, -2}, 4, bias).ids, (Ids{1, 0}));
  routing.mask_fill = MaskFill::zero;
  EXPECT_EQ(route_logits(routing, Floats{1, 2, -1, -2}, 4, bias).ids, (Ids{2, 3}));
}

TEST(RouteLogits, SaturatesExactlyAtExtremeLogits) {
  const Floats extreme{3e38f, -3e38f, -0x1p-149f};
  Routing routing = make(RoutingMethod::softmax_topk, 3);
  EXPECT_EQ(route_logits(routing, extreme, 3, {}).weights, (Floats{1, 0, 0}));
  EXPECT_EQ(route_logits(routing, extreme, 3, {}).ids, (Ids{0, 1, 2}));
  routing = make(RoutingMethod::llama4, 3);
  EXPECT_EQ(route_logits(routing, extreme, 3, {}).weights, (Floats{1, 0.5f, 0}));
  EXPECT_EQ(route_logits(routing, Floats{kInfinity, -kInfinity, 0}, 3, {}).weights,
            (Floats{1, 0.5f, 0}));
  routing = make(RoutingMethod::topk_logits, 2);
  EXPECT_EQ(route_logits(routing, Floats{kInfinity, -kInfinity}, 2, {}).weights,
            (Floats{kInfinity, -kInfinity}));
}

TEST(RouteLogits, MinusInfinityHasProbabilityZero) {
  for (const RoutingMethod method : {RoutingMethod::softmax_topk, RoutingMethod::topk_softmax}) {
    const Route route = route_logits(make(method, 3), Floats{-kInfinity, 1, -kInfinity}, 3, {});
    EXPECT_EQ(route.ids, (Ids{1, 0, 2}));
    EXPECT_EQ(route.weights, (Floats{1, 0, 0}));
  }
}

TEST(RouteLogits, ZeroScoresWithAnEpsilonHaveWeightZero) {
  Routing routing = make(RoutingMethod::deepseek_v3, 2);
  routing.sum_epsilon = 1e-20f;
  EXPECT_EQ(route_logits(routing, Floats{-500, -400}, 2, {}).weights, (Floats{0, 0}));
}

TEST(RouteLogits, AcceptsNoTokens) {
  const Route route = route_logits(make(RoutingMethod::topk_softmax, 2), {}, 8, {});
  EXPECT_EQ(route.tokens, 0);
  EXPECT_EQ(route.top_k, 2);
  EXPECT_TRUE(route.ids.empty());
}

TEST(WeighGivenExperts, AgreesWithTheSelectionItIsGiven) {
  const Floats logits = grid_logits(60, 16, 15);
  for (const RoutingMethod method : kAllMethods) {
    const Routing routing = full_routing(method);
    const Route route = route_logits(routing, logits, 16, full_bias(method));
    EXPECT_TRUE(same_bytes(route, weigh_given_experts(routing, logits, 16, route.ids)));
  }
}

TEST(WeighGivenExperts, KeepsSlotsAndSkipsEmptyOnes) {
  const Routing routing = make(RoutingMethod::sqrt_softplus, 3);
  const Route route =
      weigh_given_experts(routing, Floats{1, 2, 1, 3, 3, 3}, 3, Ids{2, -1, 0, -1, -1, -1});
  EXPECT_EQ(route.ids, (Ids{2, -1, 0, -1, -1, -1}));
  EXPECT_EQ(route.weights, (Floats{0.5f, 0, 0.5f, 0, 0, 0}));
}

}  // namespace
}  // namespace moeref
