#include "engine/routing.hpp"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>

#include "engine/first_error.hpp"
#include "engine/routing_scores.hpp"
#include "engine/routing_select.hpp"
#include "quant/error.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

// Sums and products of two f32 below are one rounding each only if f32 arithmetic is done in f32.
static_assert(FLT_EVAL_METHOD == 0);

enum class Score : std::uint8_t { logit, softmax, sigmoid, sqrt_softplus };
enum class Weight : std::uint8_t { score, share_if_asked, share, sigmoid, softmax_of_chosen };

struct MethodRules {
  RoutingMethod method;
  std::string_view name;
  Score score;
  bool biased;  ///< the choice value is score + bias
  Weight weight;
};

constexpr std::array kMethods{
    MethodRules{RoutingMethod::softmax_topk, "softmax_topk", Score::softmax, false,
                Weight::share_if_asked},
    MethodRules{RoutingMethod::topk_softmax, "topk_softmax", Score::logit, false,
                Weight::softmax_of_chosen},
    MethodRules{RoutingMethod::deepseek_v3, "deepseek_v3", Score::sigmoid, true,
                Weight::share_if_asked},
    MethodRules{RoutingMethod::llama4, "llama4", Score::logit, false, Weight::sigmoid},
    MethodRules{RoutingMethod::topk_logits, "topk_logits", Score::logit, false, Weight::score},
    MethodRules{RoutingMethod::sigmoid_topk, "sigmoid_topk", Score::sigmoid, false,
                Weight::share_if_asked},
    MethodRules{RoutingMethod::minimax2, "minimax2", Score::sigmoid, true, Weight::share},
    MethodRules{RoutingMethod::sqrt_softplus, "sqrt_softplus", Score::sqrt_softplus, true,
                Weight::share},
};

const MethodRules& rules_of(RoutingMethod method) {
  return *std::find_if(kMethods.begin(), kMethods.end(),
                       [method](const MethodRules& rules) { return rules.method == method; });
}

constexpr std::string_view kLogits = "router logits";
constexpr std::string_view kBias = "router selection bias";
constexpr std::string_view kRouting = "routing";
constexpr float kSmallestScaling = 0x1p-64f;

// ----------------------------------------------------------------------- checks before any thread

void check_parameters(const Routing& routing, std::int64_t experts) {
  if (experts < 1 || experts > std::numeric_limits<std::int32_t>::max()) {
    fail(kRouting, "has {} experts, needs 1 to 2^31 - 1; check the router weight's rows", experts);
  }
  if (routing.top_k < 1 || routing.top_k > experts) {
    fail(kRouting, "top_k is {}, needs 1 to the number of experts, {}; correct num_experts_per_tok",
         routing.top_k, experts);
  }
  if (!(routing.scaling >= kSmallestScaling && std::isfinite(routing.scaling))) {
    fail(kRouting,
         "scaling is {}, needs a finite factor of at least 2^-64; correct routed_scaling_factor (1 "
         "if the model has none)",
         routing.scaling);
  }
  if (!(routing.sum_epsilon >= 0.0f && std::isfinite(routing.sum_epsilon))) {
    fail(kRouting, "sum_epsilon is {}, needs a finite number of at least 0", routing.sum_epsilon);
  }
}

void check_groups(const Routing& routing, std::int64_t experts) {
  const std::int64_t groups = routing.groups;
  if (groups < 1 || experts % groups != 0) {
    fail(kRouting, "{} experts do not form {} equal groups; correct n_group", experts, groups);
  }
  if (routing.kept_groups < 1 || routing.kept_groups > groups) {
    fail(kRouting, "keeps {} of {} groups, needs 1 to {}; correct topk_group", routing.kept_groups,
         groups, groups);
  }
  if (groups > 1 && routing.kept_groups < groups && routing.method != RoutingMethod::deepseek_v3) {
    fail(kRouting,
         "method {} knows no groups, but {} of {} are to be kept; use deepseek_v3 or one "
         "group",
         rules_of(routing.method).name, routing.kept_groups, groups);
  }
  const std::int64_t unmasked = experts / groups * routing.kept_groups;
  if (routing.mask_fill == MaskFill::minus_infinity && unmasked < routing.top_k) {
    fail(kRouting,
         "the {} kept groups hold {} experts, fewer than top_k {}; keep more groups or lower top_k",
         routing.kept_groups, unmasked, routing.top_k);
  }
}

std::int64_t check_logits(std::span<const float> logits, std::int64_t experts) {
  const auto width = static_cast<std::size_t>(experts);
  if (logits.size() % width != 0) {
    fail(kLogits, "{} values are not whole rows of {} experts; pass [tokens, experts]",
         logits.size(), experts);
  }
  const auto nan =
      std::find_if(logits.begin(), logits.end(), [](float z) { return std::isnan(z); });
  if (nan != logits.end()) {
    const auto index = static_cast<std::size_t>(nan - logits.begin());
    fail(kLogits,
         "token {}, expert {} is NaN, needs a number; look for NaN or infinity in that token's "
         "hidden state and that expert's router row",
         index / width, index % width);
  }
  return static_cast<std::int64_t>(logits.size() / width);
}

void check_bias(const Routing& routing, std::span<const float> bias, std::int64_t experts) {
  if (bias.empty()) return;
  const MethodRules& rules = rules_of(routing.method);
  if (!rules.biased) {
    fail(kBias, "method {} selects without a bias, but one of {} values is given; pass none",
         rules.name, bias.size());
  }
  if (bias.size() != static_cast<std::size_t>(experts)) {
    fail(kBias, "has {} values, needs one for each of {} experts", bias.size(), experts);
  }
  for (std::size_t e = 0; e < bias.size(); ++e) {
    if (std::isnan(bias[e]) || bias[e] == std::numeric_limits<float>::infinity()) {
      fail(kBias, "expert {} is {}, needs a number below infinity; correct the checkpoint", e,
           std::isnan(bias[e]) ? "NaN" : "+infinity");
    }
  }
}

void check_id(std::string_view subject, std::int32_t id, std::int64_t experts, std::size_t index,
              std::int64_t top_k) {
  if (id >= -1 && id < experts) return;
  const auto width = static_cast<std::size_t>(top_k);
  fail(subject, "token {}, slot {} names expert {}, needs 0 to {}, or -1 for none", index / width,
       index % width, id, experts - 1);
}

// -------------------------------------------------------------------------------------- one token

struct TokenScratch {
  std::vector<float> scores;
  std::vector<float> choices;
  SelectionScratch selection;
  std::vector<float> chosen;   ///< score or logit of each slot that has an expert
  std::vector<float> weights;  ///< of the same slots
};

/// `logits` enter one softmax: of a whole row (`ids` empty) or of the experts in `ids`.
void softmax_of(std::int64_t token, std::span<const float> logits,
                std::span<const std::int32_t> ids, float factor, std::span<float> out) {
  bool finite = false;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    finite = finite || std::isfinite(logits[i]);
    if (logits[i] == std::numeric_limits<float>::infinity()) {
      fail(kLogits,
           "token {}, expert {} is +infinity, a softmax needs less (infinity / infinity is NaN); "
           "look for an overflow in that token's hidden state and that expert's router row",
           token, ids.empty() ? static_cast<std::int64_t>(i) : ids[i]);
    }
  }
  if (!finite) {
    fail(kLogits,
         "token {}: all {} logits of its softmax are -infinity, one at least must be finite (0 / 0 "
         "is NaN); leave an expert unmasked",
         token, logits.size());
  }
  softmax_times(logits, factor, out);
}

void score_token(const MethodRules& rules, std::int64_t token, std::span<const float> logits,
                 std::vector<float>& scores) {
  scores.assign(logits.begin(), logits.end());
  switch (rules.score) {
    case Score::logit:
      return;
    case Score::softmax:
      softmax_of(token, logits, {}, 1.0f, scores);
      return;
    case Score::sigmoid:
      for (float& score : scores) score = sigmoid_times(score, 1.0f);
      return;
    case Score::sqrt_softplus:
      for (std::size_t e = 0; e < scores.size(); ++e) {
        if (scores[e] == std::numeric_limits<float>::infinity()) {
          fail(
              kLogits,
              "token {}, expert {} is +infinity, softplus needs less; look for an overflow in that "
              "token's hidden state and that expert's router row",
              token, e);
        }
        scores[e] = sqrt_softplus(scores[e]);
      }
      return;
  }
}

/// Weights of the experts in `ids`, none of them -1.
void weigh_chosen(const MethodRules& rules, const Routing& routing, std::int64_t token,
                  std::span<const std::int32_t> ids, TokenScratch& scratch) {
  const std::size_t count = ids.size();
  scratch.chosen.resize(count);
  scratch.weights.resize(count);
  for (std::size_t slot = 0; slot < count; ++slot) {
    scratch.chosen[slot] = scratch.scores[static_cast<std::size_t>(ids[slot])];
  }
  const bool shares = rules.weight == Weight::share ||
                      (rules.weight == Weight::share_if_asked && routing.renormalize);
  if (rules.weight == Weight::softmax_of_chosen) {
    softmax_of(token, scratch.chosen, ids, routing.scaling, scratch.weights);
  } else if (rules.weight == Weight::sigmoid) {
    for (std::size_t slot = 0; slot < count; ++slot) {
      scratch.weights[slot] = sigmoid_times(scratch.chosen[slot], routing.scaling);
    }
  } else if (!shares) {
    for (std::size_t slot = 0; slot < count; ++slot) {
      scratch.weights[slot] = scratch.chosen[slot] * routing.scaling;
    }
  } else if (!shares_times(scratch.chosen, routing.sum_epsilon, routing.scaling, scratch.weights)) {
    fail(kLogits,
         "token {}: the scores of its {} chosen experts are all 0 and cannot be divided by their "
         "sum; set sum_epsilon, or look at logits this low",
         token, count);
  }
}

}  // namespace

std::string_view name(RoutingMethod method) { return rules_of(method).name; }

Route route_logits(const Routing& routing, std::span<const float> logits, std::int64_t experts,
                   std::span<const float> selection_bias, int threads) {
  const simd::DefaultFloatEnvironment environment;
  check_parameters(routing, experts);
  check_groups(routing, experts);
  check_bias(routing, selection_bias, experts);
  const std::int64_t tokens = check_logits(logits, experts);
  const MethodRules& rules = rules_of(routing.method);
  const auto width = static_cast<std::size_t>(experts);
  const auto top_k = static_cast<std::size_t>(routing.top_k);

  Route route{tokens, routing.top_k, {}, {}};
  route.ids.resize(static_cast<std::size_t>(tokens) * top_k);
  route.weights.resize(route.ids.size());
  FirstError error;
  parallel_for<TokenScratch>(tokens, threads, [&](std::int64_t token, TokenScratch& scratch) {
    error.guard(token, [&] {
      const auto row = static_cast<std::size_t>(token);
      score_token(rules, token, logits.subspan(row * width, width), scratch.scores);
      scratch.choices = scratch.scores;
      for (std::size_t e = 0; e < selection_bias.size(); ++e) {
        scratch.choices[e] += selection_bias[e];
      }
      select_experts(routing, scratch.choices, scratch.selection);
      const auto& ids = scratch.selection.order;
      weigh_chosen(rules, routing, token, ids, scratch);
      std::copy(ids.begin(), ids.end(), &route.ids[row * top_k]);
      std::copy(scratch.weights.begin(), scratch.weights.end(), &route.weights[row * top_k]);
    });
  });
  error.rethrow();
  return route;
}

Route weigh_given_experts(const Routing& routing, std::span<const float> logits,
                          std::int64_t experts, std::span<const std::int32_t> ids, int threads) {
  const simd::DefaultFloatEnvironment environment;
  check_parameters(routing, experts);
  const std::int64_t tokens = check_logits(logits, experts);
  const MethodRules& rules = rules_of(routing.method);
  const auto width = static_cast<std::size_t>(experts);
  const auto top_k = static_cast<std::size_t>(routing.top_k);
  constexpr std::string_view kGiven = "given expert ids";
  if (ids.size() != static_cast<std::size_t>(tokens) * top_k) {
    fail(kGiven, "{} values, needs [{}, {}], one row for each row of the logits", ids.size(),
         tokens, routing.top_k);
  }
  for (std::size_t i = 0; i < ids.size(); ++i) check_id(kGiven, ids[i], experts, i, routing.top_k);

  Route route{tokens, routing.top_k, {ids.begin(), ids.end()}, {}};
  route.weights.resize(ids.size());
  FirstError error;
  parallel_for<TokenScratch>(tokens, threads, [&](std::int64_t token, TokenScratch& scratch) {
    error.guard(token, [&] {
      const auto row = static_cast<std::size_t>(token);
      const std::span given = ids.subspan(row * top_k, top_k);
      auto& present = scratch.selection.order;
      present.clear();
      std::copy_if(given.begin(), given.end(), std::back_inserter(present),
                   [](std::int32_t id) { return id >= 0; });
      if (present.empty()) return;
      score_token(rules, token, logits.subspan(row * width, width), scratch.scores);
      weigh_chosen(rules, routing, token, present, scratch);
      auto weight = scratch.weights.begin();
      for (std::size_t slot = 0; slot < top_k; ++slot) {
        if (given[slot] >= 0) route.weights[row * top_k + slot] = *weight++;
      }
    });
  });
  error.rethrow();
  return route;
}

void check_route(const Route& route, std::int64_t experts, const std::string& subject) {
  const auto top_k = static_cast<std::size_t>(route.top_k);
  if (route.tokens < 0 || route.top_k < 1) {
    fail(subject, "is [{}, {}], needs [tokens, top_k] with top_k of at least 1", route.tokens,
         route.top_k);
  }
  if (route.ids.size() % top_k != 0 ||
      route.ids.size() / top_k != static_cast<std::size_t>(route.tokens) ||
      route.weights.size() != route.ids.size()) {
    fail(subject, "has {} ids and {} weights, needs [{}, {}] of each", route.ids.size(),
         route.weights.size(), route.tokens, route.top_k);
  }
  constexpr std::size_t kNowhere = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> last_seen(static_cast<std::size_t>(std::max<std::int64_t>(experts, 0)),
                                     kNowhere);
  for (std::size_t i = 0; i < route.ids.size(); ++i) {
    const std::int32_t id = route.ids[i];
    const std::size_t token = i / top_k;
    check_id(subject, id, experts, i, route.top_k);
    if (id < 0) continue;
    if (std::isnan(route.weights[i])) {
      fail(subject, "token {}, slot {} has the weight NaN, needs a number", token, i % top_k);
    }
    std::size_t& seen = last_seen[static_cast<std::size_t>(id)];
    if (seen != kNowhere && seen / top_k == token) {
      fail(subject, "token {} names expert {} in slots {} and {}, needs each expert once", token,
           id, seen % top_k, i % top_k);
    }
    seen = i;
  }
}

}  // namespace moeref
