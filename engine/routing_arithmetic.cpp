#include "engine/routing_arithmetic.hpp"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "engine/routing_scores.hpp"
#include "quant/cast.hpp"
#include "quant/gpu/functions.hpp"

namespace moeref {
namespace {

static_assert(FLT_EVAL_METHOD == 0);

constexpr std::size_t kWarp = 32;

/// log(d), d >= 1.
float log_of(float d) { return rounded_log1p(static_cast<double>(d) - 1.0); }

template <typename Value>
float rounded_to(ValueType type, Format logits, Value value) {
  if (type == ValueType::bf16) logits = Format::bf16;
  if (type == ValueType::f32) logits = Format::f32;
  switch (logits) {
    case Format::f32:
      return cast<Format::f32>(value);
    case Format::bf16:
      return cast<Format::bf16>(value);
    case Format::f16:
      return cast<Format::f16>(value);
    default:
      throw std::logic_error("in_type: no type of logits");
  }
}

}  // namespace

float RoutingMath::add(float a, float b) const {
  return level_ == RoutingArithmetic::fast_math ? gpu::add_ftz(a, b) : a + b;
}

float RoutingMath::multiply(float a, float b) const {
  return level_ == RoutingArithmetic::fast_math ? gpu::mul_ftz(a, b) : a * b;
}

float RoutingMath::divide(float a, float b) const {
  return level_ == RoutingArithmetic::fast_math ? gpu::div_approx_ftz(a, b) : a / b;
}

float RoutingMath::reciprocal(float a) const {
  return level_ == RoutingArithmetic::fast_math ? gpu::rcp_approx_ftz(a) : 1.0f / a;
}

float RoutingMath::exp(float x) const {
  switch (level_) {
    case RoutingArithmetic::rounded:
      return rounded_exp(x);
    case RoutingArithmetic::precise:
      return gpu::expf_precise(x);
    case RoutingArithmetic::fast_math:
      return gpu::expf_fast(x);
  }
  throw std::logic_error("RoutingMath: unknown level");
}

float RoutingMath::log1p(float x) const {
  switch (level_) {
    case RoutingArithmetic::rounded:
      return rounded_log1p(static_cast<double>(x));
    case RoutingArithmetic::precise:
      return gpu::log1pf_precise(x);
    case RoutingArithmetic::fast_math:
      break;
  }
  throw std::logic_error("RoutingMath: log1p has no formula at this level");
}

float RoutingMath::square_root(float x) const {
  if (level_ == RoutingArithmetic::fast_math) {
    throw std::logic_error("RoutingMath: sqrt has no formula at this level");
  }
  return std::sqrt(x);
}

float RoutingMath::sigmoid(float x, bool intrinsic) const {
  switch (level_) {
    case RoutingArithmetic::rounded:
      return 1.0f / (1.0f + rounded_exp(-x));
    case RoutingArithmetic::precise:
      return intrinsic ? 1.0f / (1.0f + gpu::expf_intrinsic(-x)) : gpu::sigmoid_precise(x);
    case RoutingArithmetic::fast_math:
      return gpu::sigmoid_fast(x);
  }
  throw std::logic_error("RoutingMath: unknown level");
}

float RoutingMath::sigmoid_tanh(float x) const {
  if (level_ != RoutingArithmetic::rounded) {
    throw std::logic_error("RoutingMath: tanh has no formula at this level");
  }
  // Half of a subnormal is lost beside 1/2 anyway, so that it is no matter whether the compiler
  // fuses the two operations.
  return 0.5f * rounded_tanh(0.5f * x) + 0.5f;
}

float RoutingMath::score(ScoreForm form, float logit) const {
  constexpr float kThreshold = 20.0f;
  switch (form) {
    case ScoreForm::logit:
      return logit;
    case ScoreForm::sigmoid:
      return sigmoid(logit, false);
    case ScoreForm::sigmoid_intrinsic:
      return sigmoid(logit, true);
    case ScoreForm::sigmoid_tanh:
      return sigmoid_tanh(logit);
    case ScoreForm::sqrt_softplus:
      return square_root(log1p(exp(logit)));
    case ScoreForm::sqrt_softplus_20:
      return square_root(logit > kThreshold ? logit : log1p(exp(logit)));
    case ScoreForm::sqrt_softplus_log:
      return square_root(logit > kThreshold ? logit : log_of(add(1.0f, exp(logit))));
    case ScoreForm::sqrt_softplus_abs:
      return square_root(add(std::max(logit, 0.0f), log1p(exp(-std::fabs(logit)))));
    case ScoreForm::once_sigmoid:
      return sigmoid_times(logit, 1.0f);
    case ScoreForm::once_sqrt_softplus:
      return std::isinf(logit) && logit > 0.0f ? logit : moeref::sqrt_softplus(logit);
    case ScoreForm::softmax_divided:
    case ScoreForm::softmax_reciprocal:
    case ScoreForm::once_softmax:
      break;
  }
  throw std::logic_error("RoutingMath: a softmax is no score of one expert");
}

double RoutingMath::wide_share(float weight, float factor, float divisor, double epsilon) const {
  const double product = static_cast<double>(weight) * static_cast<double>(factor);
  return product / (static_cast<double>(divisor) + epsilon);
}

float RoutingMath::lanes_sum(std::span<const float> terms, std::size_t width,
                             std::size_t lanes) const {
  std::array<float, kWarp> partial{};
  for (std::size_t i = 0; i < terms.size(); ++i) {
    float& lane = partial[i / width % lanes];
    lane = add(lane, terms[i]);
  }
  for (std::size_t mask = lanes / 2; mask > 0; mask /= 2) {
    const std::array<float, kWarp> before = partial;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      partial[lane] = add(before[lane], before[lane ^ mask]);
    }
  }
  return partial[0];
}

float RoutingMath::block_sum(std::span<const float> terms) const {
  constexpr std::size_t kThreads = 256;
  std::array<float, kThreads> partial{};
  for (std::size_t i = 0; i < terms.size(); ++i) {
    float& thread = partial[i % kThreads];
    thread = add(thread, terms[i]);
  }
  // Neighbours first: what ends in the first lane of each warp is a balanced tree in order.
  for (std::size_t step = 1; step < kWarp; step *= 2) {
    for (std::size_t i = 0; i + step < kThreads; i += 2 * step) {
      partial[i] = add(partial[i], partial[i + step]);
    }
  }
  float total = partial[0];
  for (std::size_t warp = kWarp; warp < kThreads; warp += kWarp) total = add(total, partial[warp]);
  return total;
}

float RoutingMath::sum(std::span<const float> terms, SumOrder order, Format logits) const {
  switch (order) {
    case SumOrder::unspecified:
      return rounded_sum(terms);
    case SumOrder::serial: {
      float total = 0.0f;
      for (const float term : terms) total = add(total, term);
      return total;
    }
    case SumOrder::lanes_32:
      return lanes_sum(terms, 1, kWarp);
    case SumOrder::vectors: {
      const std::size_t in_vector = logits == Format::f32 ? 4 : 8;  // 16 bytes
      const std::size_t width = std::min(in_vector, terms.size());
      return lanes_sum(terms, width, std::min(kWarp, terms.size() / width));
    }
    case SumOrder::block_256:
      return block_sum(terms);
  }
  throw std::logic_error("RoutingMath: unknown order of a sum");
}

void RoutingMath::exponentials(std::span<const float> logits, std::span<float> out) const {
  const float largest = *std::max_element(logits.begin(), logits.end());
  for (std::size_t i = 0; i < logits.size(); ++i) out[i] = exp(subtract(logits[i], largest));
}

float in_type(ValueType type, Format logits, float value) {
  return rounded_to(type, logits, value);
}

float in_type(ValueType type, Format logits, double value) {
  return rounded_to(type, logits, value);
}

}  // namespace moeref
