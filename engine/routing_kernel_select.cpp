#include "engine/routing_kernel_select.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "engine/routing_arithmetic.hpp"

namespace moeref {
namespace {

constexpr std::int32_t kLanes = 32;

std::int32_t reversed(std::int32_t five_bits) {
  std::int32_t result = 0;
  for (int bit = 0; bit < 5; ++bit) result |= (five_bits >> bit & 1) << (4 - bit);
  return result;
}

/// Orders equal values: the smaller rank comes first.
std::int32_t tie_rank(TieRule rule, std::int32_t index) {
  if (rule != TieRule::reversed_lanes) return index;
  return reversed(index / kLanes) * kLanes + reversed(index % kLanes);
}

/// -1, 0, 1 as `left` is below, equal to, above `right`.
int compare(bool minus_zero_first, float left, float right) {
  if (left < right) return -1;
  if (left > right) return 1;
  if (!minus_zero_first) return 0;
  return static_cast<int>(std::signbit(right)) - static_cast<int>(std::signbit(left));
}

/// The total order in which a kernel takes values.
class Order {
 public:
  Order(const RoutingKernel& kernel, TieRule ties, std::span<const float> values)
      : minus_zero_first_(kernel.minus_zero_first), ties_(ties), values_(values) {}

  /// Whether index `left` is taken before `right`.
  bool operator()(std::int32_t left, std::int32_t right) const {
    const int order = compare(minus_zero_first_, values_[static_cast<std::size_t>(left)],
                              values_[static_cast<std::size_t>(right)]);
    if (order != 0) return order > 0;
    return tie_rank(ties_, left) < tie_rank(ties_, right);
  }

 private:
  bool minus_zero_first_;
  TieRule ties_;
  std::span<const float> values_;
};

float group_score(const RoutingKernel& kernel, std::span<const float> choices) {
  std::vector<float> sorted(choices.begin(), choices.end());
  std::partial_sort(sorted.begin(),
                    sorted.begin() + std::min<std::ptrdiff_t>(2, std::ssize(sorted)), sorted.end(),
                    std::greater<>());
  if (kernel.group_score == GroupScore::largest || sorted.size() == 1) return sorted[0];
  const RoutingMath math(kernel.arithmetic);
  return in_type(kernel.choice_type, kernel.logits, math.add(sorted[0], sorted[1]));
}

std::vector<std::int32_t> best_groups(const RoutingKernel& kernel, std::span<const float> scores,
                                      std::int64_t count) {
  const Order before(kernel, TieRule::lower_index, scores);
  std::vector<std::int32_t> groups(scores.size());
  for (std::size_t g = 0; g < groups.size(); ++g) groups[g] = static_cast<std::int32_t>(g);
  if (kernel.group_order == GroupOrder::keep_best) {
    std::sort(groups.begin(), groups.end(), before);
    groups.resize(static_cast<std::size_t>(count));
    return groups;
  }
  while (std::ssize(groups) > count) {
    groups.erase(std::max_element(groups.begin(), groups.end(), before));
  }
  return groups;
}

void score_groups(const RoutingKernel& kernel, const RoutingChoices& choices,
                  std::vector<float>& scores) {
  scores.resize(static_cast<std::size_t>(choices.groups));
  const std::size_t width = choices.values.size() / scores.size();
  for (std::size_t g = 0; g < scores.size(); ++g) {
    scores[g] = group_score(kernel, choices.values.subspan(g * width, width));
  }
}

void keep_groups(const RoutingKernel& kernel, const RoutingChoices& choices,
                 KernelSelection& selection) {
  score_groups(kernel, choices, selection.group_scores);
  const std::size_t width = choices.values.size() / selection.group_scores.size();
  selection.kept.assign(choices.values.size(), false);
  for (const std::int32_t g : best_groups(kernel, selection.group_scores, choices.kept_groups)) {
    const auto first = selection.kept.begin() +
                       static_cast<std::ptrdiff_t>(g) * static_cast<std::ptrdiff_t>(width);
    std::fill(first, first + static_cast<std::ptrdiff_t>(width), true);
  }
}

/// The largest of each lane, found by comparisons from -infinity and expert 0 on.
std::vector<std::int32_t> lane_winners(std::span<const float> values) {
  std::vector<std::int32_t> winners;
  for (std::size_t lane = 0; lane < static_cast<std::size_t>(kLanes); ++lane) {
    float largest = -std::numeric_limits<float>::infinity();
    std::int32_t winner = 0;
    for (std::size_t e = lane; e < values.size(); e += static_cast<std::size_t>(kLanes)) {
      if (values[e] > largest) {
        largest = values[e];
        winner = static_cast<std::int32_t>(e);
      }
    }
    winners.push_back(winner);
  }
  return winners;
}

}  // namespace

void select_as(const RoutingKernel& kernel, const RoutingChoices& choices,
               KernelSelection& selection) {
  selection.kept.clear();
  if (choices.kept_groups < choices.groups) keep_groups(kernel, choices, selection);

  std::span<const float> values = choices.values;
  std::vector<std::int32_t>& order = selection.order;
  order.clear();
  if (kernel.lanes_first) {
    order = lane_winners(values);
  } else {
    const bool all = selection.kept.empty() || kernel.mask_fill == MaskFill::zero;
    for (std::size_t e = 0; e < values.size(); ++e) {
      if (all || selection.kept[e]) order.push_back(static_cast<std::int32_t>(e));
    }
  }
  if (!selection.kept.empty() && kernel.mask_fill == MaskFill::zero) {
    selection.masked.assign(values.begin(), values.end());
    for (std::size_t e = 0; e < values.size(); ++e) {
      if (!selection.kept[e]) selection.masked[e] = 0.0f;
    }
    values = selection.masked;
  }
  const auto count = static_cast<std::ptrdiff_t>(choices.top_k);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    Order(kernel, kernel.ties, values));
  order.resize(static_cast<std::size_t>(count));
  if (kernel.slots == SlotOrder::rising_id) std::sort(order.begin(), order.end());
}

// ------------------------------------------------------------------ choices that may be made at
// all

namespace {

/// A choice of `top_k` experts, and the values that decide whether it may be made.
struct OpenChoice {
  const RoutingKernel& kernel;
  const RoutingChoices& choices;
  std::vector<bool> chosen;  ///< [experts]

  float value(std::size_t expert) const { return choices.values[expert]; }

  /// The best expert of a group that is not chosen; nothing if all are.
  std::optional<std::size_t> best_left_out(std::size_t first, std::size_t width) const {
    std::optional<std::size_t> best;
    for (std::size_t e = first; e < first + width; ++e) {
      if (chosen[e]) continue;
      if (!best || compare(kernel.minus_zero_first, value(e), value(*best)) > 0) best = e;
    }
    return best;
  }

  std::optional<std::size_t> worst_chosen() const {
    std::optional<std::size_t> worst;
    for (std::size_t e = 0; e < chosen.size(); ++e) {
      if (!chosen[e]) continue;
      if (!worst || compare(kernel.minus_zero_first, value(e), value(*worst)) < 0) worst = e;
    }
    return worst;
  }
};

std::string better_left_out(const OpenChoice& choice, std::size_t better, std::size_t worse) {
  return fmt::format("expert {} with the choice value {} is left out, but {} with {} is in", better,
                     choice.value(better), worse, choice.value(worse));
}

/// What the groups can be: above the limit they stay, below they go, of those at it any `open`
/// stay.
struct OpenGroups {
  std::vector<float> scores;
  float limit = 0.0f;
  std::int64_t open = 0;
  std::size_t width = 0;

  bool stays(std::size_t group) const { return scores[group] > limit; }
  bool goes(std::size_t group) const { return scores[group] < limit; }
};

OpenGroups open_groups(const RoutingKernel& kernel, const RoutingChoices& choices) {
  OpenGroups groups;
  score_groups(kernel, choices, groups.scores);
  groups.width = choices.values.size() / groups.scores.size();
  std::vector<float> sorted = groups.scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  groups.limit = sorted[static_cast<std::size_t>(choices.kept_groups) - 1];
  groups.open =
      choices.kept_groups - std::count_if(sorted.begin(), sorted.end(),
                                          [&groups](float score) { return score > groups.limit; });
  return groups;
}

/// Masked with -infinity: the chosen experts lie in groups that stay, and none better is left out.
std::optional<std::string> masked_fault(const OpenChoice& choice, const OpenGroups& groups) {
  const std::size_t worst = *choice.worst_chosen();
  std::int64_t used = 0;   // open groups with a chosen expert
  std::int64_t spare = 0;  // open groups that may stay without one
  for (std::size_t g = 0; g < groups.scores.size(); ++g) {
    const std::size_t first = g * groups.width;
    const auto begin = choice.chosen.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = begin + static_cast<std::ptrdiff_t>(groups.width);
    const auto in_group = std::find(begin, end, true);
    if (groups.goes(g)) {
      if (in_group == end) continue;
      return fmt::format(
          "expert {} lies in group {} with the score {}, which cannot stay: {} have more",
          in_group - choice.chosen.begin(), g, groups.scores[g], choice.choices.kept_groups);
    }
    const std::optional<std::size_t> best = choice.best_left_out(first, groups.width);
    const bool better = best && compare(choice.kernel.minus_zero_first, choice.value(*best),
                                        choice.value(worst)) > 0;
    if (better && (groups.stays(g) || in_group != end))
      return better_left_out(choice, *best, worst);
    if (groups.stays(g)) continue;
    if (in_group != end) {
      ++used;
    } else if (!better) {
      ++spare;
    }
  }
  if (used > groups.open) {
    return fmt::format("its experts lie in {} of the groups with the score {}, of which {} stay",
                       used, groups.limit, groups.open);
  }
  if (used + spare < groups.open) {
    return fmt::format(
        "{} of the groups with the score {} stay, and all but {} of them have a better expert",
        groups.open, groups.limit, used + spare);
  }
  return std::nullopt;
}

/// Masked with 0, for choice values of at least 0: either the choice is one under -infinity, or it
/// has every positive value of some groups that may stay, and anything else.
std::optional<std::string> zero_masked_fault(const OpenChoice& choice, const OpenGroups& groups) {
  std::optional<std::string> fault = masked_fault(choice, groups);
  if (!fault) return fault;
  std::int64_t may_stay = 0;
  for (std::size_t g = 0; g < groups.scores.size(); ++g) {
    if (groups.goes(g)) continue;
    const std::optional<std::size_t> best = choice.best_left_out(g * groups.width, groups.width);
    const bool covered = !best || choice.value(*best) <= 0.0f;
    if (groups.stays(g) && !covered) return fault;
    if (!groups.stays(g) && covered) ++may_stay;
  }
  if (may_stay < groups.open) return fault;
  return std::nullopt;
}

std::optional<std::string> order_fault(const OpenChoice& choice,
                                       std::span<const std::int32_t> ids) {
  for (std::size_t slot = 1; slot < ids.size(); ++slot) {
    const auto before = static_cast<std::size_t>(ids[slot - 1]);
    const auto after = static_cast<std::size_t>(ids[slot]);
    const bool wrong = choice.kernel.slots == SlotOrder::rising_id
                           ? before > after
                           : choice.kernel.slots == SlotOrder::falling &&
                                 compare(choice.kernel.minus_zero_first, choice.value(before),
                                         choice.value(after)) < 0;
    if (wrong)
      return fmt::format("slot {} (expert {}) belongs before slot {}", slot, after, slot - 1);
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> open_selection_fault(const RoutingKernel& kernel,
                                                const RoutingChoices& choices,
                                                std::span<const std::int32_t> ids) {
  OpenChoice choice{kernel, choices, std::vector<bool>(choices.values.size(), false)};
  for (const std::int32_t id : ids) choice.chosen[static_cast<std::size_t>(id)] = true;
  std::optional<std::string> fault;
  if (choices.kept_groups >= choices.groups) {
    const std::size_t worst = *choice.worst_chosen();
    const std::optional<std::size_t> best = choice.best_left_out(0, choices.values.size());
    if (best && compare(kernel.minus_zero_first, choice.value(*best), choice.value(worst)) > 0) {
      fault = better_left_out(choice, *best, worst);
    }
  } else {
    const OpenGroups groups = open_groups(kernel, choices);
    fault = kernel.mask_fill == MaskFill::zero ? zero_masked_fault(choice, groups)
                                               : masked_fault(choice, groups);
  }
  return fault ? fault : order_fault(choice, ids);
}

}  // namespace moeref
