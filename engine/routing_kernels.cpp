#include "engine/routing_kernels.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <stdexcept>

#include "engine/first_error.hpp"
#include "engine/routing_arithmetic.hpp"
#include "engine/routing_kernel_checks.hpp"
#include "engine/routing_kernel_select.hpp"
#include "engine/routing_scores.hpp"
#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

struct TokenScratch {
  std::vector<float> logits;   ///< with the bias, if it enters there
  std::vector<float> scores;   ///< [experts]
  std::vector<float> choices;  ///< [experts]
  std::vector<float> chosen;   ///< of each slot
  std::vector<float> weights;  ///< of each slot
  KernelSelection selection;
};

/// One token's route, for checked arguments.
class TokenRouter {
 public:
  TokenRouter(const RoutingKernel& kernel, const Routing& routing, std::span<const float> bias)
      : kernel_(kernel), routing_(routing), math_(kernel.arithmetic) {
    for (const float b : bias) bias_.push_back(in_type(kernel.bias_type, kernel.logits, b));
  }

  /// Logits, scores and choice values of a token.
  void score(std::int64_t token, std::span<const float> logits, TokenScratch& scratch) const {
    scratch.logits.assign(logits.begin(), logits.end());
    if (kernel_.bias == BiasUse::logit) add_bias(scratch.logits, ValueType::f32);
    scratch.scores.resize(logits.size());
    score_all(token, scratch.logits, scratch.scores);
    for (float& score : scratch.scores) score = in_type(kernel_.score_type, kernel_.logits, score);
    scratch.choices = scratch.scores;
    if (kernel_.bias == BiasUse::score) add_bias(scratch.choices, kernel_.choice_type);
  }

  void select(std::int64_t token, TokenScratch& scratch) const {
    select_as(kernel_, choices(scratch), scratch.selection);
    if (!kernel_.floor) return;
    for (const std::int32_t id : scratch.selection.order) {
      const float choice = scratch.choices[static_cast<std::size_t>(id)];
      if (choice > *kernel_.floor) continue;
      fail(kRouterLogits,
           "token {}: top_k {} reaches expert {} with the choice value {}, but {} gives experts "
           "that "
           "are out {}, so that its answer is not defined; look at the selection bias",
           token, routing_.top_k, id, choice, kernel_.name, *kernel_.floor);
    }
  }

  RoutingChoices choices(const TokenScratch& scratch) const {
    const bool grouped = kernel_.group_score != GroupScore::none;
    return {scratch.choices, grouped ? routing_.groups : 1, grouped ? routing_.kept_groups : 1,
            routing_.top_k};
  }

  /// The weights of `ids`, none of them -1, into `scratch.weights`.
  void weigh(std::int64_t token, std::span<const std::int32_t> ids, TokenScratch& scratch) const {
    std::vector<float>& weights = scratch.weights;
    weights.resize(ids.size());
    if (kernel_.weight == RouteWeightForm::softmax_divided ||
        kernel_.weight == RouteWeightForm::once_softmax) {
      softmax_of_chosen(token, ids, scratch);
    } else {
      for (std::size_t slot = 0; slot < ids.size(); ++slot) {
        weights[slot] = weight_of(static_cast<std::size_t>(ids[slot]), scratch);
      }
      if (shares()) {
        scratch.chosen = weights;
        make_shares(token, scratch.chosen, weights);
      }
    }
    if (scales_by_product()) {
      for (float& weight : weights) weight = math_.multiply(weight, routing_.scaling);
    }
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      weights[slot] = in_type(kernel_.output_type, kernel_.logits, weights[slot]);
      if (!std::isnan(weights[slot])) continue;
      fail(kRouterLogits,
           "token {}: the weight of expert {} is NaN in {} (0 / 0, or infinity / infinity); look "
           "for "
           "logits that are too low, too high or infinite",
           token, ids[slot], kernel_.name);
    }
  }

 private:
  void add_bias(std::vector<float>& values, ValueType type) const {
    for (std::size_t e = 0; e < bias_.size(); ++e) {
      values[e] = in_type(type, kernel_.logits, math_.add(values[e], bias_[e]));
    }
  }

  void score_all(std::int64_t token, std::span<const float> logits, std::span<float> scores) const {
    switch (kernel_.score) {
      case ScoreForm::softmax_divided:
      case ScoreForm::softmax_reciprocal:
      case ScoreForm::once_softmax:
        check_softmax(token, logits);
        break;
      default:
        for (std::size_t e = 0; e < logits.size(); ++e) {
          scores[e] = math_.score(kernel_.score, logits[e]);
        }
        return;
    }
    if (kernel_.score == ScoreForm::once_softmax) return softmax_times(logits, 1.0f, scores);
    math_.exponentials(logits, scores);
    const float sum = math_.sum(scores, kernel_.score_sum, kernel_.logits);
    const bool divides = kernel_.score == ScoreForm::softmax_divided;
    const float factor = divides ? 0.0f : math_.reciprocal(sum);
    for (float& score : scores) {
      score = divides ? math_.divide(score, sum) : math_.multiply(score, factor);
    }
  }

  float weight_of(std::size_t expert, const TokenScratch& scratch) const {
    switch (kernel_.weight) {
      case RouteWeightForm::score:
        return scratch.scores[expert];
      case RouteWeightForm::choice_minus_bias:
        return bias_.empty() ? scratch.choices[expert]
                             : math_.subtract(scratch.choices[expert], bias_[expert]);
      case RouteWeightForm::sigmoid_tanh:
        return math_.sigmoid_tanh(scratch.logits[expert]);
      case RouteWeightForm::once_sigmoid:
        return sigmoid_times(scratch.logits[expert], routing_.scaling);
      case RouteWeightForm::softmax_divided:
      case RouteWeightForm::once_softmax:
        break;
    }
    throw std::logic_error("weight_of: a softmax is no weight of one expert");
  }

  void softmax_of_chosen(std::int64_t token, std::span<const std::int32_t> ids,
                         TokenScratch& scratch) const {
    scratch.chosen.resize(ids.size());
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      scratch.chosen[slot] = scratch.logits[static_cast<std::size_t>(ids[slot])];
    }
    check_softmax(token, scratch.chosen);
    if (kernel_.weight == RouteWeightForm::once_softmax) {
      return softmax_times(scratch.chosen, routing_.scaling, scratch.weights);
    }
    math_.exponentials(scratch.chosen, scratch.weights);
    const float sum = math_.sum(scratch.weights, kernel_.share_sum, kernel_.logits);
    for (float& weight : scratch.weights) weight = math_.divide(weight, sum);
  }

  bool shares() const {
    return kernel_.share_use == ShareUse::always ||
           (kernel_.share_use == ShareUse::if_asked && wants_shares(routing_));
  }

  bool scales_by_product() const {
    if (routing_.scaling == 1.0f) return false;
    if (kernel_.weight == RouteWeightForm::once_softmax ||
        kernel_.weight == RouteWeightForm::once_sigmoid) {
      return false;
    }
    if (!shares()) return kernel_.scaling == ScalingUse::always;
    return kernel_.share == ShareForm::divided || kernel_.share == ShareForm::reciprocal;
  }

  void make_shares(std::int64_t token, std::span<const float> scores, std::span<float> out) const {
    if (kernel_.share == ShareForm::once) {
      for (std::size_t slot = 0; slot < scores.size(); ++slot) {
        if (std::isfinite(scores[slot])) continue;
        fail(kRouterLogits, "token {}: the score in slot {} is {}, a share needs a finite one",
             token, slot, scores[slot]);
      }
      if (shares_times(scores, routing_.sum_epsilon, routing_.scaling, out)) return;
      fail(kRouterLogits, "token {}: the scores of its {} chosen experts are all 0", token,
           scores.size());
    }
    const float sum = math_.sum(scores, kernel_.share_sum, kernel_.logits);
    const auto epsilon = static_cast<float>(kernel_.epsilon);
    float divisor = sum;
    if (kernel_.divisor == DivisorForm::plus_epsilon) divisor = math_.add(sum, epsilon);
    if (kernel_.divisor == DivisorForm::at_least) divisor = std::max(sum, epsilon);
    if (kernel_.divisor == DivisorForm::one_if_zero) divisor = sum > 0.0f ? sum : 1.0f;
    for (std::size_t slot = 0; slot < scores.size(); ++slot) {
      out[slot] = share(scores[slot], sum, divisor);
    }
  }

  float share(float score, float sum, float divisor) const {
    switch (kernel_.share) {
      case ShareForm::divided:
        return math_.divide(score, divisor);
      case ShareForm::reciprocal:
        return math_.multiply(score, math_.reciprocal(divisor));
      case ShareForm::scaled_first:
        return math_.divide(math_.multiply(score, routing_.scaling), divisor);
      case ShareForm::wide: {
        const double wide = math_.wide_share(score, routing_.scaling, sum, kernel_.epsilon);
        return in_type(kernel_.output_type, kernel_.logits, wide);
      }
      case ShareForm::once:
        break;
    }
    throw std::logic_error("share: shares rounded once are made together");
  }

  const RoutingKernel& kernel_;
  const Routing& routing_;
  RoutingMath math_;
  std::vector<float> bias_;
};

}  // namespace

Route route_logits_as(const RoutingKernel& kernel, const Routing& routing,
                      std::span<const float> logits, std::int64_t experts,
                      std::span<const float> bias, int threads) {
  const simd::DefaultFloatEnvironment environment;
  if (!kernel.selects) {
    fail(kernel.name, "chooses no experts, it weighs given ones; take weigh_given_experts_as");
  }
  check_kernel(kernel, routing, experts);
  check_kernel_bias(kernel, bias, experts);
  const std::int64_t tokens = check_kernel_logits(kernel, logits, experts);
  const TokenRouter router(kernel, routing, bias);
  const auto width = static_cast<std::size_t>(experts);
  const auto top_k = static_cast<std::size_t>(routing.top_k);

  Route route{tokens, routing.top_k, {}, {}};
  route.ids.resize(static_cast<std::size_t>(tokens) * top_k);
  route.weights.resize(route.ids.size());
  FirstError error;
  parallel_for<TokenScratch>(tokens, threads, [&](std::int64_t token, TokenScratch& scratch) {
    error.guard(token, [&] {
      const auto row = static_cast<std::size_t>(token);
      router.score(token, logits.subspan(row * width, width), scratch);
      router.select(token, scratch);
      const std::vector<std::int32_t>& ids = scratch.selection.order;
      router.weigh(token, ids, scratch);
      std::copy(ids.begin(), ids.end(), &route.ids[row * top_k]);
      std::copy(scratch.weights.begin(), scratch.weights.end(), &route.weights[row * top_k]);
    });
  });
  error.rethrow();
  return route;
}

Route weigh_given_experts_as(const RoutingKernel& kernel, const Routing& routing,
                             std::span<const float> logits, std::int64_t experts,
                             std::span<const std::int32_t> ids, int threads) {
  const simd::DefaultFloatEnvironment environment;
  check_kernel(kernel, routing, experts);
  const std::int64_t tokens = check_kernel_logits(kernel, logits, experts);
  check_given_ids(ids, tokens, routing.top_k, experts);
  const TokenRouter router(kernel, routing, {});
  const auto width = static_cast<std::size_t>(experts);
  const auto top_k = static_cast<std::size_t>(routing.top_k);

  Route route{tokens, routing.top_k, {ids.begin(), ids.end()}, {}};
  route.weights.resize(ids.size());
  FirstError error;
  parallel_for<TokenScratch>(tokens, threads, [&](std::int64_t token, TokenScratch& scratch) {
    error.guard(token, [&] {
      const auto row = static_cast<std::size_t>(token);
      const std::span given = ids.subspan(row * top_k, top_k);
      std::vector<std::int32_t>& present = scratch.selection.order;
      present.clear();
      std::copy_if(given.begin(), given.end(), std::back_inserter(present),
                   [](std::int32_t id) { return id >= 0; });
      if (present.empty()) return;
      router.score(token, logits.subspan(row * width, width), scratch);
      router.weigh(token, present, scratch);
      auto weight = scratch.weights.begin();
      for (std::size_t slot = 0; slot < top_k; ++slot) {
        if (given[slot] >= 0) route.weights[row * top_k + slot] = *weight++;
      }
    });
  });
  error.rethrow();
  return route;
}

std::optional<std::string> selection_fault(const RoutingKernel& kernel, const Routing& routing,
                                           std::span<const float> logits,
                                           std::span<const float> bias,
                                           std::span<const std::int32_t> ids) {
  const simd::DefaultFloatEnvironment environment;
  const auto experts = static_cast<std::int64_t>(logits.size());
  const Route expected = route_logits_as(kernel, routing, logits, experts, bias, 1);
  if (std::ssize(ids) != routing.top_k) {
    return fmt::format("{} ids, top_k is {}", ids.size(), routing.top_k);
  }
  std::vector<bool> seen(logits.size(), false);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= experts) return fmt::format("id {} is not in [0, {})", id, experts);
    if (seen[static_cast<std::size_t>(id)]) return fmt::format("expert {} is named twice", id);
    seen[static_cast<std::size_t>(id)] = true;
  }
  if (kernel.ties != TieRule::unspecified) {
    const auto wrong = std::mismatch(ids.begin(), ids.end(), expected.ids.begin());
    if (wrong.first == ids.end()) return std::nullopt;
    return fmt::format("slot {} has expert {}, needs {}", wrong.first - ids.begin(), *wrong.first,
                       *wrong.second);
  }
  const TokenRouter router(kernel, routing, bias);
  TokenScratch scratch;
  router.score(0, logits, scratch);
  return open_selection_fault(kernel, router.choices(scratch), ids);
}

std::vector<std::uint32_t> pack_route(const Route& route) {
  std::vector<std::uint32_t> words;
  for (std::size_t i = 0; i < route.ids.size(); ++i) {
    const auto weight = std::bit_cast<std::uint32_t>(cast<Format::bf16>(route.weights[i])) >> 16;
    words.push_back(static_cast<std::uint32_t>(route.ids[i]) << 16 | weight);
  }
  return words;
}

Route unpack_route(std::span<const std::uint32_t> words, std::int64_t top_k) {
  if (top_k < 1 || std::ssize(words) % top_k != 0) {
    fail("packed routing", "{} words are not whole tokens of {} slots", words.size(), top_k);
  }
  Route route{std::ssize(words) / top_k, top_k, {}, {}};
  for (const std::uint32_t word : words) {
    route.ids.push_back(static_cast<std::int16_t>(word >> 16));
    route.weights.push_back(std::bit_cast<float>(word << 16));
  }
  return route;
}

}  // namespace moeref
