// torch and Triton, for routing_kernel_judge.hpp.
#include <mpfr.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "tests/judge/mpfr_real.hpp"
#include "tests/judge/rounded_functions.hpp"
#include "tests/judge/routing_kernel_judge.hpp"

namespace moeref::judge {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

float bias_of(const GateInput& in, std::size_t expert) {
  return in.bias.empty() ? 0.0f : in.bias[expert];
}

/// Indices by falling value, then rising index.
std::vector<std::int32_t> descending(std::span<const float> values) {
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [values](std::int32_t a, std::int32_t b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return order;
}

/// The exact sum, rounded once.
float sum_of(std::span<const float> values) {
  MpfrReal sum(2000, 0.0);  // holds every sum of f32 numbers exactly
  for (const float v : values) mpfr_add_d(sum.get(), sum.get(), static_cast<double>(v), MPFR_RNDN);
  return sum.to_float();
}

std::vector<float> softmax_torch(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> values;
  for (const float x : logits) values.push_back(nearest_exp(x - largest));
  const float sum = sum_of(values);
  for (float& value : values) value = value / sum;
  return values;
}

TokenRoute chosen(std::span<const float> choice, std::span<const float> scores,
                  std::int64_t top_k) {
  TokenRoute route;
  const std::vector<std::int32_t> order = descending(choice);
  for (std::size_t k = 0; k < static_cast<std::size_t>(top_k); ++k) {
    route.ids.push_back(order[k]);
    route.weights.push_back(scores[static_cast<std::size_t>(order[k])]);
  }
  return route;
}

void divide_torch(const GateInput& in, std::vector<float>& weights) {
  if (!in.renormalize) return;
  const float sum = sum_of(weights);
  for (float& w : weights) w = w / sum * in.scaling;
}

/// Replaces the values outside the best groups.
void mask_groups(const GateInput& in, std::vector<float>& values, bool largest, float fill) {
  const std::size_t width = values.size() / static_cast<std::size_t>(in.groups);
  std::vector<float> groups;
  for (std::size_t g = 0; g < static_cast<std::size_t>(in.groups); ++g) {
    const auto group = std::span(values).subspan(g * width, width);
    const std::vector<std::int32_t> order = descending(group);
    const float first = group[static_cast<std::size_t>(order[0])];
    groups.push_back(largest ? first : first + group[static_cast<std::size_t>(order[1])]);
  }
  const std::vector<std::int32_t> order = descending(groups);
  for (std::size_t i = static_cast<std::size_t>(in.kept_groups); i < order.size(); ++i) {
    const auto first =
        values.begin() + static_cast<std::ptrdiff_t>(order[i]) * static_cast<std::ptrdiff_t>(width);
    std::fill_n(first, width, fill);
  }
}

TokenRoute torch_biased(const GateInput& in, bool grouped) {
  std::vector<float> scores;
  std::vector<float> choice;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    const float x = in.logits[e];
    scores.push_back(grouped ? Device{}.sigmoid(x)
                             : std::sqrt(x > 20.0f ? x : Device{}.log1p(nearest_exp(x))));
    choice.push_back(scores[e] + bias_of(in, e));
  }
  if (grouped) mask_groups(in, choice, false, -kInf);
  TokenRoute route = chosen(choice, scores, in.top_k);
  divide_torch(in, route.weights);
  return route;
}

TokenRoute torch_grouped(const GateInput& in) {
  std::vector<float> scores = softmax_torch(in.logits);
  std::vector<float> masked = scores;
  mask_groups(in, masked, true, 0.0f);
  TokenRoute route = chosen(masked, masked, in.top_k);
  divide_torch(in, route.weights);
  return route;
}

TokenRoute triton_topk(const GateInput& in, bool softmax_first) {
  std::vector<float> values(in.logits.begin(), in.logits.end());
  if (softmax_first) {
    values = softmax_torch(values);
    for (float& v : values) v = to_type(in.type, v);
  }
  // Sorting bits: -0 is below +0.
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&values](std::int32_t a, std::int32_t b) {
    const float x = values[static_cast<std::size_t>(a)];
    const float y = values[static_cast<std::size_t>(b)];
    return x > y || (x == y && std::signbit(y) && !std::signbit(x));
  });
  order.resize(static_cast<std::size_t>(in.top_k));
  std::sort(order.begin(), order.end());
  TokenRoute route;
  for (const std::int32_t e : order) {
    route.ids.push_back(e);
    route.weights.push_back(values[static_cast<std::size_t>(e)]);
  }
  if (!softmax_first) route.weights = softmax_torch(route.weights);
  for (float& w : route.weights) w = to_type(in.type, w);
  return route;
}

TokenRoute triton_router(const GateInput& in) {
  std::vector<float> scores;
  std::vector<float> choice;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    const float x = in.logits[e];
    const float d = 1.0f + nearest_exp(x);
    scores.push_back(std::sqrt(x > 20.0f ? x : nearest_log1p(static_cast<double>(d) - 1.0)));
    choice.push_back(scores[e] + bias_of(in, e));
  }
  TokenRoute route = chosen(choice, scores, in.top_k);
  const float sum = sum_of(route.weights);
  for (float& w : route.weights) w = w / (sum > 0.0f ? sum : 1.0f) * in.scaling;
  return route;
}

}  // namespace

TokenRoute framework_route(std::string_view kernel, const GateInput& in) {
  if (kernel == "sglang_biased_grouped_topk") return torch_biased(in, true);
  if (kernel == "sglang_biased_topk_sqrtsoftplus") return torch_biased(in, false);
  if (kernel == "sglang_grouped_topk") return torch_grouped(in);
  if (kernel == "sglang_raw_logits_topk") {
    TokenRoute route = chosen(in.logits, in.logits, in.top_k);
    route.weights = softmax_torch(route.weights);
    return route;
  }
  if (kernel == "triton_kernels_topk") return triton_topk(in, false);
  if (kernel == "triton_kernels_softmax_topk") return triton_topk(in, true);
  if (kernel == "sglang_triton_sqrtsoftplus_router") return triton_router(in);
  throw std::logic_error("no judge of this kernel");
}

}  // namespace moeref::judge
