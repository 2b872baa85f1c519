#include <gtest/gtest.h>
#include <mpfr.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "engine/bounds/bounded.hpp"
#include "engine/bounds/double_double.hpp"
#include "engine/bounds/functions.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::bounds {
namespace {

using judge::MpfrReal;

constexpr mpfr_prec_t kJudgeBits = 240;

/// |computed - f(x)| with f from MPFR, relative to |f(x)|, or absolute.
double judged_error(const DoubleDouble& computed, double x, bool relative,
                    const std::function<void(mpfr_ptr, mpfr_srcptr)>& function) {
  MpfrReal value(kJudgeBits, x);
  function(value.get(), value.get());
  MpfrReal difference(kJudgeBits);
  mpfr_sub_d(difference.get(), value.get(), computed.hi, MPFR_RNDN);
  mpfr_sub_d(difference.get(), difference.get(), computed.lo, MPFR_RNDN);
  if (relative) mpfr_div(difference.get(), difference.get(), value.get(), MPFR_RNDN);
  return std::fabs(mpfr_get_d(difference.get(), MPFR_RNDA));
}

std::vector<double> arguments(double low, double high) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform(low, high);
  std::vector<double> values{0.0, low, high, 1e-300, -1e-300, 1e-9, -1e-9, 0.5, -0.5, 1.0, -1.0};
  for (int i = 0; i < 2000; ++i) values.push_back(uniform(random));
  for (int i = 0; i < 500; ++i) values.push_back(std::ldexp(uniform(random), -i % 60));
  std::erase_if(values, [&](double value) { return value < low || value > high; });
  return values;
}

void exp_by_mpfr(mpfr_ptr to, mpfr_srcptr x) { mpfr_exp(to, x, MPFR_RNDN); }
void erf_by_mpfr(mpfr_ptr to, mpfr_srcptr x) { mpfr_erf(to, x, MPFR_RNDN); }
void sigmoid_by_mpfr(mpfr_ptr to, mpfr_srcptr x) {
  mpfr_neg(to, x, MPFR_RNDN);
  mpfr_exp(to, to, MPFR_RNDN);
  mpfr_add_ui(to, to, 1, MPFR_RNDN);
  mpfr_ui_div(to, 1, to, MPFR_RNDN);
}
void softplus_by_mpfr(mpfr_ptr to, mpfr_srcptr x) {
  mpfr_exp(to, x, MPFR_RNDN);
  mpfr_log1p(to, to, MPFR_RNDN);
}

void tanh_by_mpfr(mpfr_ptr to, mpfr_srcptr x) { mpfr_tanh(to, x, MPFR_RNDN); }

TEST(DoubleDouble, FunctionsAgreeWithMpfrToNinetyBits) {
  for (const double x : arguments(-600.0, 600.0)) {  // beyond, the low part is subnormal
    ASSERT_LT(judged_error(exp(DoubleDouble{x, 0.0}), x, true, exp_by_mpfr), 0x1p-90) << x;
    ASSERT_LT(judged_error(sigmoid(DoubleDouble{x, 0.0}), x, true, sigmoid_by_mpfr), 0x1p-90) << x;
  }
  for (const double x : arguments(-600.0, 100.0)) {
    ASSERT_LT(judged_error(softplus(x), x, true, softplus_by_mpfr), 0x1p-90) << x;
  }
  for (const double x : arguments(-12.0, 12.0)) {
    ASSERT_LT(judged_error(erf(DoubleDouble{x, 0.0}), x, false, erf_by_mpfr), 0x1p-90) << x;
  }
}

TEST(DoubleDouble, TanhAgreesWithMpfrToEightyFiveBits) {
  for (const double high : {0x1p-30, 0x1p-3, 1.0, 60.0}) {
    for (const double x : arguments(-high, high)) {
      if (std::fabs(x) < 0x1p-900) continue;  // the low part of a product is subnormal
      ASSERT_LT(judged_error(tanh(DoubleDouble{x, 0.0}), x, true, tanh_by_mpfr), 0x1p-85) << x;
    }
  }
  EXPECT_EQ(tanh(DoubleDouble{0.0, 0.0}).hi, 0.0);
}

TEST(DoubleDouble, FunctionsKeepTheEndsOfTheRange) {
  EXPECT_EQ(exp(DoubleDouble{-1000.0, 0.0}).hi, 0.0);
  EXPECT_TRUE(std::isinf(exp(DoubleDouble{1000.0, 0.0}).hi));
  EXPECT_TRUE(std::isnan(exp(DoubleDouble{std::nan(""), 0.0}).hi));
  EXPECT_EQ(sigmoid(DoubleDouble{-INFINITY, 0.0}).hi, 0.0);
  EXPECT_EQ(sigmoid(DoubleDouble{INFINITY, 0.0}).hi, 1.0);
  EXPECT_EQ(softplus(1e30).hi, 1e30);
  EXPECT_EQ(tanh(DoubleDouble{1e30, 0.0}).hi, 1.0);
  EXPECT_EQ(tanh(DoubleDouble{-INFINITY, 0.0}).hi, -1.0);
}

/// A function in f32 or f64, step by step as PyTorch computes it, and the same with bounds.
struct JudgedFunction {
  std::string name;
  std::function<Bounded(const Arithmetic&, const Bounded&)> bounded;
  std::function<float(float)> in_f32;
  std::function<double(double)> in_f64;
  double low;
  double high;
};

template <typename Real>
Real swish_steps(Real x, Real alpha) {
  return x * (Real(1) / (Real(1) + std::exp(-(x * alpha))));
}

template <typename Real>
Real softplus_steps(Real x) {
  return x > Real(20) ? x : std::log1p(std::exp(x));
}

template <typename Real>
Real gelu_erf_steps(Real x) {
  return x * Real(0.5) * (Real(1) + std::erf(x * Real(M_SQRT1_2)));
}

template <typename Real>
Real gelu_tanh_steps(Real x) {
  const Real inner = Real(M_SQRT2 * M_2_SQRTPI * 0.5) * (x + Real(0.044715) * (x * x * x));
  return Real(0.5) * x * (Real(1) + std::tanh(inner));
}

template <typename Real>
Real scaled_tanh_steps(Real x, Real range) {
  return range * std::tanh(x / range);
}

template <typename Real>
Real tanh_glu_steps(Real x, Real range) {
  return range * std::tanh(x / range) * (Real(1) / (Real(1) + std::exp(-x)));
}

const std::vector<JudgedFunction>& judged_functions() {
  static const std::vector<JudgedFunction> functions{
      {"sigmoid", [](const Arithmetic& a, const Bounded& x) { return sigmoid(a, x); },
       [](float x) { return 1.0f / (1.0f + std::exp(-x)); },
       [](double x) { return 1.0 / (1.0 + std::exp(-x)); }, -120.0, 80.0},
      {"silu", [](const Arithmetic& a, const Bounded& x) { return swish(a, x, exact(1.0)); },
       [](float x) { return x / (1.0f + std::exp(-x)); },
       [](double x) { return x / (1.0 + std::exp(-x)); }, -120.0, 80.0},
      {"swish_1702",
       [](const Arithmetic& a, const Bounded& x) { return swish(a, x, constant(a, 1.702f)); },
       [](float x) { return swish_steps(x, 1.702f); },
       [](double x) { return swish_steps(x, 1.702); }, -80.0, 40.0},
      {"softplus", [](const Arithmetic& a, const Bounded& x) { return softplus(a, x); },
       softplus_steps<float>, softplus_steps<double>, -80.0, 40.0},
      {"sqrt", square_root, [](float x) { return std::sqrt(x); },
       [](double x) { return std::sqrt(x); }, 0.0, 50.0},
      {"gelu_erf", gelu_erf, gelu_erf_steps<float>, gelu_erf_steps<double>, -9.0, 9.0},
      {"gelu_tanh", gelu_tanh, gelu_tanh_steps<float>, gelu_tanh_steps<double>, -9.0, 9.0},
      {"scaled_tanh_4",
       [](const Arithmetic& a, const Bounded& x) { return scaled_tanh(a, x, exact(4.0)); },
       [](float x) { return scaled_tanh_steps(x, 4.0f); },
       [](double x) { return scaled_tanh_steps(x, 4.0); }, -40.0, 40.0},
      {"scaled_tanh_2.3",
       [](const Arithmetic& a, const Bounded& x) {
         return scaled_tanh(a, x, script_constant(a, 2.3));
       },
       [](float x) { return scaled_tanh_steps(x, 2.3f); },
       [](double x) { return scaled_tanh_steps(x, 2.3); }, -40.0, 40.0},
      {"tanh_glu_4",
       [](const Arithmetic& a, const Bounded& x) { return tanh_glu(a, x, exact(4.0)); },
       [](float x) { return tanh_glu_steps(x, 4.0f); },
       [](double x) { return tanh_glu_steps(x, 4.0); }, -120.0, 40.0},
      {"tanh_glu_0.7",
       [](const Arithmetic& a, const Bounded& x) {
         return tanh_glu(a, x, script_constant(a, 0.7));
       },
       [](float x) { return tanh_glu_steps(x, 0.7f); },
       [](double x) { return tanh_glu_steps(x, 0.7); }, -40.0, 40.0},
  };
  return functions;
}

TEST(BoundedFunctions, EncloseStepwiseEvaluationsInBothPrecisions) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  const Arithmetic& f64 = arithmetic(Precision::f64);
  for (const JudgedFunction& function : judged_functions()) {
    double worst_f32 = 0.0;
    double worst_f64 = 0.0;
    for (const double x : arguments(function.low, function.high)) {
      const float narrow = static_cast<float>(x);
      const Bounded in_f32 = function.bounded(f32, exact(static_cast<double>(narrow)));
      const double difference =
          std::fabs(static_cast<double>(function.in_f32(narrow)) - in_f32.value);
      ASSERT_LE(difference, in_f32.total()) << function.name << " f32 at " << narrow;
      worst_f32 = std::max(worst_f32, difference / in_f32.total());
      const Bounded in_f64 = function.bounded(f64, exact(x));
      const double wide_difference = std::fabs(function.in_f64(x) - in_f64.value);
      ASSERT_LE(wide_difference, in_f64.total()) << function.name << " f64 at " << x;
      worst_f64 = std::max(worst_f64, wide_difference / in_f64.total());
    }
    EXPECT_GT(worst_f32, 0.1) << function.name;  // a bound nobody comes near says nothing
    // The square root in double is the same operation in both.
    if (function.name != "sqrt") {
      EXPECT_GT(worst_f64, 0.1) << function.name;
    }
  }
}

/// exp(-x) overflows below about -88.7 in f32: the sigmoid is 0 there, not subnormal.
TEST(BoundedFunctions, AllowZeroOnlyWhereTheExponentialOverflows) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  const auto is_open = [](const Bounded& x) { return x.stored >= std::fabs(x.value); };
  EXPECT_TRUE(is_open(sigmoid(f32, exact(-89.0))));
  EXPECT_TRUE(is_open(swish(f32, exact(-89.0), exact(1.0))));
  EXPECT_TRUE(is_open(sigmoid(f32, {-88.5, 0.3, 0.0})));
  EXPECT_FALSE(is_open(sigmoid(f32, exact(-88.5))));
  EXPECT_FALSE(is_open(swish(f32, exact(-88.5), exact(1.0))));
  EXPECT_FALSE(is_open(sigmoid(arithmetic(Precision::f64), exact(-89.0))));
}

/// Errors of the input from far below one unit to more than one, where only the derivative bounds
/// hold.
TEST(BoundedFunctions, EncloseEvaluationsAtDisplacedInputs) {
  const Arithmetic& f64 = arithmetic(Precision::f64);
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> unit(-1.0, 1.0);
  for (const JudgedFunction& function : judged_functions()) {
    double worst = 0.0;
    for (const double distance : {1e-12, 1e-7, 1e-3, 0.1, 0.4, 1.0, 3.0}) {
      for (const double x :
           arguments(std::max(-12.0, function.low), std::min(12.0, function.high))) {
        const Bounded result = function.bounded(f64, Bounded{x, distance, 0.0});
        for (const double part : {-1.0, 1.0, unit(random)}) {
          const double displaced = std::max(x + part * distance, function.low);
          const double reached = std::fabs(displaced - x);
          if (reached > distance) continue;  // x + distance was rounded outward
          const double difference = std::fabs(function.in_f64(displaced) - result.value);
          ASSERT_LE(difference, result.total())
              << function.name << " at " << x << " displaced by " << displaced - x;
          worst = std::max(worst, difference / result.total());
        }
      }
    }
    EXPECT_GT(worst, 0.5) << function.name;
  }
}

TEST(Bounded, SumsAndProductsEncloseRoundedOnes) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  std::mt19937_64 random(3);
  std::uniform_real_distribution<float> uniform(-4.0f, 4.0f);
  double worst = 0.0;
  for (int i = 0; i < 20000; ++i) {
    const float x = std::ldexp(uniform(random), i % 40 - 20);
    const float y = uniform(random);
    const Bounded sum = add(f32, exact(static_cast<double>(x)), exact(static_cast<double>(y)));
    const Bounded product =
        multiply(f32, exact(static_cast<double>(x)), exact(static_cast<double>(y)));
    const double sum_difference = std::fabs(static_cast<double>(x + y) - sum.value);
    const double product_difference = std::fabs(static_cast<double>(x * y) - product.value);
    ASSERT_LE(sum_difference, sum.total());
    ASSERT_LE(product_difference, product.total());
    worst = std::max({worst, sum_difference / sum.total(), product_difference / product.total()});
  }
  EXPECT_GT(worst, 0.9);
}

TEST(Bounded, ProductsThatUnderflowStayEnclosed) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  for (const float x : {0x1p-80f, 0x1.8p-75f, 0x1.fffffep-70f}) {
    const Bounded product = multiply(f32, exact(static_cast<double>(x)), exact(0x1.234568p-72));
    EXPECT_LE(std::fabs(static_cast<double>(x * 0x1.234568p-72f) - product.value), product.total());
  }
}

TEST(Bounded, AProductThatMayOverflowHasNoBound) {
  const Bounded product = multiply(arithmetic(Precision::f32), exact(0x1p100), exact(0x1p28));
  EXPECT_TRUE(std::isinf(product.total()));
  EXPECT_TRUE(
      std::isfinite(multiply(arithmetic(Precision::f64), exact(0x1p100), exact(0x1p28)).total()));
}

TEST(Bounded, AClampDropsTheErrorOfWhatItReplaces) {
  const Bounded limit = exact(7.0);
  EXPECT_EQ(at_most({9.0, 0.5, 0.0}, limit).total(), exact(7.0).total());
  EXPECT_EQ(at_most({6.0, 0.5, 0.0}, limit).stored, 0.5);
  EXPECT_EQ(at_most({7.25, 0.5, 0.0}, limit).value, 7.0);
  EXPECT_EQ(at_most({7.25, 0.5, 0.0}, limit).stored,
            0.5);  // the other evaluation may be below the limit
  EXPECT_EQ(at_least({-9.0, 0.5, 0.0}, negate(limit)).total(), exact(-7.0).total());
  EXPECT_TRUE(std::isnan(at_most(exact(std::nan("")), limit).value));
}

TEST(Bounded, KnowsWhichNumbersAnArithmeticHolds) {
  const RoundingModel& f32 = arithmetic(Precision::f32).stored;
  for (const double held : {0.0, 1.0, -0x1.fffffep127, 0x1p-149, 0x1.000002p0, 0x1.8p-148}) {
    EXPECT_TRUE(f32.holds(held)) << held;
  }
  for (const double lost : {0x1p128, 0x1p-150, 0x1.000001p0, 0x1.8p-149, 0.1}) {
    EXPECT_FALSE(f32.holds(lost)) << lost;
  }
  EXPECT_FALSE(f32.holds(INFINITY));
  EXPECT_FALSE(f32.holds(std::nan("")));
}

TEST(Bounded, AScaledNumberRoundsOnlyWhereItDoesNotFit) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  EXPECT_EQ(scale(f32, exact(0x1.fep3), 0x1.8p-3).stored, 0.0);
  EXPECT_EQ(scale(f32, exact(0x1.fep3), 0.0).stored, 0.0);
  const Bounded rounded = scale(f32, exact(0x1.000002p0), 0x1.000002p0);
  EXPECT_GE(rounded.stored, 0x1p-24);
  EXPECT_EQ(rounded.own, 0.0);
  EXPECT_GE(scale(f32, {3.0, 0.25, 0.0}, 2.0).stored, 0.5);
  EXPECT_GT(scale(f32, exact(0x1p-149), 0.5).stored, 0.0);
  EXPECT_TRUE(std::isinf(scale(f32, exact(0x1p100), 0x1p28).stored));
}

TEST(Bounded, ASumOfOneTermIsThatTerm) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  const std::vector<Bounded> one{exact(0.0), exact(0.1), exact(0.0)};
  EXPECT_EQ(sum(f32, one).stored, 0.0);
  const std::vector<Bounded> two{exact(0x1p24), {1.0, 0.5, 0.0}};
  EXPECT_GE(sum(f32, two).stored, 1.5);
  EXPECT_LT(sum(f32, two).stored, 2.0);
}

TEST(Bounded, AConstantIsTheDecimalThatAnF32Spells) {
  const Arithmetic& f64 = arithmetic(Precision::f64);
  EXPECT_EQ(constant(f64, 1.702f).value, 1.702);
  EXPECT_GT(constant(f64, 1.702f).total(), 0.0);
  EXPECT_EQ(constant(f64, 7.0f).stored, 0.0);
  const Bounded narrow = constant(arithmetic(Precision::f32), 1.702f);
  EXPECT_LE(std::fabs(static_cast<double>(1.702f) - narrow.value), narrow.stored);
  EXPECT_TRUE(std::isinf(constant(f64, kNoLimit).value));
}

TEST(Softmax, SharesEncloseF32EvaluationsOfDisplacedLogits) {
  const Arithmetic& f32 = arithmetic(Precision::f32);
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal(0.0, 3.0);
  std::uniform_real_distribution<double> unit(-1.0, 1.0);
  double worst = 0.0;
  for (int round = 0; round < 500; ++round) {
    const double distance = std::ldexp(1.0, -(round % 20) - 1);
    std::vector<Bounded> logits;
    std::vector<float> displaced;
    for (int expert = 0; expert < 6; ++expert) {
      logits.push_back({normal(random), distance, 0.0});
      // The f32 nearest to a displaced logit is up to 2^-20 away from it.
      displaced.push_back(static_cast<float>(
          logits.back().value +
          (distance - 0x1p-20) * (round % 2 == 0 ? (expert == 0 ? 1.0 : -1.0) : unit(random))));
    }
    const std::vector<Bounded> result =
        shares(f32, softmax_numerators(f32, logits), exact(0.0), exact(1.0));
    const float top = *std::max_element(displaced.begin(), displaced.end());
    float sum = 0.0f;
    for (const float logit : displaced) sum += std::exp(logit - top);
    for (std::size_t i = 0; i < displaced.size(); ++i) {
      const double stored = static_cast<double>(std::exp(displaced[i] - top) / sum);
      if (!std::isfinite(result[i].total())) continue;  // errors above 1/2: nothing is claimed
      ASSERT_LE(std::fabs(stored - result[i].value), result[i].total());
      worst = std::max(worst, std::fabs(stored - result[i].value) / result[i].total());
    }
  }
  EXPECT_GT(worst, 0.5);
}

TEST(Activation, ClampsBeforeOrAfterTheSiluAsTheFormSays) {
  const Arithmetic& f64 = arithmetic(Precision::f64);
  ActivationConstants constants;
  constants.limit = exact(2.0);
  const double gate = 3.0;
  const double up = -5.0;
  const auto value = [&](ActivationForm form) {
    constants.form = form;
    return activate(f64, constants, exact(gate), exact(up)).value;
  };
  EXPECT_DOUBLE_EQ(value(ActivationForm::swiglu), 2.0 / (1.0 + std::exp(-2.0)) * -2.0);
  EXPECT_DOUBLE_EQ(value(ActivationForm::silu_clamp_after), 2.0 * -2.0);
  EXPECT_DOUBLE_EQ(value(ActivationForm::relu2), 0.0);
  EXPECT_DOUBLE_EQ(value(ActivationForm::silu), -5.0 / (1.0 + std::exp(5.0)));
  EXPECT_DOUBLE_EQ(value(ActivationForm::geglu_erf), gelu_erf_steps(3.0) * -5.0);
  EXPECT_DOUBLE_EQ(value(ActivationForm::geglu_tanh), gelu_tanh_steps(3.0) * -5.0);
  EXPECT_NEAR(value(ActivationForm::gelu_erf), gelu_erf_steps(-5.0), 1e-15);
  EXPECT_NEAR(value(ActivationForm::gelu_tanh), gelu_tanh_steps(-5.0), 1e-15);
  constants.alpha = constant(f64, 1.702f);
  constants.beta = exact(1.0);
  EXPECT_DOUBLE_EQ(value(ActivationForm::swiglu),
                   2.0 / (1.0 + std::exp(-2.0 * 1.702)) * (-2.0 + 1.0));
}

}  // namespace
}  // namespace moeref::bounds
