#include "engine/activation.hpp"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/activation_gates.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint32_t kCanonicalNan = 0x7FC00000;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

std::uint32_t result(const ActivationParameters& p, float gate, float up) {
  return bits_of(activate(p, gate, up));
}

const ActivationParameters kSilu{};
const ActivationParameters kGptOss{ActivationForm::swiglu, 1.702f, 1.0f, 7.0f};
const ActivationParameters kStep{ActivationForm::silu_clamp_after, 1.0f, 0.0f, 7.0f};
const ActivationParameters kGegluErf{ActivationForm::geglu_erf};
const ActivationParameters kGegluTanh{ActivationForm::geglu_tanh};
const ActivationParameters kRelu2{ActivationForm::relu2};

/// Every form, with parameters under which a zero gate times anything is zero.
std::vector<ActivationParameters> all_forms() {
  using enum ActivationForm;
  return {kSilu,  kGptOss,    kStep,       kGegluErf,          kGegluTanh,     kRelu2,
          {silu}, {gelu_erf}, {gelu_tanh}, {silu_clamp_after}, {swiglu, 0.0f}, {swiglu, -2.0f}};
}

// Digits of the exact values: silu(1) = 0.731058578630004879..., and so on.
TEST(Activation, GivesTheRoundedValuesOfItsFormulas) {
  EXPECT_EQ(activate(kSilu, 1.0f, 1.0f), 0.731058578630004879f);
  EXPECT_EQ(activate(kSilu, -2.0f, 3.0f), -0.715217532160317465f);
  EXPECT_EQ(activate(kGegluErf, 1.0f, 1.0f), 0.841344746068542949f);
  EXPECT_EQ(activate(kGegluTanh, 1.0f, 1.0f), 0.841191990608276082f);
  EXPECT_EQ(activate({ActivationForm::gelu_erf}, kNan, -1.0f), -0.158655253931457051f);
  EXPECT_EQ(activate({ActivationForm::gelu_tanh}, kNan, -1.0f), -0.158808009391723918f);
  EXPECT_EQ(activate({ActivationForm::silu}, kNan, 1.0f), 0.731058578630004879f);
  EXPECT_EQ(activate(kRelu2, kNan, 3.0f), 9.0f);
  EXPECT_EQ(activate(kRelu2, kNan, -3.0f), 0.0f);
}

TEST(Activation, ClampsTheGateFromAboveAndUpOnBothSides) {
  EXPECT_EQ(result(kGptOss, 100.0f, 2.0f), result(kGptOss, 7.0f, 2.0f));
  EXPECT_NE(result(kGptOss, -9.0f, 2.0f), result(kGptOss, -7.0f, 2.0f));
  EXPECT_EQ(result(kGptOss, 2.0f, 100.0f), result(kGptOss, 2.0f, 7.0f));
  EXPECT_EQ(result(kGptOss, 2.0f, -100.0f), result(kGptOss, 2.0f, -7.0f));
  EXPECT_EQ(result(kGptOss, 2.0f, -kInfinity), result(kGptOss, 2.0f, -7.0f));
  EXPECT_EQ(result(kGptOss, kInfinity, 2.0f), result(kGptOss, 7.0f, 2.0f));
}

TEST(Activation, ClampsAfterSiluInTheStepForm) {
  EXPECT_EQ(activate(kStep, 100.0f, 2.0f), 14.0f);
  EXPECT_EQ(activate(kStep, kInfinity, -kInfinity), -49.0f);
  // silu(7) is 6.993..., so a gate of 7 is not yet clamped: before-clamping would give the same
  // as 8.
  EXPECT_LT(activate(kStep, 7.0f, 2.0f), 14.0f);
  EXPECT_EQ(activate(kStep, 8.0f, 2.0f), 14.0f);
  EXPECT_EQ(result(kStep, -50.0f, 1.0f), result(kSilu, -50.0f, 1.0f));
  const ActivationParameters zero{ActivationForm::silu_clamp_after, 1.0f, 0.0f, 0.0f};
  EXPECT_EQ(result(zero, 3.0f, 3.0f), 0u);
  EXPECT_EQ(result(zero, -3.0f, 3.0f), 0u);
}

TEST(Activation, AnExactZeroIsPlusZero) {
  for (const ActivationParameters& p : all_forms()) {
    for (const float zero : {0.0f, -0.0f}) {
      EXPECT_EQ(result(p, zero, zero), 0u);
      if (!is_gated(p.form)) continue;
      EXPECT_EQ(result(p, zero, 5.0f), 0u);
      EXPECT_EQ(result(p, zero, -5.0f), 0u);
    }
  }
  EXPECT_EQ(result(kSilu, -3.0f, 0.0f), 0u);
  EXPECT_EQ(result(kGptOss, -3.0f, -1.0f), 0u);  // u + beta = 0
}

TEST(Activation, AResultThatUnderflowsKeepsItsSign) {
  const float least = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(result(kSilu, least, 0.25f), 0x00000000u);
  EXPECT_EQ(result(kSilu, least, -0.25f), 0x80000000u);
  EXPECT_EQ(result(kSilu, -200.0f, 1.0f), 0x80000000u);
  EXPECT_EQ(result(kSilu, -200.0f, -1.0f), 0x00000000u);
  EXPECT_EQ(result(kSilu, -3e38f, 3e38f), 0x80000000u);
  EXPECT_EQ(result(kGegluErf, -3e38f, -3e38f), 0x00000000u);
  EXPECT_EQ(result(kGegluTanh, -3e38f, 3e38f), 0x80000000u);
  EXPECT_EQ(result(kRelu2, 0.0f, 1e-30f), 0x00000000u);
  // Half of the smallest subnormal, less or more a little: g u / 2 (1 + g / 2).
  EXPECT_EQ(result(kSilu, -least, 1.0f), 0x80000000u);
  EXPECT_EQ(result(kSilu, least, 1.0f), 0x00000001u);
}

TEST(Activation, TinyGatesMoveAMidpoint) {
  // 4097 * 4097 = 2^24 + 2^13 + 1: halved, the middle between two floats.
  const float gate = std::ldexp(4097.0f, -120);
  const float below = activate(kSilu, -gate, -4097.0f);
  const float above = activate(kSilu, gate, 4097.0f);
  EXPECT_EQ(bits_of(above), bits_of(below) + 1);
  EXPECT_EQ(activate_traced(kSilu, gate, 4097.0f).level, ActivationLevel::exact);
}

TEST(Activation, OverflowsToInfinity) {
  const float most = std::numeric_limits<float>::max();
  EXPECT_EQ(activate(kSilu, most, 1.0f), most);
  EXPECT_EQ(activate(kSilu, most, 2.0f), kInfinity);
  EXPECT_EQ(activate(kSilu, most, -most), -kInfinity);
  EXPECT_EQ(activate(kRelu2, 0.0f, most), kInfinity);
  // 2^25 - 1 = 31 * 601 * 1801: g u is the border 2^103 (2^25 - 1), and sigma(g) < 1 keeps below
  // it.
  const float up = std::ldexp(1801.0f, 103);
  EXPECT_EQ(activate(kSilu, 31.0f * 601.0f, up), most);
  EXPECT_EQ(activate({ActivationForm::swiglu, 0.0f}, 2.0f * 31.0f * 601.0f, up), kInfinity);
}

TEST(Activation, ANanStaysNanAlsoThroughClampsAndIsCanonical) {
  const float payload = std::bit_cast<float>(0xFFC01234u);
  for (const ActivationParameters& p : all_forms()) {
    for (const float other : {0.0f, 1.0f, -kInfinity, kNan}) {
      EXPECT_EQ(result(p, other, payload), kCanonicalNan);
      if (is_gated(p.form)) {
        EXPECT_EQ(result(p, payload, other), kCanonicalNan);
      }
    }
  }
}

struct SpecialCase {
  ActivationParameters parameters;
  float gate;
  float up;
  std::uint32_t expected;
};

TEST(Activation, InfinitiesFollowTheFormulaStepByStep) {
  constexpr std::uint32_t kPlus = 0x7F800000;
  constexpr std::uint32_t kMinus = 0xFF800000;
  using enum ActivationForm;
  const ActivationParameters negative{swiglu, -1.0f};
  const ActivationParameters zero_alpha{swiglu, 0.0f};
  const ActivationParameters shifted{swiglu, 1.0f, 2.0f};
  const std::vector<SpecialCase> cases = {
      {kSilu, -kInfinity, 1.0f, kCanonicalNan},  // -inf * 0
      {kSilu, kInfinity, 1.0f, kPlus},
      {kSilu, kInfinity, -1.0f, kMinus},
      {kSilu, kInfinity, 0.0f, kCanonicalNan},
      {kSilu, 0.0f, kInfinity, kCanonicalNan},
      {kSilu, 2.0f, -kInfinity, kMinus},
      {kSilu, -1000.0f, kInfinity, kMinus},  // sigma(-1000) is not zero
      {kSilu, -3e38f, -kInfinity, kPlus},
      {kSilu, std::numeric_limits<float>::denorm_min(), kInfinity, kPlus},
      {shifted, kInfinity, -2.0f, kCanonicalNan},  // u + beta = 0
      {shifted, kInfinity, -3.0f, kMinus},
      {negative, -kInfinity, 1.0f, kMinus},  // sigma(inf) = 1
      {negative, kInfinity, 1.0f, kCanonicalNan},
      {zero_alpha, kInfinity, 1.0f, kCanonicalNan},  // 0 * inf in the argument
      {zero_alpha, 1.0f, kInfinity, kPlus},
      {kGptOss, -kInfinity, 1.0f, kCanonicalNan},
      {{silu_clamp_after}, kInfinity, 0.0f, kCanonicalNan},
      {{silu_clamp_after}, kInfinity, -2.0f, kMinus},
      {kStep, -kInfinity, 1.0f, kCanonicalNan},
      {kStep, kInfinity, 0.0f, 0u},
      {kGegluErf, kInfinity, 2.0f, kPlus},
      {kGegluErf, -kInfinity, 2.0f, kCanonicalNan},
      {kGegluTanh, -kInfinity, 2.0f, kCanonicalNan},
      {kGegluTanh, 1.0f, -kInfinity, kMinus},
      {kRelu2, 0.0f, kInfinity, kPlus},
      {kRelu2, 0.0f, -kInfinity, 0u},
      {{silu}, 0.0f, -kInfinity, kCanonicalNan},
      {{silu}, 0.0f, kInfinity, kPlus},
      {{gelu_erf}, 0.0f, -kInfinity, kCanonicalNan},
      {{gelu_tanh}, 0.0f, kInfinity, kPlus},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(result(cases[i].parameters, cases[i].gate, cases[i].up), cases[i].expected) << i;
  }
}

TEST(Activation, FiniteOperandsNeverGiveNan) {
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  for (const ActivationParameters& p : all_forms()) {
    for (const float gate : {-most, -1000.0f, -least, 0.0f, least, 1000.0f, most}) {
      for (const float up : {-most, -1.0f, -least, 0.0f, least, 1.0f, most}) {
        EXPECT_FALSE(std::isnan(activate(p, gate, up)));
      }
    }
  }
}

TEST(Activation, AddsBetaExactly) {
  // u + beta = 2^127 + 2^-149 takes 277 bits; with alpha 0 the gate halves, so the sum over 2^127
  // lies just above the midpoint 1 + 2^-24 only if none of them is lost.
  const ActivationParameters p{ActivationForm::swiglu, 0.0f, std::ldexp(1.0f, 127), kInfinity};
  const float gate = std::ldexp(1.0f + 0x1p-23f, -126);
  EXPECT_EQ(activate(p, gate, 0.0f), 1.0f + 0x1p-23f);
  const float odd_gate = std::ldexp(4097.0f, -126);  // times (4097 2^114 + 2^-149)
  const ActivationParameters long_sum{ActivationForm::swiglu, 0.0f, std::ldexp(4097.0f, 114),
                                      kInfinity};
  const float least = std::numeric_limits<float>::denorm_min();
  const float tie = activate(long_sum, odd_gate, 0.0f);
  EXPECT_EQ(bits_of(activate(long_sum, odd_gate, least)), bits_of(tie) + 1);
  EXPECT_EQ(bits_of(activate(long_sum, odd_gate, -least)), bits_of(tie));
}

/// Ends, thresholds of every form, ordinary numbers, and pairs whose results are ties.
std::vector<float> gates_and_ups(std::size_t count, std::mt19937_64& random) {
  const float special[] = {0.0f,
                           -0.0f,
                           kInfinity,
                           -kInfinity,
                           kNan,
                           std::numeric_limits<float>::max(),
                           -std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::denorm_min(),
                           7.0f,
                           std::nextafter(7.0f, 8.0f),
                           -7.0f,
                           7.006f,
                           300.0f,
                           -300.5f,
                           176.5f,
                           -24.0f,
                           24.25f};
  std::vector<float> values;
  std::normal_distribution<float> normal(0.0f, 2.0f);
  while (values.size() < count) {
    switch (random() % 4) {
      case 0:
        values.push_back(special[random() % std::size(special)]);
        break;
      case 1:  // any bits
        values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
        break;
      default:
        values.push_back(normal(random));
    }
  }
  return values;
}

TEST(Activation, IsTheSameForManyPairsOnEveryInstructionSet) {
  std::mt19937_64 random(8);
  const char* before = simd::active_kernels()->isa;
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    ASSERT_TRUE(simd::use_kernels(*isa));
    for (const ActivationParameters& p : all_forms()) {
      for (const Format output : {Format::f32, Format::bf16, Format::f16}) {
        for (const std::size_t count : {1u, 15u, 16u, 17u, 999u}) {
          const std::vector<float> gate = gates_and_ups(count, random);
          const std::vector<float> up = gates_and_ups(count, random);
          std::vector<float> out(count + 1, 5.0f);
          activate_all(p, gate, up, output, std::span(out).first(count));
          EXPECT_EQ(out.back(), 5.0f) << "written beyond the results";
          for (std::size_t i = 0; i < count; ++i) {
            EXPECT_EQ(bits_of(out[i]), bits_of(activate(p, gate[i], up[i], output)))
                << *isa << ", form " << static_cast<int>(p.form) << ", gate " << gate[i] << ", up "
                << up[i];
          }
        }
      }
    }
  }
  ASSERT_TRUE(simd::use_kernels(before));
}

TEST(Activation, FindsSigmoidsAsTheScalarFunctionDoes) {
  std::mt19937_64 random(9);
  std::uniform_real_distribution<double> uniform(-1.0, 1.0);
  std::array<double, simd::ExpTable::kSteps> powers;
  for (std::size_t j = 0; j < powers.size(); ++j) powers[j] = exact::kExpTable[j].hi;
  const simd::ExpTable table{powers.data(), exact::kStepsPerUnit, exact::kStep1, exact::kStepRest};
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    for (std::size_t count = 1; count < 200; ++count) {
      std::vector<double> z(count);
      for (double& value : z) {
        value = uniform(random) * (random() % 2 == 0 ? 300.0 : 1.0);
        if (random() % 16 == 0) value = random() % 2 == 0 ? 0.0 : -300.0;
      }
      std::vector<double> s(count + 1, 5.0);
      simd::find_kernels(*isa)->functions->sigmoid(table, z.data(), count, s.data());
      EXPECT_EQ(s.back(), 5.0) << "written beyond the results";
      for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(s[i], gates::sigmoid(z[i])) << *isa;
    }
  }
}

TEST(ParametersFor, PrefersTheValuesOfTheExpert) {
  Activation activation;
  activation.alpha = 1.5f;
  activation.limit = 7.0f;
  activation.betas = {0.25f, 0.5f};
  const ActivationParameters p = parameters_for(activation, 1);
  EXPECT_EQ(p.form, ActivationForm::swiglu);
  EXPECT_EQ(p.alpha, 1.5f);
  EXPECT_EQ(p.beta, 0.5f);
  EXPECT_EQ(p.limit, 7.0f);
  EXPECT_THROW(parameters_for(activation, 2), std::out_of_range);
}

}  // namespace
}  // namespace moeref
