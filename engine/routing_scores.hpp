#pragma once

#include <span>

namespace moeref {

// The correctly rounded numbers of routing. Each function rounds once, to nearest even, to f32,
// from the exact value of its formula. Arguments are not NaN; `factor` is a finite f32 of at least
// 2^-64 (so that factor / n is never a subnormal tie next to a transcendental). Double arithmetic
// with a proved error bound decides nearly always; where its interval holds a rounding boundary,
// arithmetic of any precision does. The caller's thread rounds to nearest and keeps subnormals.

/// factor / (1 + exp(-logit)); 0 for -inf, `factor` for +inf.
float sigmoid_times(float logit, float factor);

/// sqrt(log(1 + exp(logit))); 0 for -inf. +inf is not allowed.
float sqrt_softplus(float logit);

/// exp(x); 0 for -inf, infinity for +inf and where it overflows.
float rounded_exp(float x);

/// tanh(x); +-1 for +-inf.
float rounded_tanh(float x);

/// log(1 + x) for x >= 0, infinity included. The argument is a double because the logarithm of an
/// f32 d >= 1 is that of 1 + (d - 1), a difference which f32 may not have.
float rounded_log1p(double x);

/// out[i] = factor * exp(logits[i]) / sum_j exp(logits[j]). At least one logit is finite, none
/// +inf; -inf gives 0. `out` has the size of `logits`.
void softmax_times(std::span<const float> logits, float factor, std::span<float> out);

/// out[i] = factor * scores[i] / (sum_j scores[j] + epsilon); the scores and epsilon are finite and
/// not negative. Returns false, and leaves `out` alone, if the divisor is exactly 0.
bool shares_times(std::span<const float> scores, float epsilon, float factor, std::span<float> out);

/// The sum, in whatever order; +0 if it has no terms. Infinities as in IEEE 754.
float rounded_sum(std::span<const float> terms);

}  // namespace moeref
