#include "engine/routing_select.hpp"

#include <algorithm>

namespace moeref {
namespace {

/// The sum of the two largest choice values of a group, rounded once: one f32 addition. A group of
/// one has its one value.
float group_score(std::span<const float> choices) {
  if (choices.size() == 1) return choices[0];
  float largest = std::max(choices[0], choices[1]);
  float second = std::min(choices[0], choices[1]);
  for (const float choice : choices.subspan(2)) {
    if (choice > largest) {
      second = largest;
      largest = choice;
    } else if (choice > second) {
      second = choice;
    }
  }
  return largest + second;
}

/// Sets `scratch.kept` to the experts in the groups that stay.
void keep_best_groups(const Routing& routing, std::span<const float> choices,
                      SelectionScratch& scratch) {
  const auto groups = static_cast<std::size_t>(routing.groups);
  const std::size_t width = choices.size() / groups;
  scratch.group_scores.resize(groups);
  for (std::size_t g = 0; g < groups; ++g) {
    scratch.group_scores[g] = group_score(choices.subspan(g * width, width));
  }
  select_largest(scratch.group_scores, {}, routing.kept_groups, scratch.groups);
  scratch.kept.assign(choices.size(), false);
  for (const std::int32_t g : scratch.groups) {
    const auto first =
        scratch.kept.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(g) * width);
    std::fill(first, first + static_cast<std::ptrdiff_t>(width), true);
  }
}

}  // namespace

void select_largest(std::span<const float> values, const std::vector<bool>& kept,
                    std::int64_t count, std::vector<std::int32_t>& order) {
  order.clear();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (kept.empty() || kept[i]) order.push_back(static_cast<std::int32_t>(i));
  }
  const auto before = [values](std::int32_t left, std::int32_t right) {
    const float left_value = values[static_cast<std::size_t>(left)];
    const float right_value = values[static_cast<std::size_t>(right)];
    return left_value > right_value || (left_value == right_value && left < right);
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    before);
  order.resize(static_cast<std::size_t>(count));
}

void select_experts(const Routing& routing, std::span<const float> choices,
                    SelectionScratch& scratch) {
  scratch.kept.clear();
  if (routing.method == RoutingMethod::deepseek_v3 && routing.kept_groups < routing.groups) {
    keep_best_groups(routing, choices, scratch);
  }
  if (scratch.kept.empty() || routing.mask_fill == MaskFill::minus_infinity) {
    select_largest(choices, scratch.kept, routing.top_k, scratch.order);
    return;
  }
  scratch.masked.assign(choices.begin(), choices.end());
  for (std::size_t e = 0; e < choices.size(); ++e) {
    if (!scratch.kept[e]) scratch.masked[e] = 0.0f;
  }
  select_largest(scratch.masked, {}, routing.top_k, scratch.order);
}

}  // namespace moeref
