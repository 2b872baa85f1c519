#include <gtest/gtest.h>
#include <mpfr.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "tests/engine/combine_slots.hpp"
#include "tests/judge/mpfr_real.hpp"

// The sums over slots as the kernels do them, against loops.

namespace moeref {
namespace {

using judge::MpfrReal;
using testing::at;
using testing::bits;
using testing::each;
using testing::expect_same;
using testing::fill;
using testing::for_all;
using testing::kWidth;
using testing::of_token;
using testing::Slots;
using testing::Values;

float fused(bool flush, float a, float b, float c) {
  if (!flush) return std::isnan(std::fma(a, b, c)) ? judge::gpu_nan() : std::fma(a, b, c);
  const judge::F32 math{true};
  MpfrReal exact(700, static_cast<double>(math.seen(a)));
  mpfr_mul_d(exact.get(), exact.get(), static_cast<double>(math.seen(b)), MPFR_RNDN);
  mpfr_add_d(exact.get(), exact.get(), static_cast<double>(math.seen(c)), MPFR_RNDN);
  if (mpfr_zero_p(exact.get()) != 0) return math.seen(a) * math.seen(b) + math.seen(c);
  const MpfrReal rounded = exact.rounded(24, MPFR_RNDN);
  if (mpfr_nan_p(rounded.get()) != 0) return judge::gpu_nan();
  if (mpfr_cmpabs(rounded.get(), MpfrReal(2, 0x1p-126).get()) < 0) {
    return std::copysign(0.0f, static_cast<float>(rounded.sign()));
  }
  return rounded.to_float();
}

float scaled(const judge::F32& math, float sum, float scaling, Format output) {
  return judge::in_dtype(output, scaling == 1.0f ? sum : math.times(sum, scaling));
}

TEST(CombineReplay, ReplaysWeightedFmaInSlotOrder) {
  for_all(1, 16, [](const Slots& slots, float scaling, bool flushes, const std::string& what) {
    const judge::F32 math{flushes};
    for (const bool biased : {false, true}) {
      CombineNumerics numerics{.form = CombineForm::weighted_fma,
                               .adds_bias = biased,
                               .flushes = flushes,
                               .scaling = ScalingPoint::after_sum};
      const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
        float sum = 0.0f;
        for (std::int64_t k = 0; k < slots.route.top_k; ++k) {
          const std::int64_t slot = token * slots.route.top_k + k;
          if (!slots.is_here(slot)) continue;
          float y = slots.y[at(slot * kWidth + col)];
          const std::int64_t expert = slots.route.ids[at(slot)] - slots.layer.first_expert;
          if (biased) y = math.plus(y, slots.biases[at(expert)][at(col)]);
          sum = fused(flushes, slots.route.weights[at(slot)], y, sum);
        }
        const float stored = judge::in_dtype(Format::bf16, sum);
        // The framework multiplies the stored tensor.
        return scaling == 1.0f ? stored : judge::in_dtype(Format::bf16, stored * scaling);
      });
      expect_same(slots.combined(numerics, NumericsLevel::replay, Format::bf16, scaling), expected,
                  what + (biased ? " bias" : ""));
    }
  });
}

TEST(CombineReplay, ReplaysSumsFromTheFirstSlotAndFromZero) {
  for_all(1, 16, [](const Slots& slots, float scaling, bool flushes, const std::string& what) {
    const judge::F32 math{flushes};
    for (const bool from_zero : {false, true}) {
      for (const ScalingPoint point : {ScalingPoint::in_sum, ScalingPoint::after_sum}) {
        const CombineNumerics numerics{.form = CombineForm::sum,
                                       .starts_at_zero = from_zero,
                                       .flushes = flushes,
                                       .scaling = point};
        const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
          const std::vector<float> y = of_token(slots, token, col);
          float sum = from_zero ? math.plus(0.0f, y[0]) : y[0];
          for (std::size_t k = 1; k < y.size(); ++k) sum = math.plus(sum, y[k]);
          if (point == ScalingPoint::in_sum) return scaled(math, sum, scaling, Format::bf16);
          const float stored = judge::in_dtype(Format::bf16, sum);
          return scaling == 1.0f ? stored : judge::in_dtype(Format::bf16, stored * scaling);
        });
        expect_same(slots.combined(numerics, NumericsLevel::replay, Format::bf16, scaling,
                                   WeightPoint::gemm2),
                    expected, what + (from_zero ? " from zero" : " from y_0"));
      }
    }
  });
}

TEST(CombineReplay, GivesMinusZeroOnlyWhereTheSumBeginsWithTheFirstSlot) {
  Slots slots;
  fill(slots, 1, 3, Values::usual, false, 1);
  std::fill(slots.y.begin(), slots.y.end(), -0.0f);
  CombineNumerics numerics{.form = CombineForm::sum};
  const auto first = [&] {
    return bits(
        slots.combined(numerics, NumericsLevel::replay, Format::bf16, 1.0f, WeightPoint::gemm2)[0]);
  };
  EXPECT_EQ(first(), 0x8000'0000u);
  numerics.starts_at_zero = true;
  EXPECT_EQ(first(), 0u);
  // Exact sums have one zero.
  numerics.starts_at_zero = false;
  EXPECT_EQ(bits(slots.combined(numerics, NumericsLevel::backend, Format::bf16, 1.0f,
                                WeightPoint::gemm2)[0]),
            0u);
}

/// (b of n-1 .. 0, then of the highest .. n): u[k] += u[k | 2^b].
float folded(const judge::F32& math, std::vector<float> u, int n) {
  int count = 0;
  while ((std::size_t{1} << count) < u.size()) ++count;
  u.resize(std::size_t{1} << count, 0.0f);
  std::vector<int> order;
  for (int b = n - 1; b >= 0; --b) order.push_back(b);
  for (int b = count - 1; b >= n; --b) order.push_back(b);
  for (const int b : order) {
    std::vector<float> next = u;
    for (std::size_t k = 0; k < u.size(); ++k) {
      const std::size_t other = k | std::size_t{1} << b;
      if (other != k) next[k] = math.plus(u[k], u[other]);
    }
    u = next;
  }
  return u[0];
}

TEST(CombineReplay, ReplaysEveryFoldOrder) {
  int differing = 0;
  for_all(1, 16, [&](const Slots& slots, float scaling, bool flushes, const std::string& what) {
    const judge::F32 math{flushes};
    std::vector<std::vector<float>> of_orders;
    const auto most =
        static_cast<int>(std::bit_width(static_cast<unsigned>(slots.route.top_k - 1)));
    for (int n = 0; n <= most; ++n) {
      const CombineNumerics numerics{
          .form = CombineForm::folded_sum, .fold_from = n, .flushes = flushes};
      const auto expected = each(slots, [&](std::int64_t token, std::int64_t col) {
        return scaled(math, folded(math, of_token(slots, token, col), n), scaling, Format::bf16);
      });
      expect_same(slots.combined(numerics, NumericsLevel::replay, Format::bf16, scaling,
                                 WeightPoint::gemm2),
                  expected, what + " n " + std::to_string(n));
      of_orders.push_back(expected);
    }
    std::sort(of_orders.begin(), of_orders.end());
    of_orders.erase(std::unique(of_orders.begin(), of_orders.end()), of_orders.end());
    if (of_orders.size() > 2) ++differing;
  });
  EXPECT_GT(differing, 20);  // cancelling values tell the orders apart
}

TEST(CombineReplay, NamesTheMeasuredFoldOrders) {
  // Distinct powers of two that a sum in 24 bits keeps or loses by the order of additions: b = 1,
  // 0, 2 is n = 2 of eight slots, b = 2, 1, 0 is n = 0 and n = 3.
  Slots slots;
  fill(slots, 1, 8, Values::usual, false, 2);
  const auto with = [&](std::vector<float> y, int n) {
    for (std::size_t k = 0; k < y.size(); ++k) {
      std::fill_n(slots.y.begin() + static_cast<std::ptrdiff_t>(k * at(kWidth)), kWidth, y[k]);
    }
    const CombineNumerics numerics{.form = CombineForm::folded_sum, .fold_from = n};
    return slots.combined(numerics, NumericsLevel::replay, Format::f32, 1.0f,
                          WeightPoint::gemm2)[0];
  };
  const float big = 0x1p24f;
  // y_0 and y_4 cancel: first in b = 2, 1, 0; after y_0 took in y_1 .. y_3 in b = 1, 0, 2.
  const std::vector<float> y{big, 1.0f, 0.0f, 0.0f, -big, 0.0f, 0.0f, 0.0f};
  EXPECT_EQ(with(y, 0), 1.0f);
  EXPECT_EQ(with(y, 3), 1.0f);
  EXPECT_EQ(with(y, 2), 0.0f);
  EXPECT_EQ(with(y, 1), 0.0f);  // b = 0, 2, 1
}

}  // namespace
}  // namespace moeref
