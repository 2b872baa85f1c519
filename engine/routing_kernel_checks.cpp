#include "engine/routing_kernel_checks.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "engine/routing_arithmetic.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

constexpr std::string_view kBias = "router selection bias";
constexpr std::string_view kGivenIds = "given expert ids";
constexpr float kSmallestScaling = 0x1p-64f;

template <typename Values>
bool contains(const Values& values, typename Values::value_type value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

std::string_view size_name(RoutingSize size) {
  switch (size) {
    case RoutingSize::experts:
      return "experts";
    case RoutingSize::top_k:
      return "top_k";
    case RoutingSize::groups:
      return "groups";
    case RoutingSize::kept_groups:
      return "kept groups";
    case RoutingSize::width:
      return "experts of a group";
    case RoutingSize::kept_experts:
      break;
  }
  return "experts of the kept groups";
}

std::int64_t size_of(RoutingSize size, const Routing& routing, std::int64_t experts) {
  switch (size) {
    case RoutingSize::experts:
      return experts;
    case RoutingSize::top_k:
      return routing.top_k;
    case RoutingSize::groups:
      return routing.groups;
    case RoutingSize::kept_groups:
      return routing.kept_groups;
    case RoutingSize::width:
      return experts / routing.groups;
    case RoutingSize::kept_experts:
      break;
  }
  return experts / routing.groups * routing.kept_groups;
}

bool holds(const RoutingRule& rule, const Routing& routing, std::int64_t experts) {
  const std::int64_t when = size_of(rule.when, routing, experts);
  if (when < rule.when_from || when > rule.when_to) return true;
  const std::int64_t size = size_of(rule.size, routing, experts);
  const bool power_of_two = std::has_single_bit(static_cast<std::uint64_t>(size));
  switch (rule.need) {
    case RoutingRule::Need::at_most:
      return size <= rule.value;
    case RoutingRule::Need::at_least:
      return size >= rule.value;
    case RoutingRule::Need::multiple:
      return size % rule.value == 0;
    case RoutingRule::Need::below_kept_experts:
      return size < size_of(RoutingSize::kept_experts, routing, experts);
    case RoutingRule::Need::power_of_two:
      return power_of_two;
    case RoutingRule::Need::no_power_of_two:
      return !power_of_two;
    case RoutingRule::Need::outside:
      break;
  }
  return size < rule.value || size > rule.to;
}

std::string need_text(const RoutingRule& rule) {
  switch (rule.need) {
    case RoutingRule::Need::at_most:
      return fmt::format("<= {}", rule.value);
    case RoutingRule::Need::at_least:
      return fmt::format(">= {}", rule.value);
    case RoutingRule::Need::multiple:
      return fmt::format("% {} == 0", rule.value);
    case RoutingRule::Need::below_kept_experts:
      return fmt::format("< {}", size_name(RoutingSize::kept_experts));
    case RoutingRule::Need::power_of_two:
      return "a power of two";
    case RoutingRule::Need::no_power_of_two:
      return "no power of two";
    case RoutingRule::Need::outside:
      break;
  }
  return fmt::format("not {} to {}", rule.value, rule.to);
}

void check_sizes(const RoutingKernel& kernel, const Routing& routing, std::int64_t experts) {
  if (experts < 1 || experts > std::numeric_limits<std::int32_t>::max()) {
    fail(kernel.name, "{} experts, needs 1 to 2^31 - 1", experts);
  }
  if (routing.top_k < 1 || routing.top_k > experts) {
    fail(kernel.name, "top_k is {}, needs 1 to the number of experts, {}", routing.top_k, experts);
  }
  if (routing.groups < 1 || experts % routing.groups != 0) {
    fail(kernel.name, "{} experts do not form {} equal groups; correct n_group", experts,
         routing.groups);
  }
  if (routing.kept_groups < 1 || routing.kept_groups > routing.groups) {
    fail(kernel.name, "keeps {} of {} groups, needs 1 to {}; correct topk_group",
         routing.kept_groups, routing.groups, routing.groups);
  }
  if (kernel.group_score == GroupScore::none && routing.kept_groups < routing.groups) {
    fail(kernel.name, "knows no groups, but {} of {} are to be kept; take a kernel with groups",
         routing.kept_groups, routing.groups);
  }
  const std::int64_t unmasked = size_of(RoutingSize::kept_experts, routing, experts);
  if (kernel.mask_fill == MaskFill::minus_infinity && unmasked < routing.top_k) {
    fail(kernel.name, "the {} kept groups hold {} experts, fewer than top_k {}",
         routing.kept_groups, unmasked, routing.top_k);
  }
  for (const RoutingRule& rule : kernel.rules) {
    if (holds(rule, routing, experts)) continue;
    fail(kernel.name, "needs {}, got {} ({} experts, top_k {}, {} groups, {} kept){}{}",
         to_string(rule), size_of(rule.size, routing, experts), experts, routing.top_k,
         routing.groups, routing.kept_groups, rule.reason.empty() ? "" : ": ", rule.reason);
  }
}

std::vector<std::string_view> names_of(const std::vector<RoutingMethod>& methods) {
  std::vector<std::string_view> names;
  for (const RoutingMethod method : methods) names.push_back(name(method));
  return names;
}

std::vector<std::string_view> names_of(const std::vector<Format>& formats) {
  std::vector<std::string_view> names;
  for (const Format format : formats) names.push_back(name(format));
  return names;
}

}  // namespace

std::string to_string(const RoutingRule& rule) {
  std::string text = fmt::format("{} {}", size_name(rule.size), need_text(rule));
  const bool from = rule.when_from > 0;
  const bool to = rule.when_to < std::numeric_limits<std::int64_t>::max();
  const std::string_view when = size_name(rule.when);
  if (from && to) text += fmt::format(" if {} is {} to {}", when, rule.when_from, rule.when_to);
  if (from && !to) text += fmt::format(" if {} >= {}", when, rule.when_from);
  if (!from && to) text += fmt::format(" if {} <= {}", when, rule.when_to);
  return text;
}

bool wants_shares(const Routing& routing) {
  switch (routing.method) {
    case RoutingMethod::softmax_topk:
    case RoutingMethod::deepseek_v3:
    case RoutingMethod::sigmoid_topk:
      return routing.renormalize;
    case RoutingMethod::topk_softmax:
    case RoutingMethod::minimax2:
    case RoutingMethod::sqrt_softplus:
      return true;
    case RoutingMethod::llama4:
    case RoutingMethod::topk_logits:
      break;
  }
  return false;
}

void check_kernel(const RoutingKernel& kernel, const Routing& routing, std::int64_t experts) {
  if (!contains(kernel.methods, routing.method)) {
    fail(kernel.name, "carries out {}, but the layer routes by {}; take another kernel",
         fmt::join(names_of(kernel.methods), ", "), name(routing.method));
  }
  if (!contains(kernel.logit_types, kernel.logits)) {
    fail(kernel.name, "takes logits of {}, not {}", fmt::join(names_of(kernel.logit_types), ", "),
         name(kernel.logits));
  }
  if (kernel.arithmetic != RoutingArithmetic::rounded &&
      !contains(kernel.replays, kernel.arithmetic)) {
    fail(kernel.name, "has no formulas for this arithmetic; take the level `rounded`");
  }
  if (kernel.share_use == ShareUse::never && wants_shares(routing)) {
    fail(kernel.name,
         "leaves the weights as they are, but the layer divides them by their sum; take a kernel "
         "that does, or set norm_topk_prob false");
  }
  if (kernel.share_use == ShareUse::always && !wants_shares(routing)) {
    fail(kernel.name,
         "always divides the weights by their sum, but the layer does not; take a kernel that can "
         "leave it out, or set norm_topk_prob true");
  }
  if (!(routing.scaling >= kSmallestScaling && std::isfinite(routing.scaling))) {
    fail(kernel.name, "scaling is {}, needs a finite factor of at least 2^-64", routing.scaling);
  }
  if (kernel.scaling == ScalingUse::none && routing.scaling != 1.0f) {
    fail(kernel.name,
         "does not multiply by routed_scaling_factor, here {}; pass 1 and multiply in the combine",
         routing.scaling);
  }
  if (kernel.scaling == ScalingUse::with_shares && routing.scaling != 1.0f &&
      !wants_shares(routing)) {
    fail(kernel.name,
         "multiplies by routed_scaling_factor, here {}, only where it divides by the sum; pass 1 "
         "and "
         "multiply in the combine",
         routing.scaling);
  }
  check_sizes(kernel, routing, experts);
}

void check_kernel_bias(const RoutingKernel& kernel, std::span<const float> bias,
                       std::int64_t experts) {
  if (bias.empty()) return;
  if (kernel.bias == BiasUse::none) {
    fail(kBias, "{} takes none, but one of {} values is given; pass none", kernel.name,
         bias.size());
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

std::int64_t check_kernel_logits(const RoutingKernel& kernel, std::span<const float> logits,
                                 std::int64_t experts) {
  const auto width = static_cast<std::size_t>(experts);
  if (logits.size() % width != 0) {
    fail(kRouterLogits, "{} values are not whole rows of {} experts; pass [tokens, experts]",
         logits.size(), experts);
  }
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    if (std::isnan(logit)) {
      fail(kRouterLogits,
           "token {}, expert {} is NaN, {} {}; look for NaN or infinity in that "
           "token's hidden state and that expert's router row",
           i / width, i % width, kernel.name,
           kernel.nan_logits == NanLogits::chosen_first
               ? "chooses it first and makes every weight of the token NaN"
               : "has no defined answer to that");
    }
    if (in_type(ValueType::of_logits, kernel.logits, logit) != logit) {
      fail(kRouterLogits,
           "token {}, expert {} is {}, which {} does not have; round the logits to {} "
           "first",
           i / width, i % width, logit, name(kernel.logits), name(kernel.logits));
    }
  }
  return static_cast<std::int64_t>(logits.size() / width);
}

void check_given_ids(std::span<const std::int32_t> ids, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t experts) {
  const auto width = static_cast<std::size_t>(top_k);
  if (ids.size() != static_cast<std::size_t>(tokens) * width) {
    fail(kGivenIds, "{} values, needs [{}, {}], one row for each row of the logits", ids.size(),
         tokens, top_k);
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= -1 && ids[i] < experts) continue;
    fail(kGivenIds, "token {}, slot {} names expert {}, needs 0 to {}, or -1 for none", i / width,
         i % width, ids[i], experts - 1);
  }
}

void check_softmax(std::int64_t token, std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  if (std::isfinite(largest)) return;
  fail(kRouterLogits,
       "token {}: the largest of {} logits of a softmax is {}, needs a finite one (infinity / "
       "infinity and 0 / 0 are NaN)",
       token, logits.size(), largest);
}

}  // namespace moeref
