#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "quant/codes.hpp"
#include "quant/formats.hpp"
#include "tests/quant/representable.hpp"

namespace moeref {
namespace {

using namespace test;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The nearest code by search among the values: exact comparisons in f64, ties to the even code.
std::uint32_t search_code(Format format, EncodePolicy policy, float value) {
  const bool negative = std::signbit(value);
  if (std::isnan(value)) return expected_nan(format, policy, negative);
  if (std::isinf(value)) return expected_infinity(format, policy, negative);
  Representable list = representable(format);
  list.values.push_back(list.beyond);
  const auto magnitude = static_cast<double>(std::fabs(value));
  const auto above = std::lower_bound(list.values.begin(), list.values.end(), magnitude);
  const auto last = static_cast<std::uint32_t>(list.values.size()) - 1;
  auto code = static_cast<std::uint32_t>(above - list.values.begin());
  if (above == list.values.end()) {
    code = last;
  } else if (*above != magnitude) {
    const double down = magnitude - *(above - 1);
    const double up = *above - magnitude;
    const bool goes_down = down < up || (down == up && (code - 1) % 2 == 0);
    if (goes_down) --code;
  }
  return code == last ? expected_overflow(format, policy, negative)
                      : signed_code(format, policy, code, negative);
}

/// Every representable value, every midpoint, the f32 neighbours of both, of either sign, and the
/// ends of f32.
std::vector<float> interesting_values(Format format) {
  std::set<std::uint32_t> magnitudes{
      0,           1,           2,           0x003F'FFFF, 0x0040'0000, 0x0040'0001, 0x007F'FFFF,
      0x0080'0000, 0x7F7F'FFFF, 0x7F80'0000, 0x7F80'0001, 0x7FC0'0000, 0x7FFF'FFFF};
  const auto add = [&](double value) {
    const auto nearest = static_cast<float>(value);
    if (std::isinf(nearest)) return;
    const std::uint32_t bits = to_bits(nearest);
    magnitudes.insert({bits, bits + 1});
    if (bits != 0) magnitudes.insert(bits - 1);
  };
  const Representable list = representable(format);
  for (std::size_t code = 0; code < list.values.size(); ++code) {
    const double upper = code + 1 < list.values.size() ? list.values[code + 1] : list.beyond;
    add(list.values[code]);
    add((list.values[code] + upper) / 2);
  }
  add(list.beyond);
  std::vector<float> values;
  for (const std::uint32_t bits : magnitudes) {
    values.push_back(from_bits(bits));
    values.push_back(from_bits(bits | 0x8000'0000u));
  }
  return values;
}

TEST(Encode, KnowsExactlyThePairsOfItsTable) {
  for (const FormatInfo& entry : all_formats()) {
    const std::vector<EncodePolicy> known = known_policies(entry.format);
    for (int i = 0; i < kEncodePolicyCount; ++i) {
      const auto policy = static_cast<EncodePolicy>(i);
      const bool expected = std::find(known.begin(), known.end(), policy) != known.end();
      EXPECT_EQ(knows(policy, entry.format), expected) << entry.name << " " << policy_name(policy);
      if (expected) {
        EXPECT_NO_THROW(encode(entry.format, 1.0f, policy));
      } else {
        EXPECT_THROW(encoder(entry.format, policy), std::invalid_argument);
      }
    }
  }
  EXPECT_THROW(encode(Format::e8m0, 1.0f, EncodePolicy::torch), std::invalid_argument);
  EXPECT_THROW(encode(Format::f64, 1.0f, EncodePolicy::torch), std::invalid_argument);
  EXPECT_EQ(encode(Format::f32, from_bits(0xFF80'0001u), EncodePolicy::torch), 0xFF80'0001u);
}

TEST(Encode, GivesEveryCodeBack) {
  for (const Format format : kEncodedFormats) {
    const auto count = static_cast<std::uint32_t>(representable(format).values.size());
    for (const EncodePolicy policy : known_policies(format)) {
      const std::uint32_t sign = 1u << (info(format).bits - 1);
      for (std::uint32_t code = 0; code < count; ++code) {
        ASSERT_EQ(encode(format, decode(format, code), policy), code);
        if (format == Format::ue4m3 || (is_fnuz(format) && code == 0)) continue;
        ASSERT_EQ(encode(format, decode(format, code | sign), policy), code | sign);
      }
    }
  }
}

TEST(Encode, RoundsMidpointsToEvenAndTheirNeighboursToTheNearest) {
  for (const Format format : kEncodedFormats) {
    if (info(format).bits > 8) continue;  // these are searched below
    for (const float value : interesting_values(format)) {
      for (const EncodePolicy policy : known_policies(format)) {
        ASSERT_EQ(encode(format, value, policy), search_code(format, policy, value))
            << name(format) << " " << policy_name(policy) << " " << value;
      }
    }
  }
}

TEST(Encode, RoundsMidpointsOfSixteenBitFormatsToEven) {
  for (const Format format : {Format::bf16, Format::f16}) {
    const Representable list = representable(format);
    for (const EncodePolicy policy : known_policies(format)) {
      const Encoder& encode_one = encoder(format, policy);
      for (std::uint32_t code = 0; code + 1 < list.values.size(); ++code) {
        const auto middle = static_cast<float>((list.values[code] + list.values[code + 1]) / 2);
        const std::uint32_t bits = to_bits(middle);
        ASSERT_EQ(encode_one(middle), code + code % 2) << name(format);
        ASSERT_EQ(encode_one(from_bits(bits + 1)), code + 1);
        ASSERT_EQ(encode_one(from_bits(bits - 1)), code);
      }
    }
  }
}

TEST(Encode, HasTheOverflowThresholdsOfTheFormats) {
  const auto sat = [](Format format, float value) {
    return encode(format, value, EncodePolicy::ml_dtypes_nosat);
  };
  EXPECT_EQ(sat(Format::e4m3, 464.0f), 0x7Eu);
  EXPECT_EQ(sat(Format::e4m3, std::nextafter(464.0f, 500.0f)), 0x7Fu);
  EXPECT_EQ(sat(Format::e4m3fnuz, std::nextafter(248.0f, 0.0f)), 0x7Fu);
  EXPECT_EQ(sat(Format::e4m3fnuz, 248.0f), 0x80u);
  EXPECT_EQ(sat(Format::e5m2, std::nextafter(61440.0f, 0.0f)), 0x7Bu);
  EXPECT_EQ(sat(Format::e5m2, 61440.0f), 0x7Cu);
  EXPECT_EQ(sat(Format::e5m2fnuz, 61440.0f), 0x80u);
  EXPECT_EQ(sat(Format::e2m1, 5.0f), 0x6u);
  EXPECT_EQ(sat(Format::e2m1, std::nextafter(5.0f, 6.0f)), 0x7u);
  EXPECT_EQ(sat(Format::e2m1, 1e30f), 0x7u);
  EXPECT_EQ(sat(Format::bf16, from_bits(0x7F7F'7FFF)), 0x7F7Fu);
  EXPECT_EQ(sat(Format::bf16, from_bits(0x7F7F'8000)), 0x7F80u);
  EXPECT_EQ(sat(Format::f16, std::nextafter(65520.0f, 0.0f)), 0x7BFFu);
  EXPECT_EQ(sat(Format::f16, 65520.0f), 0x7C00u);
}

TEST(Encode, RoundsOnceWhereF16InBetweenWouldRoundTwice) {
  const float value = 1.125f + 0x1p-12f;
  const float via_f16 = decode(Format::f16, encode(Format::f16, value, EncodePolicy::eigen));
  EXPECT_EQ(decode(Format::e5m2, encode(Format::e5m2, value, EncodePolicy::torch)), 1.25f);
  EXPECT_EQ(decode(Format::e5m2, encode(Format::e5m2, via_f16, EncodePolicy::torch)), 1.0f);
}

struct SpecialCase {
  Format format;
  EncodePolicy policy;
  std::uint32_t overflow[2];
  std::uint32_t infinity[2];
  std::uint32_t nan[2];
  std::uint32_t minus_zero;
};

/// The tables of the sources, as published; literal.
TEST(Encode, FollowsEachStackInOverflowInfinityAndNan) {
  using enum EncodePolicy;
  const SpecialCase cases[] = {
      {Format::e4m3, ml_dtypes_nosat, {0x7F, 0xFF}, {0x7F, 0xFF}, {0x7F, 0xFF}, 0x80},
      {Format::e4m3, ml_dtypes_saturate, {0x7E, 0xFE}, {0x7F, 0xFF}, {0x7F, 0xFF}, 0x80},
      {Format::e4m3, cuda_satfinite, {0x7E, 0xFE}, {0x7E, 0xFE}, {0x7F, 0x7F}, 0x80},
      {Format::e4m3, cuda_nosat, {0x7F, 0xFF}, {0x7F, 0xFF}, {0x7F, 0x7F}, 0x80},
      {Format::e4m3, torch, {0x7F, 0xFF}, {0x7F, 0xFF}, {0x7F, 0xFF}, 0x80},
      {Format::e4m3, ocp_saturate, {0x7E, 0xFE}, {0x7E, 0xFE}, {0x7F, 0xFF}, 0x80},
      {Format::e4m3, ocp_nosat, {0x7F, 0xFF}, {0x7F, 0xFF}, {0x7F, 0xFF}, 0x80},
      {Format::e5m2, ml_dtypes_nosat, {0x7C, 0xFC}, {0x7C, 0xFC}, {0x7E, 0xFE}, 0x80},
      {Format::e5m2, ml_dtypes_saturate, {0x7B, 0xFB}, {0x7C, 0xFC}, {0x7E, 0xFE}, 0x80},
      {Format::e5m2, cuda_satfinite, {0x7B, 0xFB}, {0x7B, 0xFB}, {0x7F, 0x7F}, 0x80},
      {Format::e5m2, cuda_nosat, {0x7C, 0xFC}, {0x7C, 0xFC}, {0x7F, 0x7F}, 0x80},
      {Format::e5m2, torch, {0x7C, 0xFC}, {0x7C, 0xFC}, {0x7F, 0xFF}, 0x80},
      {Format::e5m2, ocp_saturate, {0x7B, 0xFB}, {0x7B, 0xFB}, {0x7E, 0xFE}, 0x80},
      {Format::e5m2, ocp_nosat, {0x7C, 0xFC}, {0x7C, 0xFC}, {0x7E, 0xFE}, 0x80},
      {Format::e4m3fnuz, ml_dtypes_nosat, {0x80, 0x80}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e4m3fnuz, ml_dtypes_saturate, {0x7F, 0xFF}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e4m3fnuz, torch, {0x80, 0x80}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e5m2fnuz, ml_dtypes_nosat, {0x80, 0x80}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e5m2fnuz, ml_dtypes_saturate, {0x7F, 0xFF}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e5m2fnuz, torch, {0x80, 0x80}, {0x80, 0x80}, {0x80, 0x80}, 0x00},
      {Format::e2m1, ml_dtypes_nosat, {0x7, 0xF}, {0x7, 0xF}, {0x8, 0x0}, 0x8},
      {Format::e2m1, ml_dtypes_saturate, {0x7, 0xF}, {0x7, 0xF}, {0x8, 0x0}, 0x8},
      {Format::e2m1, cuda_satfinite, {0x7, 0xF}, {0x7, 0xF}, {0x7, 0x7}, 0x8},
      {Format::e2m1, ocp_saturate, {0x7, 0xF}, {0x7, 0xF}, {0x7, 0x7}, 0x8},
      {Format::ue4m3, cuda_satfinite, {0x7E, 0x00}, {0x7E, 0x00}, {0x7F, 0x7F}, 0x00},
      {Format::ue4m3, torch, {0x7F, 0x7F}, {0x7F, 0x7F}, {0x7F, 0x7F}, 0x00},
      {Format::ue4m3, ml_dtypes_saturate, {0x7E, 0x00}, {0x7F, 0x7F}, {0x7F, 0x7F}, 0x00},
      {Format::bf16, cuda_nosat, {0x7F80, 0xFF80}, {0x7F80, 0xFF80}, {0x7FFF, 0x7FFF}, 0x8000},
      {Format::bf16, cuda_satfinite, {0x7F7F, 0xFF7F}, {0x7F7F, 0xFF7F}, {0x7FFF, 0x7FFF}, 0x8000},
      {Format::bf16, eigen, {0x7F80, 0xFF80}, {0x7F80, 0xFF80}, {0x7FC0, 0xFFC0}, 0x8000},
      {Format::f16, cuda_nosat, {0x7C00, 0xFC00}, {0x7C00, 0xFC00}, {0x7FFF, 0x7FFF}, 0x8000},
      {Format::f16, eigen, {0x7C00, 0xFC00}, {0x7C00, 0xFC00}, {0x7E00, 0xFE00}, 0x8000},
      {Format::f16, ml_dtypes_nosat, {0x7C00, 0xFC00}, {0x7C00, 0xFC00}, {0x7E00, 0xFE00}, 0x8000},
  };
  for (const SpecialCase& c : cases) {
    const std::string label = std::string(name(c.format)) + " " + policy_name(c.policy);
    for (const std::uint32_t sign : {0u, 1u}) {
      const float factor = sign != 0 ? -1.0f : 1.0f;
      const float largest = std::numeric_limits<float>::max();
      EXPECT_EQ(encode(c.format, factor * largest, c.policy), c.overflow[sign]) << label;
      EXPECT_EQ(encode(c.format, factor * kInfinity, c.policy), c.infinity[sign]) << label;
      for (const std::uint32_t nan : {0x7F80'0001u, 0x7FC0'0000u, 0x7FFF'FFFFu}) {
        EXPECT_EQ(encode(c.format, from_bits(nan | sign << 31), c.policy), c.nan[sign]) << label;
      }
    }
    EXPECT_EQ(encode(c.format, -0.0f, c.policy), c.minus_zero) << label;
    EXPECT_EQ(encode(c.format, -0x1p-149f, c.policy), c.minus_zero) << label;
  }
}

TEST(Encode, GivesNegativeScalesTheNearestCodeOrNan) {
  using enum EncodePolicy;
  for (const EncodePolicy policy : known_policies(Format::ue4m3)) {
    const std::uint32_t expected = is_saturating(policy) ? 0x00 : 0x7F;
    EXPECT_EQ(encode(Format::ue4m3, -1.0f, policy), expected) << policy_name(policy);
    EXPECT_EQ(encode(Format::ue4m3, -0x1p-9f, policy), expected);
    EXPECT_EQ(encode(Format::ue4m3, -0x1p-10f, policy), 0x00u);  // the tie that rounds to zero
    EXPECT_EQ(encode(Format::ue4m3, 1.0f, policy), 0x38u);
  }
}

TEST(EncodeE8M0, FollowsTheSearchAroundEveryPower) {
  for (const E8M0Case& rule : kE8M0Cases) {
    ASSERT_TRUE(knows_e8m0(rule.policy, rule.rounding));
    const std::uint32_t overflow = is_saturating(rule.policy) ? 0xFE : 0xFF;
    const bool negative_is_magnitude = !is_ml_dtypes(rule.policy);
    for (std::uint32_t code = 1; code <= 255; ++code) {
      const std::uint32_t first = first_e8m0_pattern(code, rule.rounding);
      const std::uint32_t at = code == 255 ? overflow : code;
      const auto encode_pattern = [&](std::uint32_t bits) -> std::uint32_t {
        return encode_e8m0(from_bits(bits), rule.rounding, rule.policy);
      };
      if (first < 0x7F80'0000u) {
        EXPECT_EQ(encode_pattern(first), at) << code;
        if (negative_is_magnitude) {
          EXPECT_EQ(encode_pattern(first | 0x8000'0000u), at);
        }
      }
      EXPECT_EQ(encode_pattern(first - 1), code - 1) << code;
    }
  }
}

TEST(EncodeE8M0, FollowsEachStackAtZeroNegativesInfinityAndNan) {
  struct Row {
    EncodePolicy policy;
    E8M0Rounding rounding;
    int zero, minus_zero, minus_one, largest, infinity, minus_infinity, tie;
  };
  using enum EncodePolicy;
  using enum E8M0Rounding;
  const Row rows[] = {
      {cuda_satfinite, toward_zero, 0x00, 0x00, 0x7F, 0xFE, 0xFE, 0xFE, 0x7F},
      {cuda_nosat, toward_zero, 0x00, 0x00, 0x7F, 0xFE, 0xFF, 0xFF, 0x7F},
      {cuda_satfinite, toward_positive, 0x00, 0x00, 0x7F, 0xFE, 0xFE, 0xFE, 0x80},
      {cuda_nosat, toward_positive, 0x00, 0x00, 0x7F, 0xFF, 0xFF, 0xFF, 0x80},
      {ml_dtypes_saturate, nearest_even, 0x00, 0x00, 0x00, 0xFE, 0xFF, 0xFF, 0x80},
      {ml_dtypes_nosat, nearest_even, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x80},
      {torch, nearest_even, 0x00, 0x00, 0x7F, 0xFF, 0xFF, 0xFF, 0x80},
  };
  for (const Row& row : rows) {
    const auto code = [&](float value) -> int {
      return encode_e8m0(value, row.rounding, row.policy);
    };
    EXPECT_EQ(code(0.0f), row.zero) << policy_name(row.policy);
    EXPECT_EQ(code(-0.0f), row.minus_zero) << policy_name(row.policy);
    EXPECT_EQ(code(-1.0f), row.minus_one) << policy_name(row.policy);
    EXPECT_EQ(code(std::numeric_limits<float>::max()), row.largest) << policy_name(row.policy);
    EXPECT_EQ(code(kInfinity), row.infinity) << policy_name(row.policy);
    EXPECT_EQ(code(-kInfinity), row.minus_infinity) << policy_name(row.policy);
    EXPECT_EQ(code(1.5f), row.tie) << policy_name(row.policy);
    EXPECT_EQ(code(from_bits(0x7F80'0001u)), 0xFF);
    EXPECT_EQ(code(from_bits(0xFFFF'FFFFu)), 0xFF);
    EXPECT_EQ(code(0x1p-127f), 0x00);
    for (int i = 0; i < 255; ++i)
      EXPECT_EQ(code(decode(Format::e8m0, static_cast<unsigned>(i))), i);
  }
  EXPECT_THROW(encode_e8m0(1.0f, nearest_even, cuda_nosat), std::invalid_argument);
  EXPECT_THROW(encode_e8m0(1.0f, toward_zero, torch), std::invalid_argument);
  EXPECT_THROW(encode_e8m0(1.0f, nearest_even, ocp_saturate), std::invalid_argument);
}

TEST(EncodeE5M2FromF16, KeepsNanPayloadAndIsTheGeneralEncoderElsewhere) {
  for (std::uint32_t bits = 0; bits < 0x1'0000; ++bits) {
    const auto f16 = static_cast<std::uint16_t>(bits);
    const float value = decode(Format::f16, bits);
    for (const bool saturate : {false, true}) {
      const EncodePolicy policy =
          saturate ? EncodePolicy::ml_dtypes_saturate : EncodePolicy::ml_dtypes_nosat;
      const std::uint32_t code = encode_e5m2_from_f16(f16, saturate);
      ASSERT_EQ(encode_bits(Format::f16, bits, Format::e5m2, policy), code);
      if (std::isnan(value)) {
        ASSERT_EQ(code, (bits >> 8) | 0x02u) << bits;
        ASSERT_TRUE(std::isnan(decode(Format::e5m2, code)));
      } else {
        ASSERT_EQ(code, encode(Format::e5m2, value, policy)) << bits;
      }
    }
  }
  EXPECT_EQ(encode_e5m2_from_f16(0x7D00, false), 0x7F);  // a signalling NaN is made quiet
  EXPECT_EQ(encode_e5m2_from_f16(0xFE00, true), 0xFE);
}

TEST(EncodeBits, DropsTheSignOfF16NansInTorchOnCudaOnly) {
  const auto torch_code = [](Format from, std::uint32_t code, Format to, TorchDevice device) {
    return encode_bits(from, code, to, EncodePolicy::torch, device);
  };
  for (const Format to : {Format::e4m3, Format::e5m2}) {
    EXPECT_EQ(torch_code(Format::f16, 0xFE00, to, TorchDevice::cpu), 0xFFu);
    EXPECT_EQ(torch_code(Format::f16, 0xFE00, to, TorchDevice::cuda), 0x7Fu);
    EXPECT_EQ(torch_code(Format::bf16, 0xFFC0, to, TorchDevice::cuda), 0xFFu);
    EXPECT_EQ(torch_code(Format::f16, 0xBC00, to, TorchDevice::cuda),
              torch_code(Format::f16, 0xBC00, to, TorchDevice::cpu));
  }
  EXPECT_EQ(torch_code(Format::f16, 0xFE00, Format::e4m3fnuz, TorchDevice::cuda), 0x80u);
  EXPECT_EQ(encode_bits(Format::f32, 0x3F80'0000, Format::bf16, EncodePolicy::eigen), 0x3F80u);
}

TEST(Code, IsTheFormatAsAType) {
  static_assert(E4M3::from_bits(0x7E).to_float() == 448.0f);
  static_assert(E4M3Fnuz::from_bits(0x7F).to_float() == 240.0f);
  static_assert(E5M2::from_bits(0x01).to_float() == 0x1p-16f);
  static_assert(E2M1::from_bits(0xF).to_float() == -6.0f);
  static_assert(E8M0::from_bits(0x00).to_float() == 0x1p-127f);
  static_assert(BF16::from_bits(0x0001).to_float() == 0x1p-133f);
  static_assert(FP16::from_bits(0x0001).to_float() == 0x1p-24f);
  static_assert(sizeof(E4M3) == 1 && sizeof(BF16) == 2);
  EXPECT_EQ(E4M3::round(500.0f, EncodePolicy::cuda_satfinite), E4M3::from_bits(0x7E));
  EXPECT_EQ(E8M0::round(1.25f, E8M0Rounding::toward_positive, EncodePolicy::cuda_satfinite).bits,
            0x80);
  EXPECT_EQ(&E2M1::table(), &decode_table(Format::e2m1));
}

}  // namespace
}  // namespace moeref
