#include "engine/routing_kernel_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

std::vector<RoutingKernel> make_table() {
  std::vector<RoutingKernel> table;
  add_flashinfer_kernels(table);
  add_sglang_kernels(table);
  return table;
}

std::string_view level_name(RoutingArithmetic arithmetic) {
  switch (arithmetic) {
    case RoutingArithmetic::rounded:
      return "rounded";
    case RoutingArithmetic::precise:
      return "precise";
    case RoutingArithmetic::fast_math:
      break;
  }
  return "fast_math";
}

/// What the weights of a method are in `route_logits`.
void describe_weights(RoutingKernel& kernel, RoutingMethod method) {
  kernel.share = ShareForm::once;
  switch (method) {
    case RoutingMethod::softmax_topk:
      kernel.score = ScoreForm::once_softmax;
      kernel.share_use = ShareUse::if_asked;
      break;
    case RoutingMethod::topk_softmax:
      kernel.weight = RouteWeightForm::once_softmax;
      kernel.share_use = ShareUse::always;
      break;
    case RoutingMethod::deepseek_v3:
      kernel.group_score = GroupScore::top2_sum;
      [[fallthrough]];
    case RoutingMethod::minimax2:
    case RoutingMethod::sigmoid_topk:
      kernel.score = ScoreForm::once_sigmoid;
      kernel.share_use = ShareUse::if_asked;
      break;
    case RoutingMethod::sqrt_softplus:
      kernel.score = ScoreForm::once_sqrt_softplus;
      kernel.share_use = ShareUse::always;
      break;
    case RoutingMethod::llama4:
      kernel.weight = RouteWeightForm::once_sigmoid;
      break;
    case RoutingMethod::topk_logits:
      break;
  }
}

}  // namespace

std::span<const RoutingKernel> all_routing_kernels() {
  static const std::vector<RoutingKernel> table = make_table();
  return table;
}

const RoutingKernel& find_routing_kernel(std::string_view name) {
  std::vector<std::string> names;
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (kernel.name == name) return kernel;
    names.emplace_back(kernel.name);
  }
  fail(name, "is no routing kernel; nearest: {}; moeref routing lists them",
       fmt::join(nearest_names(name, names), " or "));
}

RoutingKernel with_logits(RoutingKernel kernel, Format logits) {
  const auto& types = kernel.logit_types;
  if (std::find(types.begin(), types.end(), logits) == types.end()) {
    std::vector<std::string_view> names;
    for (const Format type : types) names.push_back(name(type));
    fail(kernel.name, "takes logits of {}, not {}", fmt::join(names, ", "), name(logits));
  }
  kernel.logits = logits;
  return kernel;
}

RoutingKernel with_arithmetic(RoutingKernel kernel, RoutingArithmetic arithmetic) {
  const auto& replays = kernel.replays;
  const bool known = arithmetic == RoutingArithmetic::rounded ||
                     std::find(replays.begin(), replays.end(), arithmetic) != replays.end();
  if (!known) {
    std::vector<std::string_view> levels{level_name(RoutingArithmetic::rounded)};
    for (const RoutingArithmetic level : replays) levels.push_back(level_name(level));
    fail(kernel.name, "has the levels {}, not {}: no formula gives its exact bits",
         fmt::join(levels, ", "), level_name(arithmetic));
  }
  kernel.arithmetic = arithmetic;
  return kernel;
}

RoutingKernel reference_routing_kernel(const Routing& routing) {
  RoutingKernel kernel;
  kernel.family = "reference";
  kernel.name = name(routing.method);
  kernel.summary = "every stage rounded once";
  kernel.source = "moeref engine/routing.hpp route_logits";
  kernel.methods = {routing.method};
  kernel.logit_types = {Format::f32};
  kernel.mask_fill = routing.mask_fill;
  kernel.scaling = ScalingUse::always;
  describe_weights(kernel, routing.method);
  const bool biased = routing.method == RoutingMethod::deepseek_v3 ||
                      routing.method == RoutingMethod::minimax2 ||
                      routing.method == RoutingMethod::sqrt_softplus;
  if (biased) kernel.bias = BiasUse::score;
  return kernel;
}

}  // namespace moeref
