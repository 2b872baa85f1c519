#include "tests/judge/routing_judge.hpp"

#include <mpfr.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

namespace moeref::judge {
namespace {

class Number {
 public:
  explicit Number(mpfr_prec_t bits) { mpfr_init2(value_, bits); }
  ~Number() { mpfr_clear(value_); }
  Number(const Number&) = delete;
  Number& operator=(const Number&) = delete;
  mpfr_ptr operator()() { return value_; }

 private:
  mpfr_t value_;
};

/// Computes the number below (MPFR_RNDD) or above (MPFR_RNDU) the wanted value. The expressions
/// here are monotone in each sub-expression, so that directed roundings of opposite sense bound
/// them.
using Bound = std::function<void(mpfr_ptr result, mpfr_rnd_t direction)>;

/// Wide enough for exact sums and products of any f32 and of midpoints between them.
constexpr mpfr_prec_t kExactBits = 1200;

float enclosed(const Bound& bound) {
  for (mpfr_prec_t bits = 80; bits < 100000; bits *= 2) {
    Number low(bits);
    Number high(bits);
    bound(low(), MPFR_RNDD);
    bound(high(), MPFR_RNDU);
    const float below = mpfr_get_flt(low(), MPFR_RNDN);
    const float above = mpfr_get_flt(high(), MPFR_RNDN);
    if (below == above) return below;
  }
  throw std::logic_error("the judge cannot separate two floats");
}

mpfr_rnd_t opposite(mpfr_rnd_t direction) { return direction == MPFR_RNDD ? MPFR_RNDU : MPFR_RNDD; }

float sigmoid(float logit, float factor) {
  return enclosed([=](mpfr_ptr result, mpfr_rnd_t direction) {
    mpfr_set_flt(result, -logit, MPFR_RNDN);
    mpfr_exp(result, result, opposite(direction));
    mpfr_add_ui(result, result, 1, opposite(direction));
    mpfr_ui_div(result, 1, result, direction);
    Number scale(24);
    mpfr_set_flt(scale(), factor, MPFR_RNDN);
    mpfr_mul(result, result, scale(), direction);
  });
}

/// factor * exp(z_i - m) / sum_j exp(z_j - m) for every i, m the largest logit.
std::vector<float> softmax(std::span<const float> logits, float factor) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> result(logits.size());
  // exp(z - m), on the side of `direction`
  const auto term = [largest](mpfr_ptr out, float z, mpfr_rnd_t direction) {
    Number difference(kExactBits);
    mpfr_set_flt(difference(), z, MPFR_RNDN);
    mpfr_sub_d(difference(), difference(), static_cast<double>(largest), MPFR_RNDN);
    mpfr_exp(out, difference(), direction);
  };
  for (mpfr_prec_t bits = 80; bits < 100000; bits *= 2) {
    Number low_sum(bits);
    Number high_sum(bits);
    Number value(bits);
    mpfr_set_zero(low_sum(), 1);
    mpfr_set_zero(high_sum(), 1);
    for (const float z : logits) {
      term(value(), z, MPFR_RNDD);
      mpfr_add(low_sum(), low_sum(), value(), MPFR_RNDD);
      term(value(), z, MPFR_RNDU);
      mpfr_add(high_sum(), high_sum(), value(), MPFR_RNDU);
    }
    bool certain = true;
    for (std::size_t i = 0; i < logits.size() && certain; ++i) {
      float bounds[2];
      for (const mpfr_rnd_t direction : {MPFR_RNDD, MPFR_RNDU}) {
        const bool below = direction == MPFR_RNDD;
        term(value(), logits[i], direction);
        mpfr_mul_d(value(), value(), static_cast<double>(factor), direction);
        mpfr_div(value(), value(), below ? high_sum() : low_sum(), direction);
        bounds[below ? 0 : 1] = mpfr_get_flt(value(), MPFR_RNDN);
      }
      certain = bounds[0] == bounds[1];
      result[i] = bounds[0];
    }
    if (certain) return result;
  }
  throw std::logic_error("the judge cannot separate two floats");
}

/// The f32 nearest to numerator / denominator (> 0, exact both), ties to even: starts from an
/// approximation and walks while the midpoint to a neighbour, multiplied out, says so.
float nearest_quotient(mpfr_ptr numerator, mpfr_ptr denominator) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Number work(kExactBits);
  mpfr_div(work(), numerator, denominator, MPFR_RNDN);
  float guess = mpfr_get_flt(work(), MPFR_RNDZ);
  for (;;) {
    const float next = std::nextafter(guess, kInfinity);
    // (guess + next) / 2 * denominator against the numerator
    mpfr_set_d(work(), static_cast<double>(guess) + static_cast<double>(next), MPFR_RNDN);
    mpfr_div_ui(work(), work(), 2, MPFR_RNDN);
    mpfr_mul(work(), work(), denominator, MPFR_RNDN);
    const int side = mpfr_cmp(numerator, work());
    const bool even = std::bit_cast<std::uint32_t>(guess) % 2 == 0;
    if (side < 0 || (side == 0 && even)) return guess;
    guess = next;
  }
}

float rounded_product(float left, float right) {
  if (std::isinf(left)) return left;
  Number product(kExactBits);
  mpfr_set_flt(product(), left, MPFR_RNDN);
  mpfr_mul_d(product(), product(), static_cast<double>(right), MPFR_RNDN);
  return mpfr_get_flt(product(), MPFR_RNDN);
}

float rounded_sum(float left, float right) {
  Number sum(kExactBits);
  mpfr_set_flt(sum(), left, MPFR_RNDN);
  mpfr_add_d(sum(), sum(), static_cast<double>(right), MPFR_RNDN);
  return mpfr_get_flt(sum(), MPFR_RNDN);
}

std::vector<float> all_scores(RoutingMethod method, std::span<const float> logits) {
  if (method == RoutingMethod::softmax_topk) return softmax(logits, 1.0f);
  std::vector<float> scores;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    switch (method) {
      case RoutingMethod::deepseek_v3:
      case RoutingMethod::sigmoid_topk:
      case RoutingMethod::minimax2:
        scores.push_back(sigmoid(logits[e], 1.0f));
        break;
      case RoutingMethod::sqrt_softplus:
        scores.push_back(sqrt_softplus(logits[e]));
        break;
      case RoutingMethod::softmax_topk:
      case RoutingMethod::topk_softmax:
      case RoutingMethod::llama4:
      case RoutingMethod::topk_logits:
        scores.push_back(logits[e]);
        break;
    }
  }
  return scores;
}

/// Takes the largest `count` times; the first of equals wins. Untaken entries only, if `allowed`.
std::vector<std::size_t> largest(std::span<const float> values, std::vector<bool> allowed,
                                 std::int64_t count) {
  std::vector<std::size_t> taken;
  for (std::int64_t i = 0; i < count; ++i) {
    std::size_t best = values.size();
    for (std::size_t v = 0; v < values.size(); ++v) {
      if (allowed[v] && (best == values.size() || values[v] > values[best])) best = v;
    }
    allowed[best] = false;
    taken.push_back(best);
  }
  return taken;
}

std::vector<bool> experts_in_kept_groups(const Routing& routing, std::span<const float> choices) {
  const std::size_t width = choices.size() / static_cast<std::size_t>(routing.groups);
  std::vector<float> sums;
  for (std::size_t first = 0; first < choices.size(); first += width) {
    const auto group = choices.subspan(first, width);
    const auto two = largest(group, std::vector<bool>(width, true), width == 1 ? 1 : 2);
    sums.push_back(width == 1 ? group[0] : rounded_sum(group[two[0]], group[two[1]]));
  }
  std::vector<bool> kept(choices.size(), false);
  for (const std::size_t g :
       largest(sums, std::vector<bool>(sums.size(), true), routing.kept_groups)) {
    for (std::size_t e = g * width; e < (g + 1) * width; ++e) kept[e] = true;
  }
  return kept;
}

std::vector<float> weights_of(const Routing& routing, std::span<const float> logits,
                              std::span<const float> scores, std::span<const std::size_t> chosen) {
  std::vector<float> chosen_scores;
  std::vector<float> chosen_logits;
  for (const std::size_t e : chosen) {
    chosen_scores.push_back(scores[e]);
    chosen_logits.push_back(logits[e]);
  }
  const bool always =
      routing.method == RoutingMethod::minimax2 || routing.method == RoutingMethod::sqrt_softplus;
  std::vector<float> weights;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    switch (routing.method) {
      case RoutingMethod::topk_softmax:
        return softmax(chosen_logits, routing.scaling);
      case RoutingMethod::llama4:
        weights.push_back(sigmoid(chosen_logits[i], routing.scaling));
        break;
      case RoutingMethod::topk_logits:
        weights.push_back(rounded_product(chosen_logits[i], routing.scaling));
        break;
      default:
        if (always || routing.renormalize)
          return shares(chosen_scores, routing.sum_epsilon, routing.scaling);
        weights.push_back(rounded_product(chosen_scores[i], routing.scaling));
    }
  }
  return weights;
}

}  // namespace

TokenRoute route_token(const Routing& routing, std::span<const float> logits,
                       std::span<const float> bias) {
  const std::vector<float> scores = all_scores(routing.method, logits);
  std::vector<float> choices = scores;
  for (std::size_t e = 0; e < bias.size(); ++e) choices[e] = rounded_sum(scores[e], bias[e]);
  std::vector<bool> allowed(choices.size(), true);
  if (routing.method == RoutingMethod::deepseek_v3) {
    allowed = experts_in_kept_groups(routing, choices);
    if (routing.mask_fill == MaskFill::zero) {
      for (std::size_t e = 0; e < choices.size(); ++e) {
        if (!allowed[e]) choices[e] = 0.0f;
      }
      allowed.assign(choices.size(), true);
    }
  }
  const std::vector<std::size_t> chosen = largest(choices, allowed, routing.top_k);
  return {{chosen.begin(), chosen.end()}, weights_of(routing, logits, scores, chosen)};
}

std::vector<float> weigh_token(const Routing& routing, std::span<const float> logits,
                               std::span<const std::int32_t> ids) {
  std::vector<std::size_t> chosen;
  for (const std::int32_t id : ids) {
    if (id >= 0) chosen.push_back(static_cast<std::size_t>(id));
  }
  const std::vector<float> some =
      weights_of(routing, logits, all_scores(routing.method, logits), chosen);
  std::vector<float> weights;
  std::size_t next = 0;
  for (const std::int32_t id : ids) weights.push_back(id < 0 ? 0.0f : some[next++]);
  return weights;
}

float sqrt_softplus(float logit) {
  return enclosed([=](mpfr_ptr result, mpfr_rnd_t direction) {
    // log(1 + exp z) = max(z, 0) + log1p(exp(-|z|))
    mpfr_set_flt(result, -std::fabs(logit), MPFR_RNDN);
    mpfr_exp(result, result, direction);
    mpfr_log1p(result, result, direction);
    Number positive_part(24);
    mpfr_set_flt(positive_part(), std::fmax(logit, 0.0f), MPFR_RNDN);
    mpfr_add(result, result, positive_part(), direction);
    mpfr_sqrt(result, result, direction);
  });
}

std::vector<float> shares(std::span<const float> scores, float epsilon, float factor) {
  Number sum(kExactBits);
  mpfr_set_flt(sum(), epsilon, MPFR_RNDN);
  for (const float s : scores) mpfr_add_d(sum(), sum(), static_cast<double>(s), MPFR_RNDN);
  std::vector<float> result;
  for (const float s : scores) {
    Number numerator(kExactBits);
    mpfr_set_flt(numerator(), s, MPFR_RNDN);
    mpfr_mul_d(numerator(), numerator(), static_cast<double>(factor), MPFR_RNDN);
    result.push_back(nearest_quotient(numerator(), sum()));
  }
  return result;
}

}  // namespace moeref::judge
