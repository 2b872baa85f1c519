#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "engine/exact/dyadic.hpp"
#include "engine/exact/exact_dot.hpp"
#include "engine/exact/rounding.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::exact {
namespace {

using judge::exact_real;
using judge::MpfrReal;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
std::uint64_t bits_of(double x) { return std::bit_cast<std::uint64_t>(x); }

/// A finite double with random bits: all exponents, subnormals included.
double any_double(std::mt19937_64& random) {
  for (;;) {
    const double value = std::bit_cast<double>(random());
    if (std::isfinite(value)) return value;
  }
}

/// A number of up to `limbs` limbs, often with long runs of ones or zeros.
Dyadic long_number(std::mt19937_64& random, int limbs) {
  Dyadic value;
  const int count = 1 + static_cast<int>(random() % static_cast<unsigned>(limbs));
  for (int i = 0; i < count; ++i) {
    const auto kind = random() % 4;
    const std::int64_t limb = kind == 0   ? 0x7FFFFFFFFFFFFFFF
                              : kind == 1 ? 0
                                          : static_cast<std::int64_t>(random() >> 1);
    value = value.scaled(64) + Dyadic::from_integer(limb).scaled(static_cast<int>(random() % 2));
  }
  value = value.scaled(static_cast<std::int64_t>(random() % 301) - 150);
  return random() % 2 == 0 ? value : -value;
}

Dyadic nonzero_long_number(std::mt19937_64& random, int limbs) {
  for (;;) {
    Dyadic value = long_number(random, limbs);
    if (!value.is_zero()) return value;
  }
}

TEST(Dyadic, HoldsEveryDoubleExactly) {
  std::mt19937_64 random(1);
  std::vector<double> values = {0.0,
                                1.0,
                                -1.0,
                                std::numeric_limits<double>::max(),
                                std::numeric_limits<double>::min(),
                                std::numeric_limits<double>::denorm_min(),
                                -std::numeric_limits<double>::denorm_min()};
  for (int i = 0; i < 20000; ++i) values.push_back(any_double(random));
  for (const double value : values) {
    EXPECT_EQ(bits_of(Dyadic(value).to_double_odd()), bits_of(value)) << value;
    EXPECT_TRUE(mpfr_cmp_d(exact_real(Dyadic(value)).get(), value) == 0) << value;
  }
  EXPECT_EQ(bits_of(Dyadic(-0.0).to_double_odd()), bits_of(0.0));
}

TEST(Dyadic, HoldsEveryInteger) {
  for (const std::int64_t value :
       {std::int64_t{0}, std::int64_t{1}, std::int64_t{-3},
        std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
    EXPECT_EQ(mpfr_cmp_si(exact_real(Dyadic::from_integer(value)).get(), value), 0) << value;
  }
}

TEST(Dyadic, AddsSubtractsMultipliesAndComparesLikeMpfr) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20000; ++i) {
    const Dyadic x = long_number(random, 6);
    // Every third pair nearly cancels.
    const Dyadic y =
        i % 3 == 0 ? -x + Dyadic(any_double(random)).scaled(-100) : long_number(random, 6);
    const MpfrReal a = exact_real(x);
    const MpfrReal b = exact_real(y);
    MpfrReal expected(4000);
    ASSERT_EQ(mpfr_add(expected.get(), a.get(), b.get(), MPFR_RNDN), 0);
    EXPECT_TRUE(mpfr_equal_p(expected.get(), exact_real(x + y).get())) << i;
    ASSERT_EQ(mpfr_sub(expected.get(), a.get(), b.get(), MPFR_RNDN), 0);
    EXPECT_TRUE(mpfr_equal_p(expected.get(), exact_real(x - y).get())) << i;
    ASSERT_EQ(mpfr_mul(expected.get(), a.get(), b.get(), MPFR_RNDN), 0);
    EXPECT_TRUE(mpfr_equal_p(expected.get(), exact_real(x * y).get())) << i;
    const int order = mpfr_cmp(a.get(), b.get());
    EXPECT_EQ(compare(x, y), order < 0 ? -1 : order > 0 ? 1 : 0) << i;
    EXPECT_EQ(compare(x, x), 0);
  }
}

TEST(Dyadic, ComparesNumbersFarApartWithoutAligningThem) {
  const Dyadic huge = Dyadic(1.5).scaled(std::int64_t{1} << 50);
  const Dyadic tiny = Dyadic(1.5).scaled(-(std::int64_t{1} << 50));
  EXPECT_EQ(compare(tiny, huge), -1);
  EXPECT_EQ(compare(-tiny, -huge), 1);
  EXPECT_EQ(compare(-huge, tiny), -1);
  EXPECT_THROW(huge + tiny, std::length_error);
}

TEST(Dyadic, KnowsItsLeadingAndLowestBit) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 5000; ++i) {
    const Dyadic x = nonzero_long_number(random, 5);
    const MpfrReal value = exact_real(x);
    EXPECT_EQ(x.exponent(), mpfr_get_exp(value.get()) - 1);
    EXPECT_EQ(x.significant_bits(), static_cast<std::int64_t>(mpfr_min_prec(value.get())));
    EXPECT_EQ(x.lowest_exponent(), x.exponent() - x.significant_bits() + 1);
  }
}

TEST(Dyadic, TruncatesTowardZero) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 5000; ++i) {
    const Dyadic x = nonzero_long_number(random, 5);
    const auto bits = static_cast<std::int64_t>(random() % 300 + 1);
    const MpfrReal expected = exact_real(x).rounded(static_cast<mpfr_prec_t>(bits), MPFR_RNDZ);
    EXPECT_TRUE(mpfr_equal_p(expected.get(), exact_real(x.truncated(bits)).get())) << bits;
  }
}

/// Round to odd from MPFR: toward zero at the precision a double has there, then the last bit.
double odd_double(const MpfrReal& value) {
  const double toward_zero = mpfr_get_d(value.get(), MPFR_RNDZ);
  if (mpfr_cmp_d(value.get(), toward_zero) == 0) return toward_zero;
  return std::bit_cast<double>(bits_of(toward_zero) | 1);
}

TEST(Dyadic, RoundsToOddOverTheWholeRangeOfDoubles) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 50000; ++i) {
    const auto shift = static_cast<std::int64_t>(random() % 2600) - 1300;
    const Dyadic long_one = nonzero_long_number(random, 4);
    Dyadic x = long_one.scaled(shift - long_one.exponent());
    if (i % 2 == 0) x = x.truncated(static_cast<std::int64_t>(random() % 60 + 1));
    EXPECT_EQ(bits_of(x.to_double_odd()), bits_of(odd_double(exact_real(x)))) << shift;
  }
  const Dyadic tiny = Dyadic(1.0).scaled(-1000000);
  EXPECT_EQ(tiny.to_double_odd(), std::numeric_limits<double>::denorm_min());
  EXPECT_EQ((-tiny).to_double_odd(), -std::numeric_limits<double>::denorm_min());
  EXPECT_EQ(Dyadic(1.0).scaled(1000000).to_double_odd(), std::numeric_limits<double>::max());
}

TEST(Dyadic, CutsQuotientsExactly) {
  std::mt19937_64 random(6);
  for (int i = 0; i < 30000; ++i) {
    const Dyadic denominator = nonzero_long_number(random, 5);
    Dyadic numerator = nonzero_long_number(random, 8);
    if (i % 4 == 0) numerator = numerator * denominator;  // often an exact quotient
    const auto bits = static_cast<std::int64_t>(random() % 400 + 1);
    bool inexact = false;
    const Dyadic quotient = floor_quotient(numerator, denominator, bits, &inexact);
    MpfrReal expected(static_cast<mpfr_prec_t>(bits));
    const int ternary = mpfr_div(expected.get(), exact_real(numerator).get(),
                                 exact_real(denominator).get(), MPFR_RNDZ);
    ASSERT_TRUE(mpfr_equal_p(expected.get(), exact_real(quotient).get())) << i << " " << bits;
    ASSERT_EQ(inexact, ternary != 0) << i << " " << bits;
  }
  bool inexact = true;
  EXPECT_TRUE(floor_quotient(Dyadic(), Dyadic(3.0), 10, &inexact).is_zero());
  EXPECT_FALSE(inexact);
}

// The pattern that makes the estimated quotient limb one too large after its correction: dividend
// (2^63, 0, 0), divisor (2^63, 1) in limbs of 64 bits (after Knuth's exercise 4.3.1-21).
TEST(Dyadic, AddsBackWhenAQuotientLimbWasTooLarge) {
  const Dyadic limb(0x1p64);
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i) {
    const Dyadic low = Dyadic::from_integer(static_cast<std::int64_t>(random() % 3 + 1));
    const Dyadic divisor = Dyadic(0x1p63) * limb * limb + low;
    const Dyadic dividend = Dyadic(0x1p63) * limb * limb * limb * limb -
                            Dyadic::from_integer(static_cast<std::int64_t>(random() % 5));
    bool inexact = false;
    const Dyadic quotient = floor_quotient(dividend, divisor, 70 + i % 130, &inexact);
    const Dyadic rest = dividend - quotient * divisor;
    const Dyadic place = Dyadic::power_of_two(quotient.exponent() - (70 + i % 130) + 1);
    EXPECT_GE(rest.sign(), 0);
    EXPECT_EQ(compare(rest, place * divisor), -1);
  }
}

TEST(Dyadic, RoundsQuotientsOnceThroughADouble) {
  std::mt19937_64 random(8);
  for (int i = 0; i < 50000; ++i) {
    const auto part = [&] {
      const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
      return std::isfinite(value) && value != 0.0f ? static_cast<double>(value) : 3.0;
    };
    const double numerator = part();
    const double denominator = part();
    MpfrReal expected(2000);
    mpfr_div(expected.get(), MpfrReal(53, numerator).get(), MpfrReal(53, denominator).get(),
             MPFR_RNDZ);
    // 2000 bits tell every quotient of two floats from a boundary: it is one only if it is exact.
    const double odd = quotient_to_double_odd(Dyadic(numerator), Dyadic(denominator));
    EXPECT_EQ(bits_of(odd), bits_of(odd_double(expected)));
    EXPECT_EQ(bits_of(round_to(Format::f32, odd)), bits_of(expected.to_float()));
  }
}

TEST(ExactDot, IsTheSumOrNothing) {
  std::mt19937_64 random(17);
  int held = 0;
  int too_wide = 0;
  for (int round = 0; round < 3000; ++round) {
    const int exponents = round % 3 == 0 ? 10 : round % 3 == 1 ? 60 : 400;
    std::vector<double> x, y;
    for (std::size_t size = random() % 40; x.size() < size;) {
      const auto number = [&] {
        const auto whole =
            static_cast<double>(static_cast<std::int64_t>(random() % 0x2000000)) - 0x1000000;
        return std::ldexp(whole, static_cast<int>(random() % static_cast<unsigned>(exponents)));
      };
      x.push_back(number());
      y.push_back(number());
      if (random() % 2 == 0) {  // what cancels
        x.push_back(-x.back());
        y.push_back(y.back());
      }
    }
    Dyadic sum;
    for (std::size_t i = 0; i < x.size(); ++i) sum += Dyadic(x[i]) * Dyadic(y[i]);
    const auto found = exact_dot(x, y);
    if (!found) {
      ++too_wide;
      continue;
    }
    ++held;
    sum -= Dyadic(found->hi);
    sum -= Dyadic(found->lo);
    ASSERT_TRUE(sum.is_zero()) << "round " << round;
  }
  EXPECT_GT(held, 1000);
  EXPECT_GT(too_wide, 500);
}

TEST(RoundToOdd, EqualsTheExactSumRoundedToOdd) {
  std::mt19937_64 random(9);
  for (int i = 0; i < 100000; ++i) {
    double hi = any_double(random);
    double lo = std::ldexp(hi, -53 - static_cast<int>(random() % 60)) *
                (static_cast<double>(random() % 2001) / 1000.0 - 1.0);
    if (i % 5 == 0) hi = std::ldexp(1.0, static_cast<int>(random() % 2000) - 1000);  // power of two
    if (i % 7 == 0) lo = 0.0;
    const double sum = hi + lo;
    if (!std::isfinite(sum)) continue;
    lo = lo - (sum - hi);
    hi = sum;
    if (hi + lo != hi) continue;
    EXPECT_EQ(bits_of(round_to_odd(hi, lo)),
              bits_of(lo == 0.0 ? hi : (Dyadic(hi) + Dyadic(lo)).to_double_odd()))
        << hi << " " << lo;
  }
  EXPECT_EQ(bits_of(round_to_odd(-0.0, 0.0)), bits_of(-0.0));
}

struct OutputFormat {
  Format format;
  int codes;     ///< non-negative finite codes; the next one is infinity
  int exponent;  ///< of the smallest subnormal
  int fraction;  ///< fraction bits
};

/// The value of a code, also of the one after the largest finite number (as if the range went on).
double decode(const OutputFormat& target, int code) {
  const int field = code >> target.fraction;
  const int fraction = code & ((1 << target.fraction) - 1);
  if (field == 0) return std::ldexp(fraction, target.exponent);
  return std::ldexp(fraction + (1 << target.fraction), target.exponent + field - 1);
}

class RoundTo : public testing::TestWithParam<OutputFormat> {};

TEST_P(RoundTo, RoundsEveryMidpointAndItsNeighbours) {
  const OutputFormat target = GetParam();
  for (int code = 0; code < target.codes; ++code) {
    const double below = decode(target, code);
    const double above = decode(target, code + 1);
    const double expected_above = code + 1 == target.codes ? kInfinity : above;
    const double midpoint = (below + above) / 2;  // exact
    for (const double sign : {1.0, -1.0}) {
      const auto rounded = [&](double x) { return bits_of(round_to(target.format, sign * x)); };
      const auto expected = [&](double x) { return bits_of(static_cast<float>(sign * x)); };
      ASSERT_EQ(rounded(below), expected(below)) << code;
      ASSERT_EQ(rounded(std::nextafter(below, kInfinity)), expected(below)) << code;
      ASSERT_EQ(rounded(std::nextafter(midpoint, 0.0)), expected(below)) << code;
      ASSERT_EQ(rounded(midpoint), expected(code % 2 == 0 ? below : expected_above)) << code;
      ASSERT_EQ(rounded(std::nextafter(midpoint, kInfinity)), expected(expected_above)) << code;
      ASSERT_EQ(rounded(std::nextafter(above, 0.0)), expected(expected_above)) << code;
    }
  }
}

TEST_P(RoundTo, AgreesWithExactArithmeticOnRandomDoubles) {
  const OutputFormat target = GetParam();
  const double limit = decode(target, target.codes);
  std::mt19937_64 random(10);
  for (int i = 0; i < 200000; ++i) {
    // Half of them in the range of the format.
    double x = any_double(random);
    if (i % 2 == 0) {
      const int exponents = target.format == Format::f16 ? 50 : 300;
      x = std::ldexp(1.0 + static_cast<double>(random() >> 12) * 0x1p-52,
                     static_cast<int>(random() % static_cast<unsigned>(exponents)) - exponents / 2);
    }
    const double magnitude = std::fabs(x);
    const float rounded = std::fabs(round_to(target.format, x));
    EXPECT_EQ(std::signbit(round_to(target.format, x)), std::signbit(x));
    const double nearest = rounded == kInfinity ? limit : static_cast<double>(rounded);
    // No other value of the format is nearer: the error is at most half a place.
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    const double place = std::ldexp(1.0, std::max(exponent - 1 - target.fraction, target.exponent));
    if (magnitude >= limit) {
      EXPECT_EQ(rounded, kInfinity);
    } else {
      EXPECT_LE(compare(Dyadic(nearest) - Dyadic(magnitude), Dyadic(place / 2)), 0);
      EXPECT_LE(compare(Dyadic(magnitude) - Dyadic(nearest), Dyadic(place / 2)), 0);
      EXPECT_EQ(std::fmod(nearest, place), 0.0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, RoundTo,
                         testing::Values(OutputFormat{Format::bf16, 0x7F80, -133, 7},
                                         OutputFormat{Format::f16, 0x7C00, -24, 10}),
                         [](const auto& target) {
                           return target.param.format == Format::bf16 ? "bf16" : "f16";
                         });

TEST(RoundToF32, AgreesWithMpfrAtAndAroundMidpoints) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 100000; ++i) {
    const auto code = static_cast<std::uint32_t>(random() % 0x7F800000u);
    const double below = std::bit_cast<float>(code);
    const double above =
        code + 1 == 0x7F800000u ? 0x1p128 : static_cast<double>(std::bit_cast<float>(code + 1));
    const double midpoint = (below + above) / 2;
    for (const double x : {midpoint, std::nextafter(midpoint, 0.0),
                           std::nextafter(midpoint, kInfinity), -midpoint, below}) {
      EXPECT_EQ(bits_of(round_to(Format::f32, x)), bits_of(MpfrReal(53, x).to_float())) << x;
    }
  }
}

TEST(RoundTo, KeepsZerosInfinitiesAndTheCanonicalNan) {
  for (const Format format : {Format::f32, Format::bf16, Format::f16}) {
    EXPECT_EQ(bits_of(round_to(format, 0.0)), 0x00000000u);
    EXPECT_EQ(bits_of(round_to(format, -0.0)), 0x80000000u);
    EXPECT_EQ(bits_of(round_to(format, 1e-320)), 0x00000000u);
    EXPECT_EQ(bits_of(round_to(format, -1e-320)), 0x80000000u);
    EXPECT_EQ(bits_of(round_to(format, kInfinity)), 0x7F800000u);
    EXPECT_EQ(bits_of(round_to(format, -1e300)), 0xFF800000u);
    EXPECT_EQ(bits_of(round_to(format, -std::numeric_limits<double>::quiet_NaN())), 0x7FC00000u);
  }
  EXPECT_EQ(bits_of(canonical_nan()), 0x7FC00000u);
  EXPECT_THROW(round_to(Format::e4m3, 1.0), std::invalid_argument);
}

}  // namespace
}  // namespace moeref::exact
