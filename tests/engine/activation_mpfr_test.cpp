#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/judge/activation_cases.hpp"

// The engine against MPFR, bit for bit.

namespace moeref {
namespace {

using judge::Comparison;
using judge::kInfinity;
using judge::NamedParameters;

class ActivationByMpfr : public testing::TestWithParam<NamedParameters> {};

std::vector<float> ups_for_every_gate(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> ups = {1.0f, -0x1.921fb6p1f, 0x1p-149f, -0x1.fffffep127f, -0.0f};
  while (ups.size() < 8) ups.push_back(judge::typical_float(random));
  return ups;
}

TEST_P(ActivationByMpfr, AgreesForEveryBf16Gate) {
  const std::vector<float> ups = ups_for_every_gate(21);
  const bool gated = is_gated(GetParam().parameters.form);
  Comparison compare(GetParam());
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const float value = judge::from_bits(code << 16);
    if (!gated) {
      compare(3.0f, value);
      continue;
    }
    for (const float up : ups) compare(value, up);
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

TEST_P(ActivationByMpfr, AgreesForRandomFloats) {
  std::mt19937_64 random(22);
  Comparison compare(GetParam());
  for (int i = 0; i < 20000; ++i) {
    const float gate = judge::typical_float(random);
    compare(gate, judge::typical_float(random));
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

TEST_P(ActivationByMpfr, AgreesForExtremeOperands) {
  Comparison compare(GetParam());
  for (const float gate : judge::extreme_floats()) {
    for (const float up : judge::extreme_floats()) compare(gate, up);
  }
  EXPECT_EQ(compare.differences(), 0);
}

TEST_P(ActivationByMpfr, AgreesForOperandsThatAreNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> values = {nan, -nan, judge::from_bits(0x7F800001u), kInfinity, -kInfinity};
  const std::size_t specials = values.size();
  const auto& extremes = judge::extreme_floats();
  values.insert(values.end(), extremes.begin(), extremes.end());
  Comparison compare(GetParam());
  for (std::size_t i = 0; i < specials; ++i) {
    for (const float other : values) {
      compare(values[i], other);
      compare(other, values[i]);
    }
  }
  EXPECT_EQ(compare.differences(), 0);
}

/// Pairs whose product has 25 bits and ends in a one: halved or whole it is a midpoint of two
/// floats.
struct OddProduct {
  float first;
  float second;
};

OddProduct odd_product(std::mt19937_64& random) {
  for (;;) {
    const std::uint64_t first = (random() % (1u << 13)) * 2 + 1;
    const std::uint64_t second = (random() % (1u << 13)) * 2 + 1;
    if ((first * second) >> 24 == 1) {
      return {static_cast<float>(first), static_cast<float>(second)};
    }
  }
}

float scaled(float x, int exponent) { return std::ldexp(x, exponent); }

// g S(g) u is g u (1/2 + ...) for a tiny gate: the smaller the gate, the closer to the midpoint.
TEST_P(ActivationByMpfr, AgreesAroundMidpointsForTinyGates) {
  std::mt19937_64 random(23);
  Comparison compare(GetParam());
  for (int i = 0; i < 3000; ++i) {
    const OddProduct pair = odd_product(random);
    const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
    const int exponent = -20 - static_cast<int>(random() % 129);
    compare(sign * scaled(pair.first, exponent), pair.second);
    // In the subnormal range shorter products are midpoints.
    const auto few = static_cast<float>(random() % 64);
    compare(sign * scaled(few, -149), scaled(static_cast<float>(random() % 64), 0));
    compare(sign * scaled(few, -75), scaled(static_cast<float>(random() % 64), -74));
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

// S(g) is nearly 1 for a large gate, so g u decides, less a part that can be below 2^-(10^38).
TEST_P(ActivationByMpfr, AgreesAroundMidpointsForLargeGates) {
  std::mt19937_64 random(24);
  Comparison compare(GetParam());
  for (int i = 0; i < 3000; ++i) {
    const OddProduct pair = odd_product(random);
    const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
    int exponent = 0;
    std::frexp(pair.first, &exponent);
    const int wanted = 4 + static_cast<int>(random() % (i % 4 == 0 ? 120 : 6));
    const float gate = scaled(pair.first, wanted - exponent);
    const int up_exponent = static_cast<int>(random() % 100) - 50;
    compare(gate, sign * scaled(pair.second, up_exponent));
    compare(-gate, sign * scaled(pair.second, up_exponent));
    compare(gate, scaled(static_cast<float>(random() % 64), -149));
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

/// The gate's own function g S(g) in double, well enough to aim at a border.
double rough_gate(const ActivationParameters& p, double g) {
  switch (p.form) {
    case ActivationForm::geglu_erf:
      return g * std::erfc(-g / std::sqrt(2.0)) / 2;
    case ActivationForm::geglu_tanh:
      return g / (1 + std::exp(-1.5957691216057308 * (g + 0.044715 * g * g * g)));
    case ActivationForm::swiglu:
      return g / (1 + std::exp(-static_cast<double>(p.alpha) * g));
    default:
      return g / (1 + std::exp(-g));
  }
}

// Results next to the overflow border, to half of the smallest subnormal, and to midpoints between
// subnormals.
TEST_P(ActivationByMpfr, AgreesAtTheBordersOfTheRange) {
  const ActivationParameters& p = GetParam().parameters;
  std::mt19937_64 random(25);
  Comparison compare(GetParam());
  for (int i = 0; i < 20000; ++i) {
    float gate = judge::typical_float(random);
    if (p.limit < gate) gate = p.limit;
    const double multiplier = rough_gate(p, static_cast<double>(gate));
    const double target =
        i % 2 == 0 ? 0x1.ffffffp127 : (static_cast<double>(random() % 8) + 0.5) * 0x1p-149;
    float up = static_cast<float>(target / multiplier - static_cast<double>(p.beta));
    if (!std::isfinite(up)) continue;
    for (int step = 0; step < 3; ++step) {
      compare(gate, up);
      compare(gate, -up);
      up = std::nextafter(up, 0.0f);
    }
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

// u + beta, exact, is up to 277 bits long and may cancel to nothing or nearly so.
TEST_P(ActivationByMpfr, AgreesWhenUpNearlyCancelsBeta) {
  Comparison compare(GetParam());
  const float beta = GetParam().parameters.beta;
  for (const float gate : judge::extreme_floats()) {
    float up = -beta;
    for (int i = 0; i < 20; ++i) {
      compare(gate, up);
      up = std::nextafter(up, i % 2 == 0 ? kInfinity : -kInfinity);
    }
    for (int exponent = -149; exponent < 128; exponent += 3) {
      compare(gate, -beta + std::ldexp(1.0f, exponent));
      compare(gate, std::ldexp(-1.0f, exponent));
    }
  }
  EXPECT_EQ(compare.differences(), 0);
}

INSTANTIATE_TEST_SUITE_P(Forms, ActivationByMpfr,
                         testing::ValuesIn(judge::activation_parameter_sets()),
                         [](const auto& named) { return named.param.name; });

// silu(g) against the limit: the limit is the float next to silu(g), on either side.
TEST(SiluClampAfter, ComparesSiluWithTheLimitExactly) {
  std::mt19937_64 random(26);
  std::int64_t decided_exactly = 0;
  for (int i = 0; i < 20000; ++i) {
    const float gate = std::fabs(judge::typical_float(random));
    float limit = activate({.form = ActivationForm::silu}, 0.0f, gate);
    if (!std::isfinite(limit)) continue;
    limit = std::nextafter(limit, 0.0f);
    for (int step = 0; step < 3; ++step) {
      const NamedParameters named{"step", {ActivationForm::silu_clamp_after, 1.0f, 0.0f, limit}};
      Comparison compare(named);
      compare(gate, 0x1.555556p-2f);
      ASSERT_EQ(compare.differences(), 0) << gate << " " << limit;
      decided_exactly += compare.counts().at(ActivationLevel::exact);
      limit = std::nextafter(limit, kInfinity);
    }
  }
  EXPECT_GT(decided_exactly, 0);
}

}  // namespace
}  // namespace moeref
