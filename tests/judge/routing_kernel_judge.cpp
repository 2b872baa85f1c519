#include "tests/judge/routing_kernel_judge.hpp"

#include <mpfr.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "quant/gpu/functions.hpp"
#include "tests/judge/gpu_numbers.hpp"
#include "tests/judge/mpfr_real.hpp"
#include "tests/judge/rounded_functions.hpp"

namespace moeref::judge {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

// ------------------------------------------------------------------------------------ arithmetic

float Device::plus(float a, float b) const {
  return level == RoutingArithmetic::fast_math ? F32{true}.plus(a, b) : a + b;
}

float Device::times(float a, float b) const {
  return level == RoutingArithmetic::fast_math ? F32{true}.times(a, b) : a * b;
}

float Device::over(float a, float b) const {
  return level == RoutingArithmetic::fast_math ? quotient(F32{true}, a, b) : a / b;
}

float Device::exp(float x) const {
  if (level == RoutingArithmetic::rounded) return nearest_exp(x);
  if (level == RoutingArithmetic::precise) return gpu::expf_precise(x);
  return gpu::ex2_approx_ftz(times(x, float_of(0x3FB8AA3Bu)));
}

float Device::log1p(float x) const {
  if (level == RoutingArithmetic::rounded) return nearest_log1p(static_cast<double>(x));
  if (level == RoutingArithmetic::precise) return gpu::log1pf_precise(x);
  throw std::logic_error("no log1pf at this level");
}

float Device::sigmoid(float x) const {
  if (level == RoutingArithmetic::precise) {
    const gpu::ExpParts parts = gpu::exp_parts(-x);
    return 1.0f / std::fma(parts.fraction, parts.power, 1.0f);
  }
  if (level == RoutingArithmetic::rounded) return 1.0f / (1.0f + nearest_exp(-x));
  const float e = gpu::ex2_approx_ftz(times(x, float_of(0xBFB8AA3Bu)));
  return approximate_reciprocal(plus(e, 1.0f));
}

float Device::sigmoid_intrinsic(float x) const {
  if (level != RoutingArithmetic::precise) return sigmoid(x);
  return 1.0f / (1.0f + gpu::ex2_approx(-x * float_of(0x3FB8AA3Bu)));
}

float Device::sigmoid_tanh(float x) const {
  if (level != RoutingArithmetic::rounded) throw std::logic_error("no tanhf at this level");
  return std::fma(0.5f, nearest_tanh(0.5f * x), 0.5f);
}

float butterfly(const Device& device, std::vector<float> lanes) {
  for (std::size_t mask = lanes.size() / 2; mask > 0; mask /= 2) {
    std::vector<float> next;
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      next.push_back(device.plus(lanes[lane], lanes[lane ^ mask]));
    }
    lanes = next;
  }
  return lanes[0];
}

float to_type(Format type, float x) { return std::isfinite(x) ? in_dtype(type, x) : x; }

// ------------------------------------------------------------- FlashInfer: keys of value and index

namespace {

/// Bits that sort as unsigned integers in the order of the numbers, -0 below +0.
std::uint32_t sorting_bits(float x) {
  const std::uint32_t bits = float_bits(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x8000'0000u;
}

struct Key {
  std::uint64_t word = 0;
  float value = 0.0f;
  std::int32_t index = 0;
};

Key key_of(float value, std::int32_t index) {
  return {static_cast<std::uint64_t>(sorting_bits(value)) << 32 |
              static_cast<std::uint64_t>(65535 - index),
          value, index};
}

/// The largest keys one after the other; what was taken counts as -infinity from then on.
std::vector<Key> take_largest(std::vector<Key> keys, std::int64_t count) {
  std::vector<Key> taken;
  for (std::int64_t k = 0; k < count; ++k) {
    const auto best = std::max_element(keys.begin(), keys.end(),
                                       [](const Key& a, const Key& b) { return a.word < b.word; });
    taken.push_back(*best);
    *best = key_of(-kInf, best->index);
  }
  return taken;
}

std::vector<Key> keys_of(std::span<const float> values) {
  std::vector<Key> keys;
  for (std::size_t e = 0; e < values.size(); ++e) {
    keys.push_back(key_of(values[e], static_cast<std::int32_t>(e)));
  }
  return keys;
}

/// One number a lane, K of them, the rest +0.
std::vector<float> warp_of(std::span<const float> values) {
  std::vector<float> lanes(32, 0.0f);
  std::copy(values.begin(), values.end(), lanes.begin());
  return lanes;
}

std::vector<float> softmax_by_warp(const Device& device, std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> exps;
  std::vector<float> lanes(32, 0.0f);
  for (std::size_t e = 0; e < logits.size(); ++e) {
    exps.push_back(device.exp(device.minus(logits[e], largest)));
    lanes[e % 32] = device.plus(lanes[e % 32], exps[e]);
  }
  const float sum = butterfly(device, lanes);
  for (float& e : exps) e = device.over(e, sum);
  return exps;
}

/// The sum of one number each of 256 threads as cub::BlockReduce<float, 256> adds them: each warp
/// by shuffles down by 1, 2, 4, 8, 16, then thread 0 adds the warps.
float block_reduce(const Device& device, std::vector<float> threads) {
  float total = 0.0f;
  for (std::size_t warp = 0; warp < 8; ++warp) {
    std::vector<float> lanes(threads.begin() + static_cast<std::ptrdiff_t>(32 * warp),
                             threads.begin() + static_cast<std::ptrdiff_t>(32 * warp + 32));
    for (std::size_t offset = 1; offset < 32; offset *= 2) {
      const std::vector<float> before = lanes;
      for (std::size_t lane = 0; lane + offset < 32; ++lane) {
        lanes[lane] = device.plus(before[lane], before[lane + offset]);
      }
    }
    total = warp == 0 ? lanes[0] : device.plus(total, lanes[0]);
  }
  return total;
}

}  // namespace

std::vector<float> softmax_by_block(const Device& device, std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> exps;
  std::vector<float> threads(256, 0.0f);
  for (std::size_t e = 0; e < logits.size(); ++e) {
    exps.push_back(device.exp(device.minus(logits[e], largest)));
    threads[e % 256] = device.plus(threads[e % 256], exps[e]);
  }
  const float inverse = device.over(1.0f, block_reduce(device, threads));
  for (float& e : exps) e = device.times(e, inverse);
  return exps;
}

namespace {

/// The type in which TRTLLM-Gen stores weights.
Format stored(const GateInput& in) { return in.unrounded ? Format::f32 : Format::bf16; }

TokenRoute deepseek(const GateInput& in, bool round_bias, bool wide) {
  const Device device{in.level};
  std::vector<float> scores;
  std::vector<float> biased;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    float b = in.bias.empty() ? 0.0f : in.bias[e];
    if (round_bias) b = to_type(Format::bf16, b);
    scores.push_back(device.sigmoid_tanh(in.logits[e]));
    biased.push_back(scores[e] + b);
  }
  std::vector<Key> candidates = keys_of(biased);
  if (in.groups > 1) {
    const std::size_t width = biased.size() / static_cast<std::size_t>(in.groups);
    std::vector<float> sums;
    for (std::size_t g = 0; g < static_cast<std::size_t>(in.groups); ++g) {
      const auto two = take_largest(keys_of(std::span(biased).subspan(g * width, width)), 2);
      sums.push_back(two[0].value + two[1].value);
    }
    candidates.clear();
    for (const Key& group : take_largest(keys_of(sums), in.kept_groups)) {
      for (std::size_t lane = 0; lane < width; ++lane) {
        const std::size_t e = static_cast<std::size_t>(group.index) * width + lane;
        candidates.push_back(key_of(biased[e], static_cast<std::int32_t>(e)));
      }
    }
  }
  TokenRoute route;
  std::vector<float> chosen;
  for (const Key& key : take_largest(candidates, in.top_k)) {
    route.ids.push_back(key.index);
    chosen.push_back(scores[static_cast<std::size_t>(key.index)]);
  }
  const float sum = butterfly(device, warp_of(chosen));
  for (const float s : chosen) {
    if (!wide) {
      route.weights.push_back(to_type(stored(in), s * in.scaling / (sum + 1e-20f)));
      continue;
    }
    const double weight = static_cast<double>(s) * static_cast<double>(in.scaling) /
                          (static_cast<double>(sum) + 1e-20);
    // One rounding from f64: by MPFR to the digits of the type (weights are no subnormals).
    const mpfr_prec_t digits = in.type == Format::f32 ? 24 : in.type == Format::bf16 ? 8 : 11;
    const float rounded = MpfrReal(53, weight).rounded(digits, MPFR_RNDN).to_float();
    const bool subnormal = in.type == Format::f16 && std::fabs(weight) < 0x1p-14;
    route.weights.push_back(
        subnormal ? static_cast<float>(std::nearbyint(weight * 0x1p24) * 0x1p-24) : rounded);
  }
  return route;
}

TokenRoute llama4(const GateInput& in) {
  std::vector<Key> lanes;
  for (std::size_t lane = 0; lane < 32; ++lane) {
    float best = -kInf;
    std::int32_t index = 0;
    for (std::size_t e = lane; e < in.logits.size(); e += 32) {
      if (in.logits[e] > best) {
        best = in.logits[e];
        index = static_cast<std::int32_t>(e);
      }
    }
    lanes.push_back(key_of(best, index));
  }
  const Key winner = take_largest(lanes, 1)[0];
  const float weight = Device{in.level}.sigmoid_tanh(winner.value);
  return {{winner.index}, {to_type(stored(in), weight)}};
}

}  // namespace

TokenRoute trtllm_route(std::string_view kernel, const GateInput& in) {
  const Device device{in.level};
  if (kernel == "flashinfer_trtllm_llama4") return llama4(in);
  if (kernel == "flashinfer_trtllm_deepseek_v3") return deepseek(in, true, false);
  if (kernel == "flashinfer_trtllm_deepseek_v3_one_group" ||
      kernel == "flashinfer_trtllm_minimax2") {
    return deepseek(in, false, false);
  }
  if (kernel.starts_with("flashinfer_fused_topk_deepseek")) return deepseek(in, false, true);

  std::vector<float> keys(in.logits.begin(), in.logits.end());
  if (kernel == "flashinfer_trtllm_default") keys = softmax_by_warp(device, in.logits);
  if (kernel == "flashinfer_trtllm_default_block") keys = softmax_by_block(device, in.logits);
  const bool sigmoid_first = kernel.starts_with("flashinfer_trtllm_sigmoid");
  if (sigmoid_first) {
    for (float& key : keys) key = device.sigmoid_tanh(key);
  }
  TokenRoute route;
  for (const Key& key : take_largest(keys_of(keys), in.top_k)) {
    route.ids.push_back(key.index);
    route.weights.push_back(key.value);
  }
  if (kernel == "flashinfer_trtllm_renormalize") {
    // The score type of this policy is that of the logits.
    route.weights = softmax_by_warp(device, route.weights);
    for (float& weight : route.weights) weight = to_type(in.type, weight);
  }
  if (kernel == "flashinfer_trtllm_topk_sigmoid") {
    for (float& weight : route.weights) weight = to_type(in.type, device.sigmoid_tanh(weight));
  }
  if (sigmoid_first && in.renormalize) {
    const float sum = std::fmax(butterfly(device, warp_of(route.weights)), 1e-20f);
    for (float& weight : route.weights) weight = weight / sum;
  }
  for (float& weight : route.weights) weight = to_type(stored(in), weight);
  return route;
}

TokenRoute route_token_as(std::string_view kernel, const GateInput& input) {
  if (kernel.starts_with("flashinfer_")) return trtllm_route(kernel, input);
  if (kernel.starts_with("sgl_") || kernel.starts_with("sglang_jit_")) {
    return sgl_route(kernel, input);
  }
  return framework_route(kernel, input);
}

}  // namespace moeref::judge
