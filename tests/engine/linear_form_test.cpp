#include "engine/exact/linear_form.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "engine/exact/superaccumulator.hpp"
#include "tests/judge/exact_dot.hpp"

namespace moeref::exact {
namespace {

/// Few bits on purpose: sums then often lie exactly on rounding boundaries.
double random_value(std::mt19937_64& random, int bits) {
  const auto size = static_cast<double>(random() % (1ull << bits));
  return std::ldexp(random() % 2 == 0 ? size : -size, static_cast<int>(random() % 40) - 20);
}

TEST(LinearForm, RoundsTheExactValueOnceOnBothPaths) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20000; ++round) {
    const int bits = round % 2 == 0 ? 4 : 24;
    LinearForm form;
    judge::ExactSum expected;
    for (int term = static_cast<int>(random() % 5); term >= 0; --term) {
      const double left = random_value(random, bits);
      const double right = random_value(random, bits);
      form.add_product(left, right);
      expected.add_product(left, right);
    }
    const double factor = random_value(random, bits);
    const double divisor = random_value(random, bits);
    const double addend = random_value(random, bits);
    form.multiply_by(factor);
    expected.multiply(factor);
    if (round % 3 == 0 && divisor != 0.0) {
      form.divide_by(divisor);
      expected.divide(divisor);
    }
    form.add(addend);
    expected.add(addend);
    for (const Format format : {Format::f32, Format::bf16, Format::f16}) {
      const auto wanted = std::bit_cast<std::uint32_t>(expected.round(format));
      ASSERT_EQ(std::bit_cast<std::uint32_t>(form.round(format)), wanted) << round;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(form.round_by_integers(format)), wanted) << round;
    }
  }
}

TEST(Superaccumulator, AddsWithoutRoundingOverTheWholeRange) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 200; ++round) {
    Superaccumulator sum;
    Dyadic expected;
    for (int term = 0; term < 50; ++term) {
      const double value = std::ldexp(static_cast<double>(static_cast<std::int64_t>(random())),
                                      static_cast<int>(random() % 1900) - 1130);
      sum.add(value);
      expected += Dyadic(value);
    }
    EXPECT_TRUE(sum.total() == expected);
  }
}

}  // namespace
}  // namespace moeref::exact
