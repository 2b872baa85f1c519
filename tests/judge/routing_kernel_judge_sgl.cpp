// sgl-kernel and SGLang's JIT kernels, for routing_kernel_judge.hpp.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "tests/judge/routing_kernel_judge.hpp"

namespace moeref::judge {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

float bias_of(const GateInput& in, std::size_t expert) {
  return in.bias.empty() ? 0.0f : in.bias[expert];
}

// ------------------------------------------------------------------------------- moe_fused_gate

/// A thread owns a group; values are of type T, -FLT_MAX and FLT_MAX cast to it mark what is out.
class FusedGate {
 public:
  FusedGate(const GateInput& in, std::size_t threads) : in_(in), threads_(threads) {
    const Device device{in.level};
    for (std::size_t e = 0; e < in.logits.size(); ++e) {
      const float s = to_type(in.type, device.sigmoid(in.logits[e]));
      scores_.push_back(s);
      biased_.push_back(to_type(in.type, device.plus(s, to_type(in.type, bias_of(in, e)))));
    }
    width_ = scores_.size() / threads;
  }

  void exclude_groups(std::int64_t count) {
    const Device device{in_.level};
    for (std::int64_t i = 0; i < count; ++i) {
      std::vector<float> sums;
      for (std::size_t t = 0; t < threads_; ++t) {
        float first = low();
        float second = low();
        for (std::size_t e = t * width_; e < (t + 1) * width_; ++e) {
          const float v = biased_[e];
          if (v > first) {
            second = first;
            first = v;
          } else if (v > second) {
            second = v;
          }
        }
        sums.push_back(to_type(in_.type, device.plus(first, second)));
      }
      const std::size_t worst = exchange(sums, [](float mine, float other, bool other_higher) {
        return mine > other || (mine == other && other_higher);
      });
      std::fill_n(biased_.begin() + static_cast<std::ptrdiff_t>(worst * width_), width_, high());
    }
  }

  TokenRoute take() {
    TokenRoute route;
    for (std::int64_t k = 0; k < in_.top_k; ++k) {
      std::vector<float> best(threads_);
      std::vector<std::size_t> index(threads_);
      for (std::size_t t = 0; t < threads_; ++t) {
        index[t] = t * width_;
        best[t] = biased_[index[t]] == high() ? low() : biased_[index[t]];
        for (std::size_t e = index[t] + 1; biased_[t * width_] != high() && e < (t + 1) * width_;
             ++e) {
          if (biased_[e] > best[t]) {
            best[t] = biased_[e];
            index[t] = e;
          }
        }
      }
      const std::size_t winner = exchange(best, [](float mine, float other, bool other_higher) {
        return other > mine || (other == mine && !other_higher);
      });
      const std::size_t expert = index[winner];
      biased_[expert] = low();
      route.ids.push_back(static_cast<std::int32_t>(expert));
      route.weights.push_back(scores_[expert]);
    }
    return route;
  }

 private:
  float low() const { return in_.type == Format::f32 ? -FLT_MAX : -kInf; }
  float high() const { return -low(); }

  /// The thread on which all agree after exchanges with lane ^ mask. Threads own rising indices, so
  /// that comparing threads compares indices.
  template <typename TakeOther>
  std::size_t exchange(const std::vector<float>& values, TakeOther take_other) const {
    std::vector<std::size_t> owner(threads_);
    std::iota(owner.begin(), owner.end(), std::size_t{0});
    for (std::size_t mask = threads_ / 2; mask > 0; mask /= 2) {
      const std::vector<std::size_t> before = owner;
      for (std::size_t t = 0; t < threads_; ++t) {
        const std::size_t mine = before[t];
        const std::size_t other = before[t ^ mask];
        if (take_other(values[mine], values[other], other > mine)) owner[t] = other;
      }
    }
    return owner[0];
  }

  const GateInput& in_;
  std::size_t threads_;
  std::size_t width_ = 0;
  std::vector<float> scores_;
  std::vector<float> biased_;
};

TokenRoute fused_gate(const GateInput& in, bool kimi) {
  const Device device{in.level};
  FusedGate gate(in, kimi ? 32 : static_cast<std::size_t>(in.groups));
  if (!kimi) gate.exclude_groups(in.groups - in.kept_groups);
  TokenRoute route = gate.take();
  if (kimi && !in.renormalize) return route;
  float sum = 0.0f;
  for (const float w : route.weights) sum = device.plus(sum, w);
  for (float& w : route.weights) {
    w = device.over(w, sum);
    if (in.scaling != 1.0f) w = device.times(w, in.scaling);
  }
  return route;
}

// --------------------------------------------------------------------- topk_softmax, topk_sigmoid

/// Which thread of a row holds column e: vectors of 16 bytes are dealt to the threads in turn.
struct RowLayout {
  std::size_t vector = 1;
  std::size_t threads = 1;

  RowLayout(Format type, std::size_t experts) {
    const std::size_t bytes = std::min<std::size_t>(16, experts * (type == Format::f32 ? 4 : 2));
    vector = bytes / (type == Format::f32 ? 4 : 2);
    const std::size_t vectors_each = std::max<std::size_t>(1, experts / (vector * 32));
    threads = experts / (vectors_each * vector);
  }
  std::size_t thread(std::size_t column) const { return column / vector % threads; }
};

std::vector<float> softmax_by_row(const Device& device, const RowLayout& row,
                                  std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> values;
  std::vector<float> sums(row.threads, 0.0f);
  for (std::size_t e = 0; e < logits.size(); ++e) {
    values.push_back(device.exp(device.minus(logits[e], largest)));
    float& sum = sums[row.thread(e)];
    sum = device.plus(sum, values[e]);
  }
  const float inverse = device.over(1.0f, butterfly(device, sums));
  for (float& value : values) value = device.times(value, inverse);
  return values;
}

/// K passes, each finds the largest; of equal ones the lower column wins.
TokenRoute passes(std::vector<float> values, std::int64_t top_k) {
  TokenRoute route;
  for (std::int64_t k = 0; k < top_k; ++k) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < values.size(); ++e) {
      if (values[e] > values[best]) best = e;
    }
    route.ids.push_back(static_cast<std::int32_t>(best));
    route.weights.push_back(values[best]);
    values[best] = -10000.0f;
  }
  return route;
}

void divide_serially(const Device& device, std::vector<float>& weights) {
  float sum = 0.0f;
  for (const float w : weights) sum = device.plus(sum, w);
  const float inverse = device.over(1.0f, sum);
  for (float& w : weights) w = device.times(w, inverse);
}

TokenRoute topk_softmax(const GateInput& in, bool general) {
  const Device device{in.level};
  std::vector<float> logits(in.logits.begin(), in.logits.end());
  for (std::size_t e = 0; e < in.bias.size(); ++e) logits[e] = device.plus(logits[e], in.bias[e]);
  const std::vector<float> scores =
      general ? softmax_by_block(device, logits)
              : softmax_by_row(device, RowLayout(in.type, logits.size()), logits);
  TokenRoute route = passes(scores, in.top_k);
  if (in.renormalize) divide_serially(device, route.weights);
  return route;
}

TokenRoute topk_sigmoid(const GateInput& in) {
  const Device device{in.level};
  std::vector<float> values;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    values.push_back(device.sigmoid(in.logits[e]));
    if (!in.bias.empty()) values[e] = device.plus(values[e], in.bias[e]);
  }
  TokenRoute route = passes(values, in.top_k);
  for (std::size_t slot = 0; slot < route.ids.size() && !in.bias.empty(); ++slot) {
    const float b = in.bias[static_cast<std::size_t>(route.ids[slot])];
    route.weights[slot] = device.minus(route.weights[slot], b);
  }
  if (in.renormalize) divide_serially(device, route.weights);
  return route;
}

// --------------------------------------------------------------------------------- JIT kernels

TokenRoute jit_grouped_topk(const GateInput& in) {
  const Device device{in.level};
  std::vector<float> scores;
  std::vector<float> biased;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    scores.push_back(device.sigmoid_intrinsic(in.logits[e]));
    biased.push_back(scores[e] + bias_of(in, e));
  }
  TokenRoute route = passes(biased, in.top_k);
  std::vector<float> lanes(32, 0.0f);
  for (std::size_t k = 0; k < route.ids.size(); ++k) {
    lanes[k] = scores[static_cast<std::size_t>(route.ids[k])];
  }
  const float total = butterfly(device, lanes) + 1e-20f;
  for (std::size_t k = 0; k < route.ids.size(); ++k) {
    route.weights[k] = lanes[k] * in.scaling;
    if (in.renormalize) route.weights[k] = route.weights[k] / total;
  }
  return route;
}

/// The lane in which a warp's maximum ends after shuffles down by 16, 8, 4, 2, 1 that take the
/// other value if it is larger: lane 0's owner.
std::size_t shuffled_maximum(const std::vector<float>& values) {
  std::vector<std::size_t> owner(32);
  std::iota(owner.begin(), owner.end(), std::size_t{0});
  for (std::size_t offset = 16; offset > 0; offset /= 2) {
    const std::vector<std::size_t> before = owner;
    for (std::size_t lane = 0; lane < 32; ++lane) {
      const std::size_t other = lane + offset < 32 ? before[lane + offset] : before[lane];
      if (values[other] > values[before[lane]]) owner[lane] = other;
    }
  }
  return owner[0];
}

TokenRoute jit_sqrtsoftplus(const GateInput& in, bool small) {
  const Device device{in.level};
  std::vector<float> scores;
  std::vector<float> biased;
  for (std::size_t e = 0; e < in.logits.size(); ++e) {
    scores.push_back(std::sqrt(device.log1p(device.exp(in.logits[e]))));
    biased.push_back(scores[e] + bias_of(in, e));
  }
  TokenRoute route;
  for (std::int64_t k = 0; k < in.top_k; ++k) {
    std::size_t winner = 0;
    if (small) {
      std::vector<float> maxima(32, -FLT_MAX);
      std::vector<std::size_t> experts(32, 0);
      for (std::size_t warp = 0; warp * 32 < biased.size(); ++warp) {
        std::vector<float> lanes(32, -FLT_MAX);
        for (std::size_t lane = 0; lane < 32 && warp * 32 + lane < biased.size(); ++lane) {
          lanes[lane] = biased[warp * 32 + lane];
        }
        experts[warp] = warp * 32 + shuffled_maximum(lanes);
        maxima[warp] = biased[experts[warp]];
      }
      winner = experts[shuffled_maximum(maxima)];
    } else {
      for (std::size_t e = 1; e < biased.size(); ++e) {
        if (biased[e] > biased[winner]) winner = e;
      }
    }
    biased[winner] = -FLT_MAX;
    route.ids.push_back(static_cast<std::int32_t>(winner));
    route.weights.push_back(scores[winner]);
  }
  std::vector<float> lanes(16, 0.0f);
  std::copy(route.weights.begin(), route.weights.end(), lanes.begin());
  const float sum = butterfly(device, lanes);
  for (float& w : route.weights) w = w / (sum > 0.0f ? sum : 1.0f) * in.scaling;
  return route;
}

TokenRoute jit_hash(const GateInput& in) {
  const Device device{in.level};
  TokenRoute route;
  std::vector<float> lanes(32, 0.0f);
  for (std::size_t k = 0; k < in.given.size(); ++k) {
    const float x = in.logits[static_cast<std::size_t>(in.given[k])];
    lanes[k] = std::sqrt(std::fmax(x, 0.0f) + device.log1p(device.exp(-std::fabs(x))));
    route.ids.push_back(in.given[k]);
  }
  const float sum = butterfly(device, lanes);
  for (std::size_t k = 0; k < in.given.size(); ++k) route.weights.push_back(lanes[k] / sum);
  return route;
}

}  // namespace

TokenRoute sgl_route(std::string_view kernel, const GateInput& in) {
  if (kernel == "sgl_moe_fused_gate") return fused_gate(in, false);
  if (kernel == "sgl_kimi_k2_moe_fused_gate") return fused_gate(in, true);
  if (kernel == "sgl_topk_softmax") return topk_softmax(in, false);
  if (kernel == "sgl_topk_softmax_general") return topk_softmax(in, true);
  if (kernel.starts_with("sgl_topk_sigmoid")) return topk_sigmoid(in);
  if (kernel == "sglang_jit_grouped_topk") return jit_grouped_topk(in);
  if (kernel == "sglang_jit_sqrtsoftplus_gate") return jit_sqrtsoftplus(in, false);
  if (kernel == "sglang_jit_sqrtsoftplus_gate_small") return jit_sqrtsoftplus(in, true);
  if (kernel == "sglang_jit_hash_topk") return jit_hash(in);
  throw std::logic_error("no judge of this kernel");
}

}  // namespace moeref::judge
