// Casts of biases and scales on their way.

#include "layout/recode/float_cast.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <span>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::HasSubstr;

LayerTensors layer_of(Slot slot, DType dtype, std::span<const std::byte> bytes) {
  LayerTensors layer;
  const std::int64_t count = static_cast<std::int64_t>(bytes.size()) * 8 / info(dtype).bits;
  layer.stacks[static_cast<std::size_t>(slot)] =
      dense_stack({"tensor", dtype, {1, 1, count}, bytes}, GateOrder::none, info(dtype).bits);
  return layer;
}

TEST(CastFloats, WidensAndRestoresEveryCode) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<std::uint16_t> codes;
    for (int code = 0; code < 65536; ++code) codes.push_back(static_cast<std::uint16_t>(code));
    const auto bytes = std::as_bytes(std::span<const std::uint16_t>(codes));
    const LayerTensors layer = layer_of(Slot::w2_bias, dtype, bytes);
    const auto cast = recode::cast_floats(Slot::w2_bias, DType::f32).make(layer);
    std::vector<std::byte> wide(2 * bytes.size());
    cast->rewrite({}, bytes, wide);
    const Format format = dtype == DType::bf16 ? Format::bf16 : Format::f16;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      ASSERT_EQ(load<std::uint32_t>(wide.data() + 4 * i),
                std::bit_cast<std::uint32_t>(decode(format, codes[i])));
    }
    ASSERT_TRUE(cast->invertible());
    std::vector<std::byte> back(bytes.size());
    cast->restore({}, wide, back);
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin()));
  }
}

TEST(CastFloats, RoundsToNearestEvenWhereItNarrows) {
  const std::vector<float> numbers{1.0f, 1.00390625f, 1.01171875f, -3.0f};
  const auto bytes = std::as_bytes(std::span<const float>(numbers));
  const auto cast = recode::cast_floats(Slot::w13_bias, DType::bf16)
                        .make(layer_of(Slot::w13_bias, DType::f32, bytes));
  std::vector<std::byte> narrow(8);
  cast->rewrite({}, bytes, narrow);
  EXPECT_FALSE(cast->invertible());
  EXPECT_EQ(load<std::uint16_t>(narrow.data()), 0x3F80);
  EXPECT_EQ(load<std::uint16_t>(narrow.data() + 2), 0x3F80);
  EXPECT_EQ(load<std::uint16_t>(narrow.data() + 4), 0x3F82);
  EXPECT_EQ(load<std::uint16_t>(narrow.data() + 6), 0xC040);
}

TEST(CastFloats, RejectsCodesThatAreNoFloats) {
  const std::vector<std::byte> bytes(4);
  EXPECT_THAT(error_of([&] {
                recode::cast_floats(Slot::w2_bias, DType::f32)
                    .make(layer_of(Slot::w2_bias, DType::u8, bytes));
              }),
              HasSubstr("is U8; cast_to_f32 takes F32, BF16 or F16"));
}

TEST(ToE8M0, KeepsBytesAndRoundsNumbers) {
  const std::vector<std::byte> bytes{std::byte{0}, std::byte{127}, std::byte{255}};
  const auto keep =
      recode::to_e8m0(Slot::w2_scale).make(layer_of(Slot::w2_scale, DType::f8_e8m0, bytes));
  std::vector<std::byte> kept(3);
  keep->rewrite({}, bytes, kept);
  EXPECT_EQ(kept, bytes);
  EXPECT_TRUE(keep->invertible());
  const std::vector<float> numbers{1.0f, 0.25f, 1.5f, 1.49f};
  const auto raw = std::as_bytes(std::span<const float>(numbers));
  const auto round =
      recode::to_e8m0(Slot::w2_scale).make(layer_of(Slot::w2_scale, DType::f32, raw));
  std::vector<std::byte> codes(4);
  round->rewrite({}, raw, codes);
  EXPECT_EQ(codes, (std::vector<std::byte>{std::byte{127}, std::byte{125}, std::byte{128},
                                           std::byte{127}}));
  EXPECT_FALSE(round->invertible());
}

}  // namespace
}  // namespace moeref
