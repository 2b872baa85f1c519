#include "engine/activation_gates.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/judge/mpfr_real.hpp"

// The three precisions of each gate function against MPFR, and their error bounds.

namespace moeref::gates {
namespace {

using judge::exact_real;
using judge::MpfrReal;

constexpr mpfr_prec_t kBits = 1000;  // 1 + tanh(y) loses up to 450 of them

MpfrReal sigmoid_by_mpfr(float alpha, float g) {
  MpfrReal s(kBits, -static_cast<double>(alpha) * g);
  mpfr_exp(s.get(), s.get(), MPFR_RNDN);
  mpfr_add_ui(s.get(), s.get(), 1, MPFR_RNDN);
  mpfr_ui_div(s.get(), 1, s.get(), MPFR_RNDN);
  return s;
}

MpfrReal normal_by_mpfr(float g) {
  MpfrReal s(kBits, 0.5);
  mpfr_sqrt(s.get(), s.get(), MPFR_RNDN);
  mpfr_mul_d(s.get(), s.get(), -static_cast<double>(g), MPFR_RNDN);
  mpfr_erfc(s.get(), s.get(), MPFR_RNDN);
  mpfr_div_2ui(s.get(), s.get(), 1, MPFR_RNDN);
  return s;
}

MpfrReal tanh_normal_by_mpfr(float g) {
  MpfrReal s(kBits, static_cast<double>(g));
  MpfrReal cubic(kBits);
  mpfr_pow_ui(cubic.get(), s.get(), 3, MPFR_RNDN);
  mpfr_mul_ui(cubic.get(), cubic.get(), 44715, MPFR_RNDN);
  mpfr_div_ui(cubic.get(), cubic.get(), 1000000, MPFR_RNDN);
  mpfr_add(s.get(), s.get(), cubic.get(), MPFR_RNDN);
  MpfrReal factor(kBits);
  mpfr_const_pi(factor.get(), MPFR_RNDN);
  mpfr_ui_div(factor.get(), 2, factor.get(), MPFR_RNDN);
  mpfr_sqrt(factor.get(), factor.get(), MPFR_RNDN);
  mpfr_mul(s.get(), s.get(), factor.get(), MPFR_RNDN);
  mpfr_tanh(s.get(), s.get(), MPFR_RNDN);
  mpfr_add_ui(s.get(), s.get(), 1, MPFR_RNDN);
  mpfr_div_2ui(s.get(), s.get(), 1, MPFR_RNDN);
  return s;
}

/// |found - exact| / exact.
double relative_error(const MpfrReal& found, const MpfrReal& exact) {
  MpfrReal error(kBits);
  mpfr_sub(error.get(), found.get(), exact.get(), MPFR_RNDN);
  mpfr_div(error.get(), error.get(), exact.get(), MPFR_RNDN);
  return std::fabs(mpfr_get_d(error.get(), MPFR_RNDN));
}

/// Gates of every size up to `largest`.
std::vector<float> gates_up_to(float largest) {
  std::mt19937_64 random(51);
  std::vector<float> result;
  for (int i = 0; i < 3000; ++i) {
    const float unit = static_cast<float>(random() >> 40) * 0x1p-24f;
    const int halvings = i % 2 == 0 ? 0 : static_cast<int>(random() % 40);
    const float gate = std::ldexp(unit * largest, -halvings);
    if (gate == 0.0f) continue;
    result.push_back(gate);
    result.push_back(-gate);
  }
  return result;
}

/// The largest share of its bound that an error takes, for doubles and double-doubles.
struct Shares {
  double estimate = 0.0;
  double fine = 0.0;
};

template <typename Gate, typename Judge>
Shares largest_shares(const Gate& gate, float largest, Judge judge) {
  Shares shares;
  for (const float g : gates_up_to(largest)) {
    if (gate.range(g) != Range::inside) continue;
    const MpfrReal value = judge(g);
    const Estimate s = gate.estimate(g);
    shares.estimate =
        std::max(shares.estimate, relative_error(MpfrReal(53, s.value), value) / s.error);
    if constexpr (Gate::kHasFineEstimate) {
      const FineEstimate fine = gate.fine_estimate(g);
      const MpfrReal sum = exact_real(exact::Dyadic(fine.value.hi) + exact::Dyadic(fine.value.lo));
      shares.fine = std::max(shares.fine, relative_error(sum, value) / fine.error);
    }
    const exact::Ball ball = gate.ball(g, 200);
    EXPECT_LT(mpfr_cmp(exact_real(ball.low()).get(), value.get()), 1) << g;
    EXPECT_GT(mpfr_cmp(exact_real(ball.high()).get(), value.get()), -1) << g;
    EXPECT_LT(ball.radius().exponent() - ball.middle().exponent(), -180) << g;
  }
  std::printf("  shares of the bounds: %.3f, %.3f\n", shares.estimate, shares.fine);
  return shares;
}

TEST(SigmoidGate, KeepsItsErrorBounds) {
  for (const float alpha : {1.0f, 1.702f, -3.5f}) {
    const Shares shares = largest_shares(SigmoidGate(alpha), 310.0f / std::fabs(alpha),
                                         [alpha](float g) { return sigmoid_by_mpfr(alpha, g); });
    EXPECT_LT(shares.estimate, 1.0);
    EXPECT_LT(shares.fine, 1.0);
  }
}

TEST(TanhGate, KeepsItsErrorBounds) {
  const Shares shares = largest_shares(TanhGate(), 18.0f, tanh_normal_by_mpfr);
  EXPECT_LT(shares.estimate, 1.0);
  EXPECT_LT(shares.fine, 1.0);
}

TEST(ErfGate, KeepsItsErrorBound) {
  EXPECT_LT(largest_shares(ErfGate(), 25.0f, normal_by_mpfr).estimate, 1.0);
}

TEST(Gates, AreTinyOutsideTheirRange) {
  // 2^-420 is what the activation relies on.
  MpfrReal bound(64, 1.0);
  mpfr_mul_2si(bound.get(), bound.get(), -420, MPFR_RNDN);
  EXPECT_EQ(ErfGate().range(std::nextafter(-24.0f, -25.0f)), Range::vanishing);
  EXPECT_LT(mpfr_cmp(normal_by_mpfr(-24.0f).get(), bound.get()), 0);
  EXPECT_EQ(SigmoidGate(1.0f).range(std::nextafter(-300.0f, -301.0f)), Range::vanishing);
  EXPECT_LT(mpfr_cmp(sigmoid_by_mpfr(1.0f, -300.0f).get(), bound.get()), 0);
  float edge = -15.0f;
  while (TanhGate().range(edge) != Range::vanishing) edge = std::nextafter(edge * 1.0001f, -99.0f);
  EXPECT_LT(mpfr_cmp(tanh_normal_by_mpfr(edge).get(), bound.get()), 0);
  EXPECT_EQ(TanhGate().range(-edge), Range::saturated);
}

}  // namespace
}  // namespace moeref::gates
