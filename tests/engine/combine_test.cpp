#include "engine/combine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "tests/engine/combine_slots.hpp"
#include "tests/judge/exact_dot.hpp"

// Every form of the combine at level backend, and the steps in the output type, against loops.

namespace moeref {
namespace {

using judge::ExactSum;
using testing::at;
using testing::bits;
using testing::each;
using testing::expect_same;
using testing::fill;
using testing::for_all;
using testing::kInfinity;
using testing::kScalings;
using testing::kWidth;
using testing::of_token;
using testing::Slots;
using testing::value_of;
using testing::Values;

constexpr std::array kForms{CombineForm::exact,   CombineForm::weighted_fma,
                            CombineForm::sum,     CombineForm::folded_sum,
                            CombineForm::running, CombineForm::atomic_add};

/// Forms that round every addition have no sum to scale.
bool allows(CombineForm form, ScalingPoint point) {
  const bool stepwise = form == CombineForm::running || form == CombineForm::atomic_add;
  return !stepwise || point != ScalingPoint::in_sum;
}

TEST(Combine, RefusesToScaleTheSumOfFormsThatRoundEveryAddition) {
  Slots slots;
  fill(slots, 1, 2, Values::usual, false, 9);
  int refused = 0;
  for (const CombineForm form : kForms) {
    const CombineNumerics numerics{.form = form};
    if (allows(form, numerics.scaling)) continue;
    ++refused;
    for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
      EXPECT_THROW(slots.combined(numerics, level, Format::bf16, 2.5f), Error);
    }
  }
  EXPECT_EQ(refused, 2);
}

TEST(Combine, RoundsEachStepOfARunningSum) {
  for (const Format output : {Format::bf16, Format::f16, Format::f32}) {
    for_all(1, 16, [&](const Slots& slots, float scaling, bool flushes, const std::string& what) {
      if (flushes) return;
      const CombineNumerics numerics{.form = CombineForm::running,
                                     .scaling = ScalingPoint::after_sum};
      const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
        float sum = 0.0f;
        for (std::int64_t k = 0; k < slots.route.top_k; ++k) {
          const std::int64_t slot = token * slots.route.top_k + k;
          if (!slots.is_here(slot)) continue;
          const float weight = judge::in_dtype(Format::bf16, slots.route.weights[at(slot)]);
          const float term = judge::in_dtype(output, weight * slots.y[at(slot * kWidth + col)]);
          sum = judge::in_dtype(output, sum + term);
        }
        return scaling == 1.0f ? sum : judge::in_dtype(output, sum * scaling);
      });
      for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
        if (level == NumericsLevel::backend && scaling == 1.8462643f) continue;  // below
        expect_same(
            slots.combined(numerics, level, output, scaling, WeightPoint::combine, Format::bf16),
            expected, what);
      }
    });
  }
}

TEST(Combine, AddsAtomicallyInSlotOrderAndTwoSlotsCommute) {
  for_all(1, 16, [](const Slots& slots, float scaling, bool flushes, const std::string& what) {
    if (flushes) return;
    const CombineNumerics numerics{.form = CombineForm::atomic_add,
                                   .scaling = ScalingPoint::after_sum};
    const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
      float sum = 0.0f;
      const std::vector<float> y = of_token(slots, token, col);
      for (std::int64_t k = 0; k < slots.route.top_k; ++k) {
        if (!slots.is_here(token * slots.route.top_k + k)) continue;
        sum = judge::in_dtype(Format::bf16, sum + y[at(k)]);
      }
      return scaling == 1.0f ? sum : judge::in_dtype(Format::bf16, sum * scaling);
    });
    expect_same(
        slots.combined(numerics, NumericsLevel::replay, Format::bf16, scaling, WeightPoint::gemm2),
        expected, what);
    if (slots.route.top_k != 2) return;
    Slots swapped;
    swapped.layer = slots.layer;
    swapped.route = slots.route;
    swapped.y = slots.y;
    for (std::int64_t token = 0; token < slots.route.tokens; ++token) {
      std::swap(swapped.route.ids[at(2 * token)], swapped.route.ids[at(2 * token + 1)]);
      std::swap_ranges(swapped.y.begin() + 2 * token * kWidth,
                       swapped.y.begin() + (2 * token + 1) * kWidth,
                       swapped.y.begin() + (2 * token + 1) * kWidth);
    }
    expect_same(swapped.combined(numerics, NumericsLevel::replay, Format::bf16, scaling,
                                 WeightPoint::gemm2),
                expected, what + " swapped");
  });
}

TEST(Combine, ArrivalOrderOfThreeAtomicsShows) {
  Slots slots;
  fill(slots, 1, 3, Values::usual, false, 3);
  const auto with = [&](const std::vector<float>& y) {
    for (std::size_t k = 0; k < 3; ++k) {
      std::fill_n(slots.y.begin() + static_cast<std::ptrdiff_t>(k * at(kWidth)), kWidth, y[k]);
    }
    return slots.combined({.form = CombineForm::atomic_add, .scaling = ScalingPoint::after_sum},
                          NumericsLevel::backend, Format::bf16, 1.0f, WeightPoint::gemm2)[0];
  };
  EXPECT_EQ(with({256.0f, 1.0f, -256.0f}), 0.0f);
  EXPECT_EQ(with({256.0f, -256.0f, 1.0f}), 1.0f);
}

TEST(Combine, IsOneRoundingOfTheExactSumAtLevelBackend) {
  for (const CombineForm form :
       {CombineForm::exact, CombineForm::weighted_fma, CombineForm::sum, CombineForm::folded_sum}) {
    for (const Format output : {Format::bf16, Format::f16, Format::f32}) {
      for_all(1, 16, [&](const Slots& slots, float scaling, bool flushes, const std::string& what) {
        if (flushes && form != CombineForm::weighted_fma) return;
        const bool biased = form == CombineForm::weighted_fma;
        const bool weighs = form == CombineForm::exact || biased;
        // Flags of the replay change nothing.
        const CombineNumerics numerics{.form = form,
                                       .adds_bias = biased,
                                       .starts_at_zero = flushes,
                                       .fold_from = 1,
                                       .flushes = flushes};
        const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
          ExactSum sum;
          for (std::int64_t k = 0; k < slots.route.top_k; ++k) {
            const std::int64_t slot = token * slots.route.top_k + k;
            if (!slots.is_here(slot)) continue;
            const float weight = weighs ? slots.route.weights[at(slot)] : 1.0f;
            sum.add_product(weight, slots.y[at(slot * kWidth + col)]);
            const std::int64_t expert = slots.route.ids[at(slot)] - slots.layer.first_expert;
            if (biased) sum.add_product(weight, slots.biases[at(expert)][at(col)]);
          }
          sum.multiply(scaling);
          return sum.round(output);
        });
        expect_same(slots.combined(numerics, NumericsLevel::backend, output, scaling,
                                   weighs ? WeightPoint::combine : WeightPoint::gemm2),
                    expected, what);
      });
    }
  }
}

TEST(Combine, RoundsTheScaledSumOnceAtLevelBackend) {
  // 1.5 times this is 2^-24 above a midpoint of bf16, which f32 would round onto it.
  Slots slots;
  fill(slots, 1, 1, Values::usual, false, 4);
  const float scaling = std::bit_cast<float>(0x3F2B'5556u);
  const float y = 1.5f;
  const double exact = static_cast<double>(y) * scaling;
  ASSERT_NE(judge::in_dtype(Format::bf16, y * scaling), [&] {
    ExactSum sum;
    sum.add(exact);
    return sum.round(Format::bf16);
  }()) << "the case does not tell one rounding from two";
  std::fill(slots.y.begin(), slots.y.end(), y);
  slots.route.weights[0] = 1.0f;
  const CombineNumerics numerics{.form = CombineForm::weighted_fma,
                                 .scaling = ScalingPoint::after_sum};
  ExactSum sum;
  sum.add(exact);
  EXPECT_EQ(slots.combined(numerics, NumericsLevel::backend, Format::bf16, scaling)[0],
            sum.round(Format::bf16));
  EXPECT_EQ(slots.combined(numerics, NumericsLevel::replay, Format::bf16, scaling)[0],
            judge::in_dtype(Format::bf16, y * scaling));
}

TEST(Combine, GivesPlusZeroWhereNoSlotHasAnExpert) {
  for (const CombineForm form : kForms) {
    for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
      Slots slots;
      fill(slots, 2, 3, Values::usual, false, 5);
      slots.route.ids = {-1, 0, 1, 18, -1, -1};  // other ranks' experts among them
      std::fill(slots.y.begin(), slots.y.end(), 0.0f);
      const CombineNumerics numerics{.form = form, .scaling = ScalingPoint::after_sum};
      for (const float value : slots.combined(numerics, level, Format::bf16, 2.5f)) {
        EXPECT_EQ(bits(value), 0u) << static_cast<int>(form);
      }
    }
  }
}

TEST(Combine, CarriesNanAndInfinity) {
  for (const CombineForm form : kForms) {
    for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
      for (const ScalingPoint point : {ScalingPoint::in_sum, ScalingPoint::after_sum}) {
        if (!allows(form, point)) continue;
        const std::string what =
            "form " + std::to_string(static_cast<int>(form)) + " level " + std::string(name(level));
        Slots slots;
        fill(slots, 4, 3, Values::usual, false, 6);
        const auto set = [&](std::int64_t token, std::int64_t k, float value) {
          std::fill_n(slots.y.begin() + (token * 3 + k) * kWidth, kWidth, value);
        };
        for (float& weight : slots.route.weights) weight = std::fabs(weight);
        set(0, 1, std::numeric_limits<float>::quiet_NaN());
        set(1, 2, kInfinity);
        set(2, 0, -kInfinity);
        set(3, 0, kInfinity);
        set(3, 1, -kInfinity);
        const std::vector<float> out =
            slots.combined({.form = form, .scaling = point}, level, Format::bf16, 2.5f);
        const bool replayed = level == NumericsLevel::replay && form != CombineForm::exact;
        const std::uint32_t nan = replayed ? 0x7FFF'0000u : 0x7FC0'0000u;
        EXPECT_EQ(bits(out[0]), nan) << what;
        EXPECT_EQ(out[at(kWidth)], kInfinity) << what;
        EXPECT_EQ(out[at(2 * kWidth)], -kInfinity) << what;
        EXPECT_EQ(bits(out[at(3 * kWidth)]), nan) << what;
      }
    }
  }
}

TEST(Combine, DoesNotDependOnThreads) {
  Slots slots;
  fill(slots, 67, 9, Values::cancelling, true, 7);
  for (const CombineForm form : kForms) {
    for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
      const CombineNumerics numerics{
          .form = form, .fold_from = 3, .scaling = ScalingPoint::after_sum};
      const auto one = slots.combined(numerics, level, Format::bf16, 2.5f);
      expect_same(
          slots.combined(numerics, level, Format::bf16, 2.5f, WeightPoint::combine, Format::f32, 5),
          one, "threads");
    }
  }
}

/// One row each of two tensors joined, as a framework joins routed and shared experts.
std::vector<float> joined(const CombineNumerics& numerics, float scaling, Format format,
                          const std::vector<float>& routed, const std::vector<float>* shared) {
  const auto rows = [&](const std::vector<float>& values) {
    Rows made("x", format, 1, std::ssize(values));
    made.put(0, 0, values);
    return made;
  };
  Rows right;
  if (shared != nullptr) right = rows(*shared);
  const Rows out =
      join_shared(numerics, scaling, rows(routed), shared != nullptr ? &right : nullptr);
  std::vector<float> values(routed.size());
  out.get(0, 0, values);
  return values;
}

TEST(JoinShared, AddsRowsInOneRounding) {
  std::mt19937_64 random(8);
  for (const Format format : {Format::bf16, Format::f16, Format::f32}) {
    std::vector<float> routed, shared;
    for (int i = 0; i < 4000; ++i) {
      routed.push_back(judge::in_dtype(format, value_of(Values::cancelling, random)));
      shared.push_back(judge::in_dtype(format, value_of(Values::cancelling, random)));
    }
    routed[0] = kInfinity;
    shared[0] = -kInfinity;
    routed[1] = std::numeric_limits<float>::quiet_NaN();
    routed[2] = kInfinity;
    routed[3] = -shared[3];
    for (const ScalingPoint point :
         {ScalingPoint::in_sum, ScalingPoint::after_sum, ScalingPoint::with_shared}) {
      for (const float scaling : kScalings) {
        const bool scales = point == ScalingPoint::with_shared;
        const CombineNumerics numerics{.form = CombineForm::sum, .scaling = point};
        for (const bool with_shared : {true, false}) {
          const auto out =
              joined(numerics, scaling, format, routed, with_shared ? &shared : nullptr);
          for (std::size_t i = 0; i < routed.size(); ++i) {
            ExactSum sum;
            sum.add_product(routed[i], scales ? scaling : 1.0f);
            if (with_shared) sum.add(shared[i]);
            ASSERT_EQ(bits(out[i]), bits(sum.round(format)))
                << i << " " << routed[i] << " " << shared[i] << " scaling " << scaling;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moeref
