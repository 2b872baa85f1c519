#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/engine/routing_fixtures.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

std::string route_error(const Routing& routing, const Floats& logits, std::int64_t experts,
                        const Floats& bias = {}) {
  return error_of([&] { route_logits(routing, logits, experts, bias); });
}

TEST(RouteLogits, NamesTheFirstNaN) {
  Floats logits(5 * 8, 1.0f);
  logits[3 * 8 + 5] = kNaN;
  logits[4 * 8 + 1] = kNaN;
  for (const RoutingMethod method : kAllMethods) {
    EXPECT_TRUE(starts_with(route_error(make(method, 2), logits, 8),
                            "router logits: token 3, expert 5 is NaN"));
  }
  EXPECT_TRUE(
      starts_with(route_error(make(RoutingMethod::minimax2, 1), Floats{1, 2}, 2, Floats{0, kNaN}),
                  "router selection bias: expert 1 is NaN"));
}

TEST(RouteLogits, NamesTheFirstTokenWithoutASoftmax) {
  Floats logits(400 * 4, 1.0f);
  logits[399 * 4 + 2] = kInfinity;
  logits[250 * 4 + 3] = kInfinity;
  for (int i = 0; i < 4; ++i) logits[static_cast<std::size_t>(300 * 4 + i)] = -kInfinity;
  for (const RoutingMethod method :
       {RoutingMethod::softmax_topk, RoutingMethod::topk_softmax, RoutingMethod::sqrt_softplus}) {
    for (int run = 0; run < 5; ++run) {
      const std::string error =
          error_of([&] { route_logits(make(method, 2), logits, 4, {}, 1 + run); });
      EXPECT_TRUE(starts_with(error, "router logits: token 250, expert 3 is +infinity")) << error;
    }
  }
  logits[250 * 4 + 3] = 0.0f;
  for (const RoutingMethod method : {RoutingMethod::softmax_topk, RoutingMethod::topk_softmax}) {
    const std::string error = route_error(make(method, 2), logits, 4);
    EXPECT_TRUE(starts_with(error, "router logits: token 300: all ")) << error;
  }
}

TEST(RouteLogits, RefusesToDivideByASumOfZero) {
  for (const RoutingMethod method : {RoutingMethod::deepseek_v3, RoutingMethod::sigmoid_topk,
                                     RoutingMethod::minimax2, RoutingMethod::sqrt_softplus}) {
    const std::string error = route_error(make(method, 1), Floats{0, 1, -500, -600}, 2);
    EXPECT_TRUE(
        starts_with(error, "router logits: token 1: the scores of its 1 chosen experts are all 0"))
        << error;
  }
}

TEST(RouteLogits, ChecksItsParameters) {
  const Floats logits(12, 0.0f);
  struct Fault {
    Routing routing;
    std::int64_t experts;
    Floats bias;
    std::string start;
  };
  const auto with = [](RoutingMethod method, std::int64_t top_k, std::int64_t groups,
                       std::int64_t kept, float scaling = 1.0f, float epsilon = 0.0f) {
    Routing routing = make(method, top_k);
    routing.groups = groups;
    routing.kept_groups = kept;
    routing.scaling = scaling;
    routing.sum_epsilon = epsilon;
    return routing;
  };
  using enum RoutingMethod;
  const Fault faults[] = {
      {with(deepseek_v3, 7, 1, 1),
       6,
       {},
       "routing: top_k is 7, needs 1 to the number of experts, 6"},
      {with(deepseek_v3, 0, 1, 1), 6, {}, "routing: top_k is 0"},
      {with(deepseek_v3, 1, 1, 1), 0, {}, "routing: has 0 experts"},
      {with(deepseek_v3, 1, 1, 1), 5, {}, "router logits: 12 values are not whole rows of 5"},
      {with(deepseek_v3, 1, 4, 1), 6, {}, "routing: 6 experts do not form 4 equal groups"},
      {with(deepseek_v3, 1, 0, 1), 6, {}, "routing: 6 experts do not form 0 equal groups"},
      {with(deepseek_v3, 1, 3, 4), 6, {}, "routing: keeps 4 of 3 groups"},
      {with(deepseek_v3, 1, 3, 0), 6, {}, "routing: keeps 0 of 3 groups"},
      {with(deepseek_v3, 3, 3, 1),
       6,
       {},
       "routing: the 1 kept groups hold 2 experts, fewer than top_k 3"},
      {with(sigmoid_topk, 1, 3, 1), 6, {}, "routing: method sigmoid_topk knows no groups"},
      {with(deepseek_v3, 1, 1, 1, 0.0f), 6, {}, "routing: scaling is 0"},
      {with(deepseek_v3, 1, 1, 1, -1.0f), 6, {}, "routing: scaling is -1"},
      {with(deepseek_v3, 1, 1, 1, kNaN), 6, {}, "routing: scaling is nan"},
      {with(deepseek_v3, 1, 1, 1, kInfinity), 6, {}, "routing: scaling is inf"},
      {with(deepseek_v3, 1, 1, 1, 1.0f, -1.0f), 6, {}, "routing: sum_epsilon is -1"},
      {with(deepseek_v3, 1, 1, 1, 1.0f, kNaN), 6, {}, "routing: sum_epsilon is nan"},
      {with(deepseek_v3, 1, 1, 1), 6, Floats(5, 0.0f),
       "router selection bias: has 5 values, needs"},
      {with(minimax2, 1, 1, 1), 6, Floats(6, kInfinity),
       "router selection bias: expert 0 is +infinity"},
      {with(topk_softmax, 1, 1, 1), 6, Floats(6, 0.0f),
       "router selection bias: method topk_softmax"},
  };
  for (const Fault& fault : faults) {
    const std::string error = route_error(fault.routing, logits, fault.experts, fault.bias);
    EXPECT_TRUE(starts_with(error, fault.start)) << error << "\nwanted: " << fault.start;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
  // With the fill 0 masked experts may fill the slots.
  Routing zero = with(deepseek_v3, 3, 3, 1);
  zero.mask_fill = MaskFill::zero;
  EXPECT_EQ(route_logits(zero, logits, 6, {}).ids, (Ids{0, 1, 2, 0, 1, 2}));
}

TEST(WeighGivenExperts, NamesWhatIsWrong) {
  const Routing routing = make(RoutingMethod::topk_softmax, 2);
  const auto error = [&](const Floats& logits, const Ids& ids) {
    return error_of([&] { weigh_given_experts(routing, logits, 2, ids); });
  };
  EXPECT_TRUE(starts_with(error({0, 0, 0, 0}, {0, 1, 0, 2}),
                          "given expert ids: token 1, slot 1 names expert 2, needs 0 to 1"));
  EXPECT_TRUE(starts_with(error({0, 0, 0, 0}, {0, 1, -2, 1}),
                          "given expert ids: token 1, slot 0 names expert -2"));
  EXPECT_TRUE(starts_with(error({0, 0, 0, 0}, {0, 1}), "given expert ids: 2 values, needs [2, 2]"));
  EXPECT_TRUE(starts_with(error({0, kNaN}, {0, 0}), "router logits: token 0, expert 1 is NaN"));
  EXPECT_TRUE(
      starts_with(error({0, kInfinity}, {-1, 1}), "router logits: token 0, expert 1 is +infinity"));
  EXPECT_EQ(error({0, kInfinity}, {-1, 0}), "no error");  // expert 1 is not in this softmax
}

Route given_route() { return {2, 3, {0, 1, -1, 4, -1, -1}, {0.5f, 0.5f, 0, 1, 0, 0}}; }

TEST(CheckRoute, AcceptsEmptySlotsMoreThanOnce) {
  EXPECT_NO_THROW(check_route(given_route(), 5, "file"));
  EXPECT_NO_THROW(check_route({0, 3, {}, {}}, 5, "file"));
}

TEST(CheckRoute, NamesTokenAndSlot) {
  const auto error = [](const Route& route) {
    return error_of([&] { check_route(route, 5, "case.safetensors: in.topk_ids"); });
  };
  const std::string subject = "case.safetensors: in.topk_ids: ";
  Route route = given_route();
  route.ids[4] = 5;
  EXPECT_TRUE(starts_with(error(route), subject + "token 1, slot 1 names expert 5, needs 0 to 4"));
  route.ids[4] = -2;
  EXPECT_TRUE(starts_with(error(route), subject + "token 1, slot 1 names expert -2"));
  route.ids[4] = 0;
  EXPECT_EQ(error(route), "no error");  // expert 0 again, but in another token
  route.ids[5] = 4;
  EXPECT_TRUE(starts_with(error(route), subject + "token 1 names expert 4 in slots 0 and 2"));
  route = given_route();
  route.weights[1] = kNaN;
  EXPECT_TRUE(starts_with(error(route), subject + "token 0, slot 1 has the weight NaN"));
  route = given_route();
  route.weights.pop_back();
  EXPECT_TRUE(starts_with(error(route), subject + "has 6 ids and 5 weights, needs [2, 3]"));
  route = given_route();
  route.tokens = 3;
  EXPECT_TRUE(starts_with(error(route), subject + "has 6 ids and 6 weights, needs [3, 3]"));
  route.top_k = 0;
  EXPECT_TRUE(starts_with(error(route), subject + "is [3, 0]"));
}

}  // namespace
}  // namespace moeref
