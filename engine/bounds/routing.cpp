#include "engine/bounds/routing.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "engine/bounds/functions.hpp"
#include "quant/error.hpp"

namespace moeref::bounds {
namespace {

enum class Score : std::uint8_t { logit, sigmoid, sqrt_softplus };
/// Which numbers become weights.
enum class Weight : std::uint8_t { softmax_of_all, softmax_of_chosen, score, sigmoid_of_logit };

/// One row a routing method; what differs between them is data.
struct MethodRules {
  RoutingMethod method;
  Score score;  ///< selects, with the bias
  Weight weight;
  bool groups;        ///< experts outside the kept groups are masked
  bool renormalizes;  ///< always, whatever `Routing::renormalize` says
};

constexpr std::array kMethods{
    MethodRules{RoutingMethod::softmax_topk, Score::logit, Weight::softmax_of_all, false, false},
    MethodRules{RoutingMethod::topk_softmax, Score::logit, Weight::softmax_of_chosen, false, true},
    MethodRules{RoutingMethod::deepseek_v3, Score::sigmoid, Weight::score, true, false},
    MethodRules{RoutingMethod::llama4, Score::logit, Weight::sigmoid_of_logit, false, false},
    MethodRules{RoutingMethod::topk_logits, Score::logit, Weight::score, false, false},
    MethodRules{RoutingMethod::sigmoid_topk, Score::sigmoid, Weight::score, false, false},
    MethodRules{RoutingMethod::minimax2, Score::sigmoid, Weight::score, false, true},
    MethodRules{RoutingMethod::sqrt_softplus, Score::sqrt_softplus, Weight::score, false, false},
};

const MethodRules& rules_of(RoutingMethod method) {
  return *std::find_if(kMethods.begin(), kMethods.end(),
                       [&](const MethodRules& rules) { return rules.method == method; });
}

/// Methods that never divide by the sum, whatever the flag says.
bool divides_by_sum(const Routing& routing, const MethodRules& rules) {
  if (routing.method == RoutingMethod::llama4 || routing.method == RoutingMethod::topk_logits) {
    return false;
  }
  return rules.renormalizes || routing.renormalize;
}

Bounded score_of(const Arithmetic& arithmetic, Score score, const Bounded& logit) {
  switch (score) {
    case Score::logit:
      return logit;
    case Score::sigmoid:
      return sigmoid(arithmetic, logit);
    case Score::sqrt_softplus:
      return square_root(arithmetic, softplus(arithmetic, logit));
  }
  return logit;
}

std::vector<Bounded> row_of(const BoundedMatrix& matrix, std::int64_t row) {
  std::vector<Bounded> elements;
  elements.reserve(static_cast<std::size_t>(matrix.cols));
  for (std::int64_t col = 0; col < matrix.cols; ++col) elements.push_back(matrix.at(row, col));
  return elements;
}

/// Sum of the two largest values of one group.
double group_score(std::span<const double> choices) {
  std::vector<double> sorted(choices.begin(), choices.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  return sorted.size() == 1 ? sorted[0] : sorted[0] + sorted[1];
}

std::vector<std::int32_t> largest_indices(std::span<const double> values, std::int64_t count) {
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t left, std::int32_t right) {
    return values[static_cast<std::size_t>(left)] > values[static_cast<std::size_t>(right)];
  });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// The choices with every expert outside the kept groups replaced by the fill value.
std::vector<double> mask_groups(const Routing& routing, std::span<const double> choices) {
  const std::size_t groups = static_cast<std::size_t>(routing.groups);
  const std::size_t width = choices.size() / groups;
  std::vector<double> scores;
  for (std::size_t group = 0; group < groups; ++group) {
    scores.push_back(group_score(choices.subspan(group * width, width)));
  }
  const double fill =
      routing.mask_fill == MaskFill::zero ? 0.0 : -std::numeric_limits<double>::infinity();
  std::vector<double> masked(choices.size(), fill);
  for (const std::int32_t kept : largest_indices(scores, routing.kept_groups)) {
    const std::size_t begin = static_cast<std::size_t>(kept) * width;
    std::copy_n(choices.begin() + static_cast<std::ptrdiff_t>(begin), width,
                masked.begin() + static_cast<std::ptrdiff_t>(begin));
  }
  return masked;
}

void check_sizes(const Routing& routing, std::int64_t experts) {
  if (routing.top_k < 1 || routing.top_k > experts) {
    fail("routing", "top_k {} does not fit {} experts", routing.top_k, experts);
  }
  if (routing.groups < 1 || experts % routing.groups != 0 || routing.kept_groups < 1 ||
      routing.kept_groups > routing.groups) {
    fail("routing", "{} of {} groups do not fit {} experts", routing.kept_groups, routing.groups,
         experts);
  }
}

/// Weights of the chosen experts of one token, routed scaling included.
std::vector<Bounded> weights_of(const Arithmetic& arithmetic, const Routing& routing,
                                const std::vector<Bounded>& logits,
                                std::span<const std::int32_t> chosen) {
  const MethodRules& rules = rules_of(routing.method);
  const bool divides = divides_by_sum(routing, rules);
  const Bounded scaling = constant(arithmetic, routing.scaling);
  const Bounded epsilon = divides ? constant(arithmetic, routing.sum_epsilon) : exact(0.0);
  const auto pick = [&](const std::vector<Bounded>& all) {
    std::vector<Bounded> picked;
    for (const std::int32_t id : chosen) picked.push_back(all[static_cast<std::size_t>(id)]);
    return picked;
  };
  const auto scaled = [&](std::vector<Bounded> weights) {
    if (scaling.value == 1.0) return weights;
    for (Bounded& weight : weights) weight = multiply(arithmetic, weight, scaling);
    return weights;
  };
  switch (rules.weight) {
    case Weight::softmax_of_chosen:
      return shares(arithmetic, softmax_numerators(arithmetic, pick(logits)), exact(0.0), scaling);
    case Weight::softmax_of_all: {
      const std::vector<Bounded> numerators = softmax_numerators(arithmetic, logits);
      if (!divides) return pick(shares(arithmetic, numerators, exact(0.0), scaling));
      // The sum over all experts is a common factor of the chosen shares; each was rounded when
      // divided by it.
      double sum = 0.0;
      for (const Bounded& numerator : numerators) sum += numerator.value + numerator.stored;
      std::vector<Bounded> chosen_numerators = pick(numerators);
      for (Bounded& numerator : chosen_numerators) {
        numerator = with_errors(
            numerator.value, arithmetic, [&](const RoundingModel& model, Channel error) {
              const double above = numerator.value + numerator.*error;
              return numerator.*error + model.gamma(1.0) * above + 2.0 * model.tiny * sum;
            });
      }
      Bounded scaled_epsilon = epsilon;
      scaled_epsilon.value *= sum;
      scaled_epsilon.stored = scaled_epsilon.own =
          scaled_epsilon.value;  // the sum is known to a factor of two at least
      return shares(arithmetic, chosen_numerators, scaled_epsilon, scaling);
    }
    case Weight::score: {
      std::vector<Bounded> scores;
      for (const Bounded& logit : pick(logits)) {
        scores.push_back(score_of(arithmetic, rules.score, logit));
      }
      return divides ? shares(arithmetic, scores, epsilon, scaling) : scaled(scores);
    }
    case Weight::sigmoid_of_logit: {
      std::vector<Bounded> scores;
      for (const Bounded& logit : pick(logits)) scores.push_back(sigmoid(arithmetic, logit));
      return scaled(scores);
    }
  }
  return {};
}

}  // namespace

BoundedRoute exact_route(std::span<const std::int32_t> ids, std::span<const double> weights,
                         std::int64_t tokens, std::int64_t top_k) {
  const auto slots = static_cast<std::size_t>(tokens * top_k);
  if (ids.size() != slots || weights.size() != slots) {
    fail("route", "{} ids and {} weights, needs {} tokens x {} slots", ids.size(), weights.size(),
         tokens, top_k);
  }
  BoundedRoute route{tokens, top_k, {ids.begin(), ids.end()}, {}};
  for (const double weight : weights) route.weights.push_back(exact(weight));
  return route;
}

BoundedMatrix router_logits(const Arithmetic& arithmetic, const MoeLayer& layer,
                            const BoundedMatrix& hidden) {
  return linear(arithmetic, layer.router, layer.router_bias, hidden);
}

BoundedMatrix choice_values(const Arithmetic& arithmetic, const MoeLayer& layer,
                            const BoundedMatrix& logits, const BoundedMatrix& selection_bias) {
  const MethodRules& rules = rules_of(layer.routing.method);
  check_sizes(layer.routing, logits.cols);
  if (selection_bias.cols != 0 && selection_bias.cols != logits.cols) {
    fail("selection bias", "has {} elements, the layer has {} experts", selection_bias.cols,
         logits.cols);
  }
  BoundedMatrix choices(logits.rows, logits.cols);
  for (std::int64_t token = 0; token < logits.rows; ++token) {
    for (std::int64_t expert = 0; expert < logits.cols; ++expert) {
      Bounded choice = score_of(arithmetic, rules.score, logits.at(token, expert));
      if (selection_bias.cols != 0) {
        choice = add(arithmetic, choice, selection_bias.at(0, expert));
      }
      choices.set(token, expert, choice);
    }
  }
  return choices;
}

std::vector<std::int32_t> choose(const Routing& routing, std::span<const double> choices) {
  check_sizes(routing, static_cast<std::int64_t>(choices.size()));
  if (!rules_of(routing.method).groups || routing.groups == 1) {
    return largest_indices(choices, routing.top_k);
  }
  return largest_indices(mask_groups(routing, choices), routing.top_k);
}

bool may_choose(const Routing& routing, const BoundedMatrix& choices, std::int64_t token,
                std::span<const std::int32_t> ids) {
  const std::vector<std::int32_t> wanted = [&] {
    std::vector<std::int32_t> sorted(ids.begin(), ids.end());
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }();
  if (std::adjacent_find(wanted.begin(), wanted.end()) != wanted.end()) return false;
  const auto chosen_set = [&](double reach) {
    std::vector<double> nudged;
    for (std::int64_t expert = 0; expert < choices.cols; ++expert) {
      const Bounded choice = choices.at(token, expert);
      const bool is_wanted =
          std::binary_search(wanted.begin(), wanted.end(), static_cast<std::int32_t>(expert));
      const double distance = reach * (choice.stored + choice.own);
      nudged.push_back(choice.value + (is_wanted ? distance : -distance));
    }
    std::vector<std::int32_t> chosen = choose(routing, nudged);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  };
  // The values as they are, or the most favourable ones within their errors: an evaluation may have
  // had either.
  return chosen_set(0.0) == wanted || chosen_set(1.0) == wanted;
}

BoundedRoute weigh(const Arithmetic& arithmetic, const MoeLayer& layer, const BoundedMatrix& logits,
                   std::span<const std::int32_t> ids, std::int64_t top_k) {
  if (static_cast<std::int64_t>(ids.size()) != logits.rows * top_k) {
    fail("route", "{} ids, needs {} tokens x {} slots", ids.size(), logits.rows, top_k);
  }
  BoundedRoute route{logits.rows, top_k, {ids.begin(), ids.end()}, {}};
  for (std::int64_t token = 0; token < logits.rows; ++token) {
    const auto chosen =
        ids.subspan(static_cast<std::size_t>(token * top_k), static_cast<std::size_t>(top_k));
    for (const std::int32_t id : chosen) {
      if (id < 0 || id >= logits.cols) {
        fail("route", "token {}: expert {} outside the {} experts of the layer", token, id,
             logits.cols);
      }
    }
    for (const Bounded& weight :
         weights_of(arithmetic, layer.routing, row_of(logits, token), chosen)) {
      route.weights.push_back(weight);
    }
  }
  return route;
}

std::vector<std::int32_t> look_up_experts(const MoeLayer& layer,
                                          std::span<const std::int64_t> input_ids) {
  const TensorView& table = layer.expert_table;
  if (table.bytes.empty())
    fail("input_ids", "layer {} has no table of experts by token id", layer.layer);
  const std::int64_t vocabulary = table.shape.at(0);
  const std::int64_t top_k = table.shape.at(1);
  std::vector<std::int32_t> ids;
  for (const std::int64_t input_id : input_ids) {
    if (input_id < 0 || input_id >= vocabulary) {
      fail("input_ids", "token id {} outside the vocabulary of {} in {}", input_id, vocabulary,
           table.name);
    }
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      ids.push_back(static_cast<std::int32_t>(table.at<std::int64_t>(input_id * top_k + slot)));
    }
  }
  return ids;
}

}  // namespace moeref::bounds
