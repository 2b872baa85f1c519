// The models of GPU arithmetic against exact numbers. The bits of the approximate units themselves
// are held against their checksums by the conformance cases of data/golden/tables.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/gpu/approx.hpp"
#include "quant/gpu/functions.hpp"
#include "quant/gpu/log2.hpp"
#include "tests/judge/gpu_numbers.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref {
namespace {

using judge::float_bits;
using judge::float_of;

constexpr std::uint32_t kSmallestNormal = 0x0080'0000u;
constexpr std::uint32_t kInfinity = 0x7F80'0000u;

/// Numbers where flushing, rounding, overflow and NaN begin, with both signs, and random ones.
std::vector<float> numbers(int random_count) {
  std::vector<float> numbers;
  for (const std::uint32_t bits : {0u,
                                   1u,
                                   2u,
                                   0x0040'0000u,
                                   kSmallestNormal - 1,
                                   kSmallestNormal,
                                   kSmallestNormal + 1,
                                   0x00FF'FFFFu,
                                   0x0100'0000u,
                                   0x1FFF'FFFFu,
                                   0x2000'0000u,
                                   0x2000'0001u,
                                   0x33FF'FFFFu,
                                   0x3380'0000u,
                                   0x3EFF'FFFFu,
                                   0x3F00'0000u,
                                   0x3F7F'FFFEu,
                                   0x3F7F'FFFFu,
                                   0x3F80'0000u,
                                   0x3F80'0001u,
                                   0x3FC0'0000u,
                                   0x4000'0000u,
                                   0x4B7F'FFFFu,
                                   0x5F80'0000u,
                                   0x7E7F'FFFFu,
                                   0x7E80'0000u,
                                   0x7E80'0001u,
                                   0x7F00'0000u,
                                   0x7F7F'FFFFu,
                                   kInfinity,
                                   0x7F80'0001u,
                                   0x7FC0'0000u,
                                   0x7FFF'FFFFu}) {
    numbers.push_back(float_of(bits));
    numbers.push_back(float_of(bits | 0x8000'0000u));
  }
  std::mt19937 random(41);
  for (int i = 0; i < random_count; ++i) {
    numbers.push_back(float_of(static_cast<std::uint32_t>(random())));
  }
  return numbers;
}

TEST(Log2, HasTheIntegersAroundTheRoundedLogarithm) {
  std::vector<float> positive;
  for (int k = -149; k <= 127; ++k) {
    const std::uint32_t bits = float_bits(std::ldexp(1.0f, k));
    for (std::uint32_t step = 0; step < 120; ++step) {
      if (bits > step) positive.push_back(float_of(bits - step));
      positive.push_back(float_of(bits + step));
    }
  }
  for (const float x : numbers(20000)) {
    if (x > 0.0f) positive.push_back(x);
  }
  for (const float x : positive) {
    if (!std::isfinite(x)) continue;
    const float logarithm = judge::log2_in(Format::f32, x);
    ASSERT_EQ(gpu::ceil_log2(x), static_cast<int>(std::ceil(logarithm))) << std::hexfloat << x;
    ASSERT_EQ(gpu::floor_log2(x), static_cast<int>(std::floor(logarithm))) << std::hexfloat << x;
  }
}

TEST(Log2, OfEveryBf16NumberIsRoundedToBf16) {
  for (std::uint32_t code = 1; code < 0x7F80; ++code) {
    const float x = float_of(code << 16);
    ASSERT_EQ(gpu::ceil_log2_bf16(x), static_cast<int>(std::ceil(judge::log2_in(Format::bf16, x))))
        << std::hexfloat << x;
  }
}

TEST(FlushingArithmetic, RoundsExactResultsOnceAndFlushes) {
  const judge::F32 flushing{.flush = true};
  const std::vector<float> all = numbers(300);
  for (const float a : all) {
    EXPECT_EQ(float_bits(gpu::canonical(gpu::flush(a))), float_bits(flushing.times(a, 1.0f)));
    for (const float b : all) {
      const auto where = [&] { return fmt::format("{:x}, {:x}", float_bits(a), float_bits(b)); };
      ASSERT_EQ(float_bits(gpu::mul_ftz(a, b)), float_bits(flushing.times(a, b))) << where();
      ASSERT_EQ(float_bits(gpu::add_ftz(a, b)), float_bits(flushing.plus(a, b))) << where();
      ASSERT_EQ(float_bits(gpu::min_ftz(a, b)), float_bits(flushing.smaller(a, b))) << where();
      ASSERT_EQ(float_bits(gpu::max_ftz(a, b)), float_bits(flushing.larger(a, b))) << where();
    }
  }
}

/// a * b + c of numbers without subnormals: exact, rounded to 24 bits, then flushed.
float slow_fma(float a, float b, float c) {
  // In f64 no product overflows or underflows.
  const auto special =
      static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) {
    return judge::is_nan(special) ? judge::gpu_nan() : special;
  }
  constexpr mpfr_prec_t kExact = 900;
  judge::MpfrReal sum(kExact, static_cast<double>(a));
  const judge::MpfrReal factor(kExact, static_cast<double>(b));
  const judge::MpfrReal addend(kExact, static_cast<double>(c));
  EXPECT_EQ(mpfr_mul(sum.get(), sum.get(), factor.get(), MPFR_RNDN), 0);
  EXPECT_EQ(mpfr_add(sum.get(), sum.get(), addend.get(), MPFR_RNDN), 0);
  if (mpfr_zero_p(sum.get()) != 0) return special;  // the sign of an exact zero is IEEE's
  const bool negative = mpfr_signbit(sum.get()) != 0;
  mpfr_prec_round(sum.get(), 24, MPFR_RNDN);
  const double rounded = mpfr_get_d(sum.get(), MPFR_RNDN);
  if (std::fabs(rounded) < 0x1p-126) return negative ? -0.0f : 0.0f;
  if (std::fabs(rounded) >= 0x1p128) return negative ? -judge::infinity() : judge::infinity();
  return static_cast<float>(rounded);
}

TEST(FlushingArithmetic, FusesMultiplicationAndAdditionInOneRounding) {
  const std::vector<float> all = numbers(0);
  const std::vector<float> some = numbers(40000);
  const auto check = [](float a, float b, float c) {
    const float expected = slow_fma(gpu::flush(a), gpu::flush(b), gpu::flush(c));
    ASSERT_EQ(float_bits(gpu::fma_ftz(a, b, c)), float_bits(expected))
        << fmt::format("{:x} * {:x} + {:x}", float_bits(a), float_bits(b), float_bits(c));
  };
  for (const float a : all) {
    for (const float b : all) {
      for (const float c : all) check(a, b, c);
    }
  }
  for (std::size_t i = 0; i + 2 < some.size(); ++i) check(some[i], some[i + 1], some[i + 2]);
  // Sums that nearly cancel, and halves of the smallest normal number.
  std::mt19937 random(42);
  for (int i = 0; i < 40000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    const float a = float_of((bits & 0x807F'FFFFu) | 0x3F80'0000u);
    const float b = std::ldexp(a, -126 - static_cast<int>(bits >> 24 & 3u));
    check(a, b, std::ldexp(-a, -126 - static_cast<int>(bits >> 26 & 3u)));
    check(a, 1.0f + 0x1p-12f, -a);
  }
}

TEST(ReciprocalUnit, IsWithinOneUnitAndExactForPowersOfTwo) {
  for (std::uint32_t mantissa = 0; mantissa < 0x0080'0000u; ++mantissa) {
    const float x = float_of(0x3F80'0000u | mantissa);
    const float made = gpu::rcp_approx_ftz(x);
    const double exact = 1.0 / static_cast<double>(x);
    ASSERT_LE(std::fabs(static_cast<double>(made) - exact), 0x1p-24 + (x == 1.0f ? 0.0 : 0x1p-53))
        << x;
  }
  for (int k = -126; k <= 126; ++k) {
    EXPECT_EQ(gpu::rcp_approx_ftz(std::ldexp(1.0f, k)), std::ldexp(1.0f, -k)) << k;
    // The mantissa's result does not depend on the binade.
    for (const float fraction : {1.3f, 1.5f, 1.99f}) {
      if (k == 126) continue;
      const float scaled = std::ldexp(gpu::rcp_approx_ftz(fraction), -k);
      EXPECT_EQ(gpu::rcp_approx_ftz(std::ldexp(-fraction, k)), -scaled) << k;
    }
  }
}

TEST(ReciprocalUnit, FlushesBothEnds) {
  for (const std::uint32_t sign : {0u, 0x8000'0000u}) {
    const auto rcp = [sign](std::uint32_t bits) {
      return float_bits(gpu::rcp_approx_ftz(float_of(bits | sign)));
    };
    for (const std::uint32_t small : {0u, 1u, kSmallestNormal - 1}) {
      EXPECT_EQ(rcp(small), kInfinity | sign);
    }
    for (const std::uint32_t large : {0x7E80'0001u, 0x7F7F'FFFFu, kInfinity}) {
      EXPECT_EQ(rcp(large), sign) << std::hex << large;
    }
    EXPECT_EQ(rcp(0x7F80'0001u), gpu::kNanBits);
    EXPECT_EQ(rcp(0x7FC0'0000u), gpu::kNanBits);
  }
}

TEST(PowerUnit, IsExactForIntegersAndZeroBelowTheNormalNumbers) {
  for (int k = -126; k <= 127; ++k) {
    EXPECT_EQ(gpu::ex2_approx_ftz(static_cast<float>(k)), std::ldexp(1.0f, k)) << k;
  }
  for (const float low : {-126.01f, -127.0f, -150.0f, -3e38f, -judge::infinity()}) {
    EXPECT_EQ(float_bits(gpu::ex2_approx_ftz(low)), 0u) << low;
  }
  for (const float high : {128.0f, 200.0f, judge::infinity()}) {
    EXPECT_EQ(float_bits(gpu::ex2_approx_ftz(high)), kInfinity) << high;
  }
  EXPECT_EQ(float_bits(gpu::ex2_approx_ftz(judge::gpu_nan())), gpu::kNanBits);
  // exp2f of PyTorch on a device: one unit less than 2^-127.
  EXPECT_EQ(float_bits(gpu::ex2_approx(-127.0f)), 0x003F'FFFFu);
}

TEST(Divisions, AreTheReciprocalScaledAndMultiplied) {
  const std::vector<float> all = numbers(300);
  for (const float a : all) {
    for (const float b : all) {
      const auto where = [&] { return fmt::format("{:x}, {:x}", float_bits(a), float_bits(b)); };
      ASSERT_EQ(float_bits(gpu::div_full(a, b)), float_bits(judge::triton_quotient(a, b)))
          << where();
      ASSERT_EQ(float_bits(gpu::div_approx_ftz(a, b)),
                float_bits(judge::quotient({.flush = true}, a, b)))
          << where();
    }
  }
}

/// The functions of a build without fast math are near the true ones, those of fast math too, but
/// for their flushed ends.
TEST(Functions, AreNearTheTrueOnes) {
  for (int i = -8000; i <= 8000; ++i) {
    const float x = static_cast<float>(i) / 100.0f;
    const double exact = std::exp(static_cast<double>(x));
    const double sigmoid = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
    const double near = (2.0 + std::fabs(static_cast<double>(x))) * 0x1p-23;
    EXPECT_NEAR(static_cast<double>(gpu::expf_precise(x)) / exact, 1.0, 0x1p-22) << x;
    EXPECT_NEAR(static_cast<double>(gpu::expf_intrinsic(x)) / exact, 1.0, near) << x;
    EXPECT_NEAR(static_cast<double>(gpu::expf_fast(x)) / exact, 1.0, near) << x;
    EXPECT_NEAR(static_cast<double>(gpu::sigmoid_precise(x)) / sigmoid, 1.0, 0x1p-21) << x;
    EXPECT_NEAR(static_cast<double>(gpu::sigmoid_fast(x)) / sigmoid, 1.0, 2 * near) << x;
    const double log = std::log1p(exact);
    EXPECT_NEAR(static_cast<double>(gpu::log1pf_precise(static_cast<float>(exact))) / log, 1.0,
                0x1.8p-23)
        << x;
    if (i == 0) continue;
    const double silu = sigmoid * static_cast<double>(x);
    EXPECT_NEAR(static_cast<double>(gpu::silu_precise(x)) / silu, 1.0, 0x1p-21) << x;
    EXPECT_NEAR(static_cast<double>(gpu::silu_intrinsic(x)) / silu, 1.0, 2 * near) << x;
    EXPECT_NEAR(static_cast<double>(gpu::silu_fast(x)) / silu, 1.0, 2 * near) << x;
  }
  EXPECT_EQ(float_bits(gpu::log1pf_precise(0.0f)), 0u);
  EXPECT_EQ(gpu::log1pf_precise(0x1p-149f), 0x1p-149f);
  EXPECT_EQ(gpu::log1pf_precise(judge::infinity()), judge::infinity());
  EXPECT_EQ(float_bits(gpu::silu_fast(-90.0f)), 0x8000'0000u);
  EXPECT_EQ(float_bits(gpu::silu_fast(-judge::infinity())), gpu::kNanBits);
}

}  // namespace
}  // namespace moeref
