#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/bounds/routing.hpp"
#include "quant/error.hpp"

namespace moeref::bounds {
namespace {

constexpr std::size_t kExperts = 12;
constexpr std::int64_t kTopK = 4;

float sigmoid_in_f32(float x) { return 1.0f / (1.0f + std::exp(-x)); }

std::vector<float> softmax_in_f32(const std::vector<float>& logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  std::vector<float> result;
  for (const float logit : logits) result.push_back(std::exp(logit - top));
  const float sum = std::accumulate(result.begin(), result.end(), 0.0f);
  for (float& element : result) element /= sum;
  return result;
}

/// One routing method as a framework computes its weights in f32, from all logits and the chosen
/// experts.
struct JudgedMethod {
  std::string name;
  RoutingMethod method;
  bool renormalize;
  float epsilon;
  float scaling;
  std::function<std::vector<float>(const std::vector<float>& logits)> scores;  ///< of all experts
  bool softmax_of_chosen = false;
};

template <typename Function>
std::function<std::vector<float>(const std::vector<float>&)> elementwise(Function function) {
  return [function](const std::vector<float>& logits) {
    std::vector<float> scores;
    for (const float logit : logits) scores.push_back(function(logit));
    return scores;
  };
}

std::vector<JudgedMethod> judged_methods() {
  const auto identity = elementwise([](float x) { return x; });
  const auto sigmoid = elementwise(sigmoid_in_f32);
  const auto root =
      elementwise([](float x) { return std::sqrt(x > 20.0f ? x : std::log1p(std::exp(x))); });
  return {
      {"softmax", RoutingMethod::softmax_topk, false, 0.0f, 1.0f, softmax_in_f32},
      {"softmax_renormalized", RoutingMethod::softmax_topk, true, 0.0f, 1.0f, softmax_in_f32},
      {"softmax_renormalized_epsilon", RoutingMethod::softmax_topk, true, 1e-20f, 2.446f,
       softmax_in_f32},
      {"chosen_softmax", RoutingMethod::topk_softmax, true, 0.0f, 1.0f, identity, true},
      {"deepseek_v3", RoutingMethod::deepseek_v3, true, 1e-20f, 2.5f, sigmoid},
      {"deepseek_v3_as_they_are", RoutingMethod::deepseek_v3, false, 1e-20f, 2.446f, sigmoid},
      {"llama4", RoutingMethod::llama4, false, 0.0f, 1.0f, sigmoid},
      {"logits", RoutingMethod::topk_logits, true, 0.0f, 1.0f, identity},
      {"sigmoid", RoutingMethod::sigmoid_topk, false, 0.0f, 1.0f, sigmoid},
      {"sigmoid_renormalized", RoutingMethod::sigmoid_topk, true, 0.0f, 1.0f, sigmoid},
      {"minimax2", RoutingMethod::minimax2, false, 0.0f, 1.0f, sigmoid},
      {"sqrt_softplus", RoutingMethod::sqrt_softplus, true, 1e-20f, 1.5f, root},
  };
}

std::vector<float> weights_in_f32(const JudgedMethod& method, const std::vector<float>& logits,
                                  const std::vector<std::int32_t>& chosen) {
  const std::vector<float> scores = method.scores(logits);
  std::vector<float> weights;
  for (const std::int32_t id : chosen) weights.push_back(scores[static_cast<std::size_t>(id)]);
  if (method.softmax_of_chosen) return softmax_in_f32(weights);
  const bool divides = method.method == RoutingMethod::minimax2 ||
                       (method.renormalize && method.method != RoutingMethod::topk_logits);
  const float sum = std::accumulate(weights.begin(), weights.end(), 0.0f) + method.epsilon;
  for (float& weight : weights) weight = (divides ? weight / sum : weight) * method.scaling;
  return weights;
}

TEST(Weigh, EnclosesF32WeightsOfDisplacedLogitsForEveryMethod) {
  std::mt19937_64 random(41);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::uniform_real_distribution<double> unit(-1.0, 1.0);
  const Arithmetic& f32 = arithmetic(Precision::f32);
  for (const JudgedMethod& method : judged_methods()) {
    MoeLayer layer;
    layer.routing.method = method.method;
    layer.routing.top_k = kTopK;
    layer.routing.renormalize = method.renormalize;
    layer.routing.sum_epsilon = method.epsilon;
    layer.routing.scaling = method.scaling;
    double worst = 0.0;
    for (int round = 0; round < 400; ++round) {
      BoundedMatrix logits(1, kExperts);
      std::vector<float> displaced(kExperts);
      for (std::size_t expert = 0; expert < kExperts; ++expert) {
        displaced[expert] = normal(random);
        // Even rounds: exact logits, so that the roundings alone count.
        logits.stored[expert] = round % 2 == 0 ? 0.0 : std::ldexp(1.0, -(round % 24) - 3);
        logits.value[expert] =
            static_cast<double>(displaced[expert]) + unit(random) * logits.stored[expert];
      }
      const std::vector<std::int32_t> chosen = choose(layer.routing, logits.value);
      const BoundedRoute route = weigh(f32, layer, logits, chosen, kTopK);
      const std::vector<float> stored = weights_in_f32(method, displaced, chosen);
      for (std::size_t slot = 0; slot < stored.size(); ++slot) {
        const double difference =
            std::fabs(static_cast<double>(stored[slot]) - route.weights[slot].value);
        ASSERT_LE(difference, route.weights[slot].total()) << method.name;
        worst = std::max(worst, difference / route.weights[slot].total());
      }
    }
    EXPECT_GT(worst, 0.2) << method.name;
  }
}

TEST(Weigh, RejectsAnExpertOutsideTheLayer) {
  MoeLayer layer;
  const BoundedMatrix logits(1, 4);
  const std::vector<std::int32_t> ids{4};
  EXPECT_THROW(weigh(arithmetic(Precision::f32), layer, logits, ids, 1), Error);
}

TEST(LookUpExperts, ReadsTheRowOfTheTokenIdOrSaysWhatIsWrong) {
  const std::vector<std::int64_t> table{0, 1, 2, 3, 4, 5};
  MoeLayer layer;
  const std::vector<std::int64_t> tokens{2, 0};
  EXPECT_THROW(look_up_experts(layer, tokens), Error) << "no table";
  layer.expert_table = {"tid2eid", DType::i64, {3, 2}, std::as_bytes(std::span(table))};
  EXPECT_EQ(look_up_experts(layer, tokens), (std::vector<std::int32_t>{4, 5, 0, 1}));
  const std::vector<std::int64_t> beyond{3};
  EXPECT_THROW(look_up_experts(layer, beyond), Error);
}

TEST(Choice, TakesAnotherSetOnlyWhereRoundingLeavesItOpen) {
  Routing routing;
  routing.method = RoutingMethod::topk_softmax;
  routing.top_k = 2;
  BoundedMatrix choices(1, 4);
  choices.value = {3.0, 2.0, 2.0, 1.0};
  const auto may = [&](std::vector<std::int32_t> ids) {
    return may_choose(routing, choices, 0, ids);
  };
  EXPECT_EQ(choose(routing, choices.value), (std::vector<std::int32_t>{0, 1}));
  EXPECT_TRUE(may({1, 0}));
  EXPECT_FALSE(may({0, 2})) << "without errors the tie goes to the lower index";
  choices.stored = {1e-6, 1e-6, 1e-6, 1e-6};
  EXPECT_TRUE(may({0, 2}));
  EXPECT_FALSE(may({0, 3}));
  EXPECT_FALSE(may({1, 2}));
  EXPECT_FALSE(may({0, 0}));
}

TEST(Choice, KeepsGroupsByTheSumOfTheirTwoLargest) {
  Routing routing;
  routing.method = RoutingMethod::deepseek_v3;
  routing.top_k = 2;
  routing.groups = 2;
  routing.kept_groups = 1;
  const std::vector<double> choices{-0.1, -0.9, -0.3, -0.4};
  EXPECT_EQ(choose(routing, choices), (std::vector<std::int32_t>{2, 3}));
  routing.mask_fill = MaskFill::zero;  // masked experts beat negative scores
  EXPECT_EQ(choose(routing, choices), (std::vector<std::int32_t>{0, 1}));
}

}  // namespace
}  // namespace moeref::bounds
