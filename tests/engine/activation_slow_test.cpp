#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/judge/activation_cases.hpp"

// Millions of activations against MPFR: minutes.

namespace moeref {
namespace {

using judge::Comparison;
using judge::NamedParameters;

class ActivationByMpfrSlow : public testing::TestWithParam<NamedParameters> {};

TEST_P(ActivationByMpfrSlow, AgreesForAMillionRandomPairs) {
  std::mt19937_64 random(41);
  Comparison compare(GetParam());
  for (int i = 0; i < 125000; ++i) {
    const float gate = judge::typical_float(random);
    for (int k = 0; k < 8; ++k) compare(gate, judge::typical_float(random));
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

// bf16 operands, as a layer has them that keeps its intermediates in bf16.
TEST_P(ActivationByMpfrSlow, AgreesForEveryBf16GateWithManyBf16Ups) {
  std::mt19937_64 random(42);
  const bool gated = is_gated(GetParam().parameters.form);
  Comparison compare(GetParam());
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    for (int k = 0; k < (gated ? 24 : 1); ++k) {
      const auto up = static_cast<std::uint32_t>(random() & 0xFFFF) << 16;
      compare(judge::from_bits(code << 16), judge::from_bits(gated ? up : code << 16));
    }
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

// Neighbouring floats over whole binades: every 97th of them.
TEST_P(ActivationByMpfrSlow, AgreesForDenseGates) {
  Comparison compare(GetParam());
  for (const float start : {0x1p-12f, 0.5f, 4.0f, 64.0f}) {
    for (std::uint32_t step = 0; step < (1u << 23); step += 97) {
      const float gate = judge::from_bits(judge::bits_of(start) + step);
      compare(gate, gate);
      compare(-gate, -gate);
    }
  }
  compare.counts().report(GetParam().name);
  EXPECT_EQ(compare.differences(), 0);
}

INSTANTIATE_TEST_SUITE_P(Forms, ActivationByMpfrSlow,
                         testing::ValuesIn(judge::activation_parameter_sets()),
                         [](const auto& named) { return named.param.name; });

}  // namespace
}  // namespace moeref
