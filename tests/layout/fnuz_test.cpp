#include "layout/recode/fnuz.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>

#include "layout/recode/int4.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

std::shared_ptr<const Recoder> recoder(const Recode& step) { return step.make(LayerTensors{}); }

std::vector<std::byte> rewritten(const Recode& step, const std::vector<std::byte>& in) {
  const auto made = recoder(step);
  std::vector<std::byte> out(in.size() * static_cast<std::size_t>(made->out_bits()) /
                             static_cast<std::size_t>(made->in_bits()));
  made->rewrite({}, in, out);
  return out;
}

std::vector<std::byte> restored(const Recode& step, const std::vector<std::byte>& in) {
  const auto made = recoder(step);
  std::vector<std::byte> out(in.size() * static_cast<std::size_t>(made->in_bits()) /
                             static_cast<std::size_t>(made->out_bits()));
  made->restore({}, in, out);
  return out;
}

std::vector<std::byte> all_bytes() {
  std::vector<std::byte> bytes(256);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

TEST(E4M3FnToFnuz, KeepsEveryFiniteValueUnderTheDoubledScale) {
  const float scale = 0.0123f;
  const std::vector<std::byte> codes = rewritten(recode::e4m3fn_to_fnuz(), all_bytes());
  for (std::uint32_t code = 0; code < 256; ++code) {
    const float before = decode(Format::e4m3, code) * scale;
    const float after = decode(Format::e4m3fnuz, std::to_integer<std::uint32_t>(codes[code])) *
                        recode::doubled_scale(scale);
    if (std::isnan(before)) continue;
    EXPECT_EQ(after, before) << code;
  }
}

TEST(E4M3FnToFnuz, TurnsNegativeZeroIntoZeroAndNanInto240) {
  const std::vector<std::byte> codes = rewritten(recode::e4m3fn_to_fnuz(), all_bytes());
  EXPECT_EQ(codes[0x80], std::byte{0});
  EXPECT_EQ(codes[0x7F], std::byte{0x7F});
  EXPECT_EQ(codes[0xFF], std::byte{0xFF});
  EXPECT_EQ(decode(Format::e4m3fnuz, 0x7F), 240.0f);
  EXPECT_FALSE(recoder(recode::e4m3fn_to_fnuz())->invertible());
}

TEST(DoubleScales, DoublesSubnormalsExactlyAndOverflowsToInfinity) {
  EXPECT_EQ(recode::doubled_scale(0x1p-149f), 0x1p-148f);
  EXPECT_EQ(recode::doubled_scale(0x1.fffffcp-127f), 0x1.fffffcp-126f);
  EXPECT_EQ(recode::doubled_scale(FLT_MAX / 2), FLT_MAX);
  EXPECT_TRUE(std::isinf(recode::doubled_scale(0x1p127f)));
  EXPECT_TRUE(std::signbit(recode::doubled_scale(-0.0f)));
}

TEST(DoubleScales, MakesNanQuietAndKeepsItsPayload) {
  const float signaling = std::bit_cast<float>(0xFF80'1234u);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(recode::doubled_scale(signaling)), 0xFFC0'1234u);
}

TEST(DoubleScales, AreRestoredBitForBit) {
  std::vector<std::byte> bytes;
  for (const float scale : {0x1p-149f, 0x1.234p-130f, -0.0f, 1.0f, 0x1.8p126f, -3.5f}) {
    const auto bits = std::bit_cast<std::array<std::byte, 4>>(scale);
    bytes.insert(bytes.end(), bits.begin(), bits.end());
  }
  EXPECT_TRUE(recoder(recode::double_scales())->invertible());
  EXPECT_EQ(restored(recode::double_scales(), rewritten(recode::double_scales(), bytes)), bytes);
}

TEST(Int8ToInt4, PacksLowNibblesAndRestoresTheSign) {
  const std::vector<std::byte> values{std::byte{0x07}, std::byte{0xF8}, std::byte{0xFF},
                                      std::byte{0x00}};
  const std::vector<std::byte> codes = rewritten(recode::int8_to_int4(), values);
  EXPECT_EQ(codes, (std::vector<std::byte>{std::byte{0x87}, std::byte{0x0F}}));
  EXPECT_EQ(restored(recode::int8_to_int4(), codes), values);
}

TEST(Int8ToInt4, DropsTheUpperBitsOfOtherValues) {
  const std::vector<std::byte> codes =
      rewritten(recode::int8_to_int4(), {std::byte{0x19}, std::byte{0x60}});
  EXPECT_EQ(codes, std::vector<std::byte>{std::byte{0x09}});
}

}  // namespace
}  // namespace moeref
