#include "engine/exact/ball.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "engine/exact/fast_exp.hpp"
#include "engine/exact/fast_normal.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::exact {
namespace {

using judge::exact_real;
using judge::MpfrReal;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

/// Whether the exact value that `value` (good to its precision) stands for can lie in the ball.
bool holds(const Ball& ball, const MpfrReal& value) {
  const MpfrReal low = exact_real(ball.low());
  const MpfrReal high = exact_real(ball.high());
  MpfrReal slack(64);
  mpfr_mul_2si(slack.get(), value.get(), 16 - static_cast<long>(mpfr_get_prec(value.get())),
               MPFR_RNDA);
  mpfr_abs(slack.get(), slack.get(), MPFR_RNDA);
  MpfrReal end(mpfr_get_prec(value.get()) + 64);
  mpfr_add(end.get(), value.get(), slack.get(), MPFR_RNDU);
  if (mpfr_cmp(end.get(), low.get()) < 0) return false;
  mpfr_sub(end.get(), value.get(), slack.get(), MPFR_RNDD);
  return mpfr_cmp(end.get(), high.get()) <= 0;
}

/// log2(radius / |middle|).
std::int64_t relative_radius(const Ball& ball) {
  return ball.is_exact() ? -1'000'000 : ball.radius().exponent() - ball.middle().exponent();
}

struct Function {
  std::string name;
  std::function<Ball(const Ball&, int)> ball;
  std::function<void(mpfr_ptr, mpfr_srcptr)> mpfr;
  double low;
  double high;
};

/// The operand needs no more than 53 bits; the precision of `y` is enough for every cancellation.
std::vector<Function> functions() {
  const auto log1p_exp = [](mpfr_ptr y, mpfr_srcptr x) {
    mpfr_exp(y, x, MPFR_RNDN);
    mpfr_log1p(y, y, MPFR_RNDN);
  };
  const auto logistic = [](mpfr_ptr y, mpfr_srcptr x) {
    mpfr_neg(y, x, MPFR_RNDN);
    mpfr_exp(y, y, MPFR_RNDN);
    mpfr_add_ui(y, y, 1, MPFR_RNDN);
    mpfr_ui_div(y, 1, y, MPFR_RNDN);
  };
  return {
      {"exp", exp, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_exp(y, x, MPFR_RNDN); }, -1e6, 1e6},
      {"log1p", log1p, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_log1p(y, x, MPFR_RNDN); }, -0.9999,
       1e300},
      {"softplus", softplus, log1p_exp, -1e4, 1e4},
      {"erf", erf, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_erf(y, x, MPFR_RNDN); }, -30, 30},
      {"erfc", erfc, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_erfc(y, x, MPFR_RNDN); }, -30, 60},
      {"tanh", tanh, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_tanh(y, x, MPFR_RNDN); }, -1e3, 1e3},
      {"sigmoid", sigmoid, logistic, -1e5, 1e5},
      {"square_root", square_root, [](mpfr_ptr y, mpfr_srcptr x) { mpfr_sqrt(y, x, MPFR_RNDN); }, 0,
       1e300},
  };
}

/// Operands of every size within the function's domain.
std::vector<double> operands(const Function& function, std::uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  std::vector<double> result;
  while (result.size() < static_cast<std::size_t>(count)) {
    const double unit = static_cast<double>(random() >> 11) * 0x1p-53;
    double x = function.low + unit * (function.high - function.low);
    if (result.size() % 2 == 0) {
      x = std::ldexp(1.0 + unit, static_cast<int>(random() % 190) - 170);
      if (random() % 2 == 0) x = -x;
    }
    if (result.size() % 5 == 1) x = (random() % 2 == 0 ? 12.0 : -12.0) * unit;
    if (x > function.low && x < function.high) result.push_back(x);
  }
  return result;
}

class BallFunction : public testing::TestWithParam<std::size_t> {
 protected:
  Function function() const { return functions()[GetParam()]; }
};

TEST_P(BallFunction, HoldsTheValueAndIsNarrow) {
  const Function f = function();
  for (const int bits : {64, 128, 333, 1024}) {
    for (const double x : operands(f, 31, bits > 200 ? 60 : 200)) {
      MpfrReal value(bits + 400);
      f.mpfr(value.get(), MpfrReal(53, x).get());
      const Ball ball = f.ball(Ball(x), bits);
      ASSERT_TRUE(holds(ball, value)) << f.name << "(" << x << ") with " << bits;
      ASSERT_LE(relative_radius(ball), 2 - bits) << f.name << "(" << x << ") with " << bits;
      ASSERT_EQ(ball.sign(), value.sign()) << f.name << "(" << x << ")";
    }
  }
}

TEST_P(BallFunction, HoldsTheImageOfAnInterval) {
  const Function f = function();
  std::mt19937_64 random(32);
  for (const double x : operands(f, 33, 150)) {
    const double radius = std::fabs(x) * std::ldexp(1.0, -static_cast<int>(random() % 60));
    if (x - radius <= f.low || x + radius >= f.high) continue;
    Ball image;
    try {
      image = f.ball(Ball(Dyadic(x), Dyadic(radius)), 100);
    } catch (const std::domain_error&) {
      continue;  // allowed: the interval was too wide for the function
    }
    for (const double part : {-1.0, -0.5, -0.01, 0.0, 0.3, 1.0}) {
      const Dyadic point = Dyadic(x) + Dyadic(radius) * Dyadic(part);
      MpfrReal value(600);
      f.mpfr(value.get(), exact_real(point).get());
      ASSERT_TRUE(holds(image, value)) << f.name << "(" << x << " +- " << radius << ") " << part;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BallFunction, testing::Range(std::size_t{0}, functions().size()),
                         [](const auto& index) { return functions()[index.param].name; });

TEST(Ball, ArithmeticHoldsTheExactResult) {
  std::mt19937_64 random(34);
  for (int i = 0; i < 5000; ++i) {
    const auto operand = [&] {
      const double middle = std::ldexp(static_cast<double>(random() >> 11) - 0x1p52,
                                       static_cast<int>(random() % 200) - 100);
      const double radius = std::fabs(middle) * std::ldexp(1.0, -static_cast<int>(random() % 80));
      return random() % 4 == 0 ? Ball(middle) : Ball(Dyadic(middle), Dyadic(radius));
    };
    const Ball x = operand();
    const Ball y = operand();
    const int bits = 20 + static_cast<int>(random() % 200);
    const Ball sum = add(x, y, bits);
    const Ball difference = subtract(x, y, bits);
    const Ball product = multiply(x, y, bits);
    const bool divisible = compare(y.middle().absolute(), y.radius()) > 0;
    const Ball quotient = divisible ? divide(x, y, bits) : Ball();
    for (const Dyadic& a : {x.low(), x.middle(), x.high()}) {
      for (const Dyadic& b : {y.low(), y.middle(), y.high()}) {
        ASSERT_TRUE(holds(sum, exact_real(a + b)));
        ASSERT_TRUE(holds(difference, exact_real(a - b)));
        ASSERT_TRUE(holds(product, exact_real(a * b)));
        if (!divisible) continue;
        MpfrReal value(2000);
        mpfr_div(value.get(), exact_real(a).get(), exact_real(b).get(), MPFR_RNDN);
        ASSERT_TRUE(holds(quotient, value));
      }
    }
  }
}

TEST(Ball, StaysExactAsLongAsTheBitsSuffice) {
  const Ball third = multiply(Ball(3.0), Ball(5.0), 64);
  EXPECT_TRUE(third.is_exact());
  EXPECT_TRUE(divide(Ball(15.0), Ball(8.0), 64).is_exact());
  EXPECT_FALSE(divide(Ball(1.0), Ball(3.0), 64).is_exact());
  EXPECT_TRUE(add(Ball(0x1p60), Ball(0x1p-3), 64).is_exact());
  EXPECT_FALSE(add(Ball(0x1p61), Ball(0x1p-3), 64).is_exact());
  EXPECT_TRUE(exp(Ball(0.0), 64).is_exact());
  EXPECT_TRUE(square_root(Ball(2.25), 64).is_exact());
  const Ball half = sigmoid(Ball(0.0), 64);
  EXPECT_TRUE(half.is_exact());
  EXPECT_EQ(half.middle(), Dyadic(0.5));
  for (const auto& function : {log1p, erf, tanh}) EXPECT_TRUE(function(Ball(), 64).is_zero());
}

TEST(Ball, ConstantsHoldWhateverOrderTheyAreAskedFor) {
  for (const int bits : {64, 2000, 128, 5000, 300}) {
    MpfrReal value(bits + 100);
    mpfr_const_pi(value.get(), MPFR_RNDN);
    EXPECT_TRUE(holds(pi(bits), value));
    EXPECT_LE(relative_radius(pi(bits)), 1 - bits);
    mpfr_const_log2(value.get(), MPFR_RNDN);
    EXPECT_TRUE(holds(log_of_two(bits), value));
    EXPECT_LE(relative_radius(log_of_two(bits)), 1 - bits);
  }
}

TEST(Ball, ExponentialOfAHugeNegativeNumberIsTinyAndPositive) {
  for (const double x : {-1e30, -0x1p40, -0x1p140, -1e300}) {
    const Ball tiny = exp(Ball(x), 64);
    EXPECT_EQ(tiny.sign(), 1);
    EXPECT_FALSE(tiny.contains_zero());
    EXPECT_GE(tiny.low().sign(), 0);
    EXPECT_LE(tiny.high().exponent(), -(std::int64_t{1} << 39));
    EXPECT_EQ(bits_of(*round_if_certain(tiny, Format::f32)), 0x00000000u);
    EXPECT_EQ(bits_of(*round_if_certain(negate(tiny), Format::f32)), 0x80000000u);
    EXPECT_EQ(bits_of(*round_if_certain(multiply(tiny, Ball(-0x1p300), 64), Format::f32)),
              0x80000000u);
    EXPECT_EQ(*round_if_certain(subtract(Ball(1.0), tiny, 64), Format::f32), 1.0f);
    EXPECT_EQ(bits_of(*round_if_certain(sigmoid(Ball(x), 64), Format::f32)), 0x00000000u);
    EXPECT_EQ(*round_if_certain(sigmoid(Ball(-x), 64), Format::f32), 1.0f);
    EXPECT_EQ(*round_if_certain(tanh(Ball(x), 64), Format::f32), -1.0f);
    EXPECT_EQ(bits_of(*round_if_certain(softplus(Ball(x), 64), Format::f32)), 0x00000000u);
    EXPECT_EQ(*round_if_certain(softplus(Ball(-x), 64), Format::f32), static_cast<float>(-x));
    EXPECT_EQ(bits_of(*round_if_certain(erfc(Ball(-x), 64), Format::f32)), 0x00000000u);
    EXPECT_EQ(*round_if_certain(erfc(Ball(x), 64), Format::f32), 2.0f);
  }
  EXPECT_THROW(exp(Ball(0x1p41), 64), std::overflow_error);
}

TEST(Ball, RoundsOnlyWhatIsCertain) {
  const Dyadic tiny = Dyadic(1.0).scaled(-400);
  const Dyadic midpoint(1.0 + 0x1p-24);
  EXPECT_FALSE(round_if_certain(Ball(midpoint, tiny), Format::f32));
  EXPECT_EQ(*round_if_certain(Ball(midpoint), Format::f32), 1.0f);
  EXPECT_EQ(*round_if_certain(Ball(midpoint + tiny, tiny.scaled(-1)), Format::f32),
            1.0f + 0x1p-23f);
  EXPECT_EQ(bits_of(*round_if_certain(Ball(), Format::f32)), 0u);
  // [0, tiny]: +0 either way. [-tiny, 0]: only if the value is known not to be zero.
  EXPECT_EQ(bits_of(*round_if_certain(Ball(tiny, tiny), Format::f32)), 0u);
  EXPECT_FALSE(round_if_certain(Ball(-tiny, tiny), Format::f32));
  EXPECT_FALSE(round_if_certain(Ball(Dyadic(), tiny), Format::f32));
  EXPECT_EQ(bits_of(*round_if_certain(Ball(-tiny, tiny).with_sign(-1), Format::f32)), 0x80000000u);
  EXPECT_EQ(bits_of(*round_if_certain(Ball(-tiny, tiny.scaled(-1)), Format::f32)), 0x80000000u);
  const Ball beyond(Dyadic(0x1p129), Dyadic(1.0));
  EXPECT_EQ(bits_of(*round_if_certain(beyond, Format::f32)), 0x7F800000u);
  EXPECT_EQ(bits_of(*round_if_certain(negate(beyond), Format::bf16)), 0xFF800000u);
  EXPECT_EQ(*round_if_certain(Ball(1.0 + 0x1p-9), Format::bf16), 1.0f);
  EXPECT_EQ(bits_of(*round_if_certain(Ball(65520.0), Format::f16)), 0x7F800000u);
}

TEST(Ball, RoundsCorrectlyByRaisingThePrecision) {
  // 1 + 2^-24 is a midpoint; e^(2^-300) lifts it by 2^-300.
  int evaluations = 0;
  const float above = round_correctly([&](int bits) {
    ++evaluations;
    return multiply(Ball(1.0 + 0x1p-24), exp(Ball(0x1p-300), bits), bits);
  });
  EXPECT_EQ(above, 1.0f + 0x1p-23f);
  EXPECT_EQ(evaluations, 4);  // 64, 128, 256, 512
  // A value that is on the boundary but not known exactly cannot be rounded.
  EXPECT_THROW(round_correctly([](int bits) {
                 return add(Ball(1.0 + 0x1p-24), Ball(Dyadic(), Dyadic::power_of_two(-bits)), bits);
               }),
               std::logic_error);
  // A divisor that looks like zero at first.
  const auto quotient = [](int bits) {
    const Ball one = square_root(multiply(Ball(1.0), exp(Ball(0x1p-100), bits), bits), bits);
    return divide(Ball(0x1p-101), subtract(one, Ball(1.0), bits), bits);
  };
  EXPECT_EQ(round_correctly(quotient), 1.0f);
}

TEST(Ball, BoundsStayShortWhenMiddleAndRadiusLieFarApart) {
  const Dyadic far = Dyadic(1.0).scaled(-(std::int64_t{1} << 45));
  const Ball narrow(Dyadic(1.0), far);
  EXPECT_EQ(compare(narrow.low(), Dyadic(1.0) - Dyadic(0x1p-100)), 1);
  EXPECT_EQ(compare(narrow.low(), Dyadic(1.0)), -1);
  EXPECT_EQ(compare(narrow.high(), Dyadic(1.0)), 1);
  const Ball wide(far, Dyadic(1.0));
  EXPECT_EQ(compare(wide.high(), Dyadic(1.0)), 1);
  EXPECT_EQ(compare(wide.low(), Dyadic(-1.0)), -1);
}

TEST(FastExp, ConstantsAreTheRoundedExactOnes) {
  const Dyadic step = log_of_two(300).middle().scaled(-6);
  const auto gap = [](const Dyadic& x, std::initializer_list<double> parts) {
    Dyadic rest = x;
    for (const double part : parts) rest -= Dyadic(part);
    return rest.is_zero() ? std::int64_t{-1000} : rest.exponent();
  };
  EXPECT_LT(gap(step, {kStep1, kStep2, kStep3}), -130);
  EXPECT_LT(gap(step, {kStep1, kStepRest}), -96);
  EXPECT_LE(Dyadic(kStep1).significant_bits(), 38);
  EXPECT_LE(Dyadic(kStep2).significant_bits(), 38);
  for (std::size_t j = 0; j < kExpTable.size(); ++j) {
    const Ball entry = exp(Ball(step * Dyadic(-static_cast<double>(j))), 200);
    EXPECT_LE(gap(entry.middle(), {kExpTable[j].hi, kExpTable[j].lo}), -107) << j;
    EXPECT_LE(gap(entry.middle(), {kExpTable[j].hi}), -54) << j;
  }
  Dyadic factorial(1.0);
  for (std::size_t n = 2; n < kInverseFactorials.size() + 2; ++n) {
    factorial = factorial * Dyadic(static_cast<double>(n));
    const DoubleDouble& entry = kInverseFactorials[n - 2];
    const Dyadic inverse = divide(Ball(1.0), Ball(factorial), 200).middle();
    EXPECT_LE(gap(inverse, {entry.hi, entry.lo}), inverse.exponent() - 106) << n;
  }
}

/// |found - exact| / |exact| in units of u^power, u = 2^-53.
double error_in_units(const Dyadic& found, const Dyadic& exact, int power) {
  const Dyadic distance = (found - exact).absolute();
  if (distance.is_zero()) return 0.0;
  bool inexact = false;
  return floor_quotient(distance, exact.absolute(), 60, &inexact)
      .scaled(53 * power)
      .to_double_odd();
}

TEST(FastExp, KeepsItsErrorBounds) {
  std::mt19937_64 random(35);
  double worst = 0.0;
  double worst_fine = 0.0;
  for (int i = 0; i < 20000; ++i) {
    const double unit = static_cast<double>(random() >> 11) * 0x1p-53;
    double a = unit * kLargestExpArgument;
    if (i % 3 == 0) a = std::ldexp(unit, -static_cast<int>(random() % 300));
    if (i % 7 == 0) a = (std::floor(unit * 27000) + 0.5) / kStepsPerUnit;  // ends of the reduction
    const double low = a * 0x1p-54 * (2 * unit - 1);
    const Dyadic exact_value = exp(Ball(-a), 160).middle();
    worst = std::max(worst, error_in_units(Dyadic(exp_minus(a)), exact_value, 1));
    const DoubleDouble fine = exp_minus(quick_two_sum(a, low));
    const Dyadic fine_value = exp(Ball(-(Dyadic(a) + Dyadic(low))), 200).middle();
    worst_fine =
        std::max(worst_fine, error_in_units(Dyadic(fine.hi) + Dyadic(fine.lo), fine_value, 2));
  }
  std::printf("  exp: %.3f u, %.3f u^2\n", worst, worst_fine);
  EXPECT_LT(worst, 2.2);
  EXPECT_LT(worst_fine, 10.0);
}

TEST(FastNormal, KeepsItsErrorBound) {
  std::mt19937_64 random(36);
  double worst = 0.0;
  for (int i = 0; i < 2500; ++i) {
    // Random points and both ends of every interval of the table.
    const double unit = static_cast<double>(random() >> 11) * 0x1p-53;
    double wanted = unit * kLargestNormalArgument;
    if (i < 385) wanted = i / 16.0;
    if (i >= 385 && i < 769) wanted = std::nextafter(static_cast<float>(i - 384) / 16.0f, 0.0f);
    const auto x = static_cast<float>(wanted);
    MpfrReal value(300, static_cast<double>(x));
    MpfrReal root(300);
    mpfr_sqrt_ui(root.get(), 2, MPFR_RNDN);
    mpfr_div(value.get(), value.get(), root.get(), MPFR_RNDN);
    mpfr_erfc(value.get(), value.get(), MPFR_RNDN);
    mpfr_div_2ui(value.get(), value.get(), 1, MPFR_RNDN);
    MpfrReal error(300);
    mpfr_d_sub(error.get(), normal_upper_tail(x), value.get(), MPFR_RNDN);
    mpfr_div(error.get(), error.get(), value.get(), MPFR_RNDN);
    worst = std::max(worst, std::fabs(mpfr_get_d(error.get(), MPFR_RNDN)) * 0x1p53);
  }
  std::printf("  normal tail: %.3f u\n", worst);
  EXPECT_LT(worst, 7.0);
}

}  // namespace
}  // namespace moeref::exact
