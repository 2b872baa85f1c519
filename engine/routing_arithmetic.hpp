#pragma once

#include <cstdint>
#include <span>

#include "engine/routing_kernels.hpp"
#include "quant/dtype.hpp"

namespace moeref {

/// The f32 operations of a routing kernel at one level. Arguments may be infinite, and a result NaN
/// (infinity - infinity). The caller holds the default float environment.
class RoutingMath {
 public:
  explicit RoutingMath(RoutingArithmetic level) : level_(level) {}

  float add(float a, float b) const;
  float subtract(float a, float b) const { return add(a, -b); }
  float multiply(float a, float b) const;
  float divide(float a, float b) const;
  float reciprocal(float a) const;
  float exp(float x) const;
  float log1p(float x) const;
  float square_root(float x) const;
  /// 1 / (1 + exp(-x)), with expf or __expf.
  float sigmoid(float x, bool intrinsic) const;
  /// tanh(x / 2) / 2 + 1/2.
  float sigmoid_tanh(float x) const;
  /// The score of one expert; not for the softmax forms.
  float score(ScoreForm form, float logit) const;
  /// weight * factor / (divisor + epsilon) in f64, each operation rounded.
  double wide_share(float weight, float factor, float divisor, double epsilon) const;

  /// The sum of `terms` in `order`. `logits`: the type whose vectors SumOrder::vectors deals out.
  float sum(std::span<const float> terms, SumOrder order, Format logits) const;
  /// exp(x - m) for every x, m the largest; at least one is finite, none +infinity.
  void exponentials(std::span<const float> logits, std::span<float> out) const;

 private:
  float lanes_sum(std::span<const float> terms, std::size_t width, std::size_t lanes) const;
  float block_sum(std::span<const float> terms) const;

  RoutingArithmetic level_;
};

/// `value` rounded to a type, as f32.
float in_type(ValueType type, Format logits, float value);
/// The same from f64, in one rounding.
float in_type(ValueType type, Format logits, double value);

}  // namespace moeref
