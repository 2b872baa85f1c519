#include "quant/formats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "tests/quant/representable.hpp"

namespace moeref {
namespace {

using namespace test;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Formats, ListsEveryFormatInOrder) {
  ASSERT_EQ(all_formats().size(), 11u);
  for (std::size_t i = 0; i < all_formats().size(); ++i) {
    const FormatInfo& entry = all_formats()[i];
    EXPECT_EQ(static_cast<std::size_t>(entry.format), i);
    EXPECT_EQ(parse_format(entry.name), entry.format);
    EXPECT_FALSE(entry.description.empty());
  }
  EXPECT_EQ(parse_format("e4m3fn"), Format::e4m3);
  EXPECT_EQ(parse_format("ue8m0"), Format::e8m0);
  EXPECT_EQ(parse_format("fp16"), Format::f16);
  EXPECT_EQ(parse_format("e4m4"), std::nullopt);
  EXPECT_EQ(parse_format(""), std::nullopt);
}

TEST(Formats, HaveTheRangesOfTheirStandards) {
  struct Range {
    Format format;
    int bits;
    int significand_bits;
    float max_finite;
    float min_normal;
    float min_subnormal;
  };
  const Range ranges[] = {
      {Format::e4m3, 8, 4, 448.0f, 0x1p-6f, 0x1p-9f},
      {Format::e4m3fnuz, 8, 4, 240.0f, 0x1p-7f, 0x1p-10f},
      {Format::e5m2, 8, 3, 57344.0f, 0x1p-14f, 0x1p-16f},
      {Format::e5m2fnuz, 8, 3, 57344.0f, 0x1p-15f, 0x1p-17f},
      {Format::e2m1, 4, 2, 6.0f, 1.0f, 0.5f},
      {Format::e8m0, 8, 1, 0x1p127f, 0x1p-127f, 0x1p-127f},
      {Format::ue4m3, 8, 4, 448.0f, 0x1p-6f, 0x1p-9f},
      {Format::bf16, 16, 8, 0x1.FEp127f, 0x1p-126f, 0x1p-133f},
      {Format::f16, 16, 11, 65504.0f, 0x1p-14f, 0x1p-24f},
      {Format::f32, 32, 24, 0x1.FFFFFEp127f, 0x1p-126f, 0x1p-149f},
      {Format::f64, 64, 53, kInfinity, 0.0f, 0.0f},
  };
  for (const Range& range : ranges) {
    const FormatInfo& entry = info(range.format);
    EXPECT_EQ(entry.bits, range.bits) << entry.name;
    EXPECT_EQ(entry.significand_bits, range.significand_bits) << entry.name;
    EXPECT_EQ(entry.max_finite, range.max_finite) << entry.name;
    EXPECT_EQ(entry.min_normal, range.min_normal) << entry.name;
    EXPECT_EQ(entry.min_subnormal, range.min_subnormal) << entry.name;
  }
}

TEST(Decode, GivesEveryFiniteCodeItsValue) {
  for (const Format format : kEncodedFormats) {
    const Representable list = representable(format);
    const std::uint32_t sign = 1u << (info(format).bits - 1);
    for (std::uint32_t code = 0; code < list.values.size(); ++code) {
      const auto value = static_cast<float>(list.values[code]);
      ASSERT_EQ(static_cast<double>(value), list.values[code]);
      EXPECT_EQ(to_bits(decode(format, code)), to_bits(value)) << name(format) << " " << code;
      if (is_fnuz(format) && code == 0) continue;  // 0x80 is NaN
      EXPECT_EQ(to_bits(decode(format, code | sign)), to_bits(-value)) << name(format) << code;
    }
  }
}

TEST(Decode, GivesTheCodesAboveTheLargestInfinityOrNan) {
  for (const std::uint32_t sign : {0x00u, 0x80u}) {
    const std::uint32_t f32_sign = sign << 24;
    for (const Format format : {Format::e4m3, Format::ue4m3}) {
      EXPECT_EQ(to_bits(decode(format, 0x7F | sign)), 0x7FC0'0000u | f32_sign);
    }
    EXPECT_EQ(to_bits(decode(Format::e5m2, 0x7C | sign)), 0x7F80'0000u | f32_sign);
    for (const std::uint32_t code : {0x7Du, 0x7Eu, 0x7Fu}) {
      EXPECT_EQ(to_bits(decode(Format::e5m2, code | sign)), 0x7FC0'0000u | f32_sign);
    }
    EXPECT_EQ(to_bits(decode(Format::f16, 0x7C00 | sign << 8)), 0x7F80'0000u | f32_sign);
    EXPECT_EQ(to_bits(decode(Format::bf16, 0x7F80 | sign << 8)), 0x7F80'0000u | f32_sign);
    EXPECT_EQ(to_bits(decode(Format::f16, 0x7C01 | sign << 8)), 0x7F80'2000u | f32_sign);
    EXPECT_EQ(to_bits(decode(Format::f16, 0x7FFF | sign << 8)), 0x7FFF'E000u | f32_sign);
    EXPECT_EQ(to_bits(decode(Format::bf16, 0x7FC1 | sign << 8)), 0x7FC1'0000u | f32_sign);
  }
  EXPECT_EQ(to_bits(decode(Format::e4m3fnuz, 0x80)), 0xFFC0'0000u);
  EXPECT_EQ(to_bits(decode(Format::e5m2fnuz, 0x80)), 0xFFC0'0000u);
}

TEST(Decode, GivesE8M0ThePowersOfTwo) {
  for (std::uint32_t code = 0; code < 255; ++code) {
    EXPECT_EQ(decode(Format::e8m0, code), std::ldexp(1.0f, static_cast<int>(code) - 127));
  }
  EXPECT_EQ(to_bits(decode(Format::e8m0, 0x00)), 0x0040'0000u);
  EXPECT_EQ(to_bits(decode(Format::e8m0, 0xFF)), 0x7FC0'0000u);
}

TEST(Decode, TakesF32AsItIsAndRefusesF64) {
  EXPECT_EQ(to_bits(decode(Format::f32, 0x7FA0'0001u)), 0x7FA0'0001u);
  EXPECT_EQ(decode(Format::f32, 0x3F80'0000u), 1.0f);
  EXPECT_THROW(decode(Format::f64, 0), std::invalid_argument);
}

TEST(DecodeTable, RepeatsE2M1AndRefusesWideFormats) {
  for (const Format format : {Format::e4m3, Format::e4m3fnuz, Format::e5m2, Format::e5m2fnuz,
                              Format::e2m1, Format::e8m0, Format::ue4m3}) {
    const std::uint32_t mask = (1u << info(format).bits) - 1;
    for (std::uint32_t code = 0; code < 256; ++code) {
      EXPECT_EQ(to_bits(decode_table(format)[code]), to_bits(decode(format, code & mask)));
      EXPECT_EQ(to_bits(decode_table(format)[code]), to_bits(decode(format, code)));
    }
  }
  for (const Format format : {Format::bf16, Format::f16, Format::f32, Format::f64}) {
    EXPECT_THROW(decode_table(format), std::invalid_argument);
  }
}

TEST(DecodeE8M0, DiffersBetweenStacksAtTheEndsOnly) {
  struct Ends {
    E8M0Decoder decoder;
    std::uint32_t first;
    std::uint32_t last;
  };
  for (const Ends& ends : {Ends{E8M0Decoder::ocp, 0x0040'0000, 0x7FC0'0000},
                           Ends{E8M0Decoder::shift23, 0x0000'0000, 0x7F80'0000},
                           Ends{E8M0Decoder::aiter, 0x0040'0000, 0x7F80'0001},
                           Ends{E8M0Decoder::exp2_f32, 0x0040'0000, 0x7F80'0000},
                           Ends{E8M0Decoder::ct_bf16, 0x0040'0000, 0x7F80'0000}}) {
    EXPECT_EQ(to_bits(decode_e8m0(0x00, ends.decoder)), ends.first);
    EXPECT_EQ(to_bits(decode_e8m0(0xFF, ends.decoder)), ends.last);
    for (int code = 1; code < 255; ++code) {
      EXPECT_EQ(decode_e8m0(static_cast<std::uint8_t>(code), ends.decoder),
                std::ldexp(1.0f, code - 127));
    }
  }
}

TEST(DecodeBits, WritesTheNanOfTheFlavour) {
  struct Case {
    Format from;
    std::uint32_t code;
    Format to;
    std::uint32_t ml_dtypes;
    std::uint32_t cuda;
  };
  const Case cases[] = {
      {Format::e4m3, 0xFF, Format::f32, 0xFFC0'0000, 0x7FFF'FFFF},
      {Format::e4m3, 0xFF, Format::bf16, 0xFFC0, 0x7FFF},
      {Format::e4m3, 0xFF, Format::f16, 0xFE00, 0x7FFF},
      {Format::e5m2, 0x7D, Format::f16, 0x7E00, 0x7FFF},
      {Format::e5m2, 0xFC, Format::f16, 0xFC00, 0xFC00},
      {Format::e4m3fnuz, 0x80, Format::bf16, 0xFFC0, 0x7FFF},
      {Format::e8m0, 0xFF, Format::bf16, 0x7FC0, 0x7FFF},
      {Format::e8m0, 0xFF, Format::f32, 0x7FC0'0000, 0x7FFF'0000},
      {Format::e8m0, 0xFF, Format::f16, 0x7E00, 0x7FFF},
      {Format::bf16, 0xFF81, Format::f32, 0xFF81'0000, 0xFF81'0000},
      {Format::f16, 0xFC01, Format::f32, 0xFF80'2000, 0x7FFF'FFFF},
      {Format::f16, 0xFC01, Format::f16, 0xFC01, 0xFC01},
      {Format::f16, 0xFC01, Format::bf16, 0xFFC0, 0x7FFF},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(decode_bits(c.from, c.code, c.to, DecodeFlavour::ml_dtypes), c.ml_dtypes);
    EXPECT_EQ(decode_bits(c.from, c.code, c.to, DecodeFlavour::cuda), c.cuda);
  }
  EXPECT_THROW(decode_bits(Format::e4m3, 0, Format::e5m2, DecodeFlavour::cuda),
               std::invalid_argument);
}

TEST(DecodeBits, RoundsE8M0ToF16OnceToNearestEven) {
  const auto f16_bits = [](std::uint32_t code) {
    return decode_bits(Format::e8m0, code, Format::f16, DecodeFlavour::ml_dtypes);
  };
  EXPECT_EQ(f16_bits(127 - 26), 0x0000u);
  EXPECT_EQ(f16_bits(127 - 25), 0x0000u);  // half the smallest subnormal: a tie
  EXPECT_EQ(f16_bits(127 - 24), 0x0001u);
  EXPECT_EQ(f16_bits(127 + 15), 0x7800u);
  EXPECT_EQ(f16_bits(127 + 16), 0x7C00u);
}

}  // namespace
}  // namespace moeref
