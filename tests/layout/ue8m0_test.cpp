// Scales that are powers of two: rounding, storing, requantizing.
#include "layout/recode/ue8m0.hpp"
#include "layout/recode/requantize_ue8m0.hpp"
#include "quant/ue8m0.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "layout/recode/upcast.hpp"
#include "quant/cast.hpp"
#include "quant/formats.hpp"
#include "tests/layout/layout_support.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using testing::Bytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(CeilToUe8m0, RoundsUpToAPowerOfTwo) {
  EXPECT_EQ(ceil_to_ue8m0(1.0f), 1.0f);
  EXPECT_EQ(ceil_to_ue8m0(std::nextafter(1.0f, 2.0f)), 2.0f);
  EXPECT_EQ(ceil_to_ue8m0(-3.0f), 4.0f);
  EXPECT_EQ(ceil_to_ue8m0(0x1.8p-100f), 0x1p-99f);
}

TEST(CeilToUe8m0, ClampsToTheExponentsOfNumbers) {
  EXPECT_EQ(ceil_to_ue8m0(0.0f), 0x1p-126f);
  EXPECT_EQ(ceil_to_ue8m0(0x1p-149f), 0x1p-126f);
  EXPECT_EQ(ceil_to_ue8m0(std::numeric_limits<float>::max()), 0x1p127f);
  EXPECT_EQ(ceil_to_ue8m0(kInfinity), 0x1p127f);
  EXPECT_EQ(ceil_to_ue8m0(std::numeric_limits<float>::quiet_NaN()), 0x1p127f);
}

TEST(ExponentByte, DropsSignAndMantissa) {
  EXPECT_EQ(exponent_byte(-1.75f), 127);
  EXPECT_EQ(exponent_byte(0x1p-127f), 0);
  EXPECT_EQ(exponent_byte(kInfinity), 255);
  EXPECT_TRUE(is_exponent(0.25f));
  EXPECT_FALSE(is_exponent(-0.25f));
  EXPECT_FALSE(is_exponent(0.75f));
}

/// A block-scaled FP8 layer of one projection in memory, as layouts see it.
struct BlockLayer {
  std::int64_t experts, half_rows, cols;
  int halves;
  Bytes codes;
  std::vector<float> scales;
  LayerTensors layer;

  BlockLayer(std::int64_t e, int h, std::int64_t rows, std::int64_t k)
      : experts(e),
        half_rows(rows),
        cols(k),
        halves(h),
        codes(testing::random_bytes(e * h * rows * k, 5)) {
    for (std::byte& code : codes) {
      if ((code & std::byte{0x7F}) == std::byte{0x7F}) code ^= std::byte{1};  // NaN
    }
    std::mt19937 random(7);
    scales.resize(static_cast<std::size_t>(e * h * blocks(rows) * blocks(k)));
    for (float& scale : scales) {
      scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000.0f,
                         static_cast<int>(random() % 20) - 16);
    }
    const GateOrder order = h == 2 ? GateOrder::gate_up : GateOrder::none;
    TensorStack weight = dense_stack({"w13", DType::f8_e4m3, {e, h * rows, k}, codes}, order, 8);
    TensorStack scale = dense_stack({"w13_scale",
                                     DType::f32,
                                     {e, h * blocks(rows), blocks(k)},
                                     std::as_bytes(std::span(scales))},
                                    order, 32);
    scale.block_rows = scale.block_cols = 128;
    layer.stacks[static_cast<std::size_t>(Slot::w13)] = weight;
    layer.stacks[static_cast<std::size_t>(Slot::w13_scale)] = scale;
  }

  static std::int64_t blocks(std::int64_t size) { return (size + 127) / 128; }

  std::size_t block_of(std::int64_t e, std::int64_t half, std::int64_t row,
                       std::int64_t col) const {
    return static_cast<std::size_t>(
        ((e * halves + half) * blocks(half_rows) + row / 128) * blocks(cols) + col / 128);
  }
  /// bf16(float(q) * s).
  float dequantized(std::size_t element, std::size_t block) const {
    const float value = decode(Format::e4m3, std::to_integer<std::uint32_t>(codes[element]));
    return cast<Format::bf16>(value * scales[block]);
  }
};

/// The requantization with plain loops: new codes and exponent bytes.
std::pair<Bytes, Bytes> requantize_slowly(const BlockLayer& in) {
  std::vector<float> amax(in.scales.size(), 1e-4f);
  const auto each = [&](const auto& function) {
    for (std::int64_t e = 0; e < in.experts; ++e) {
      for (std::int64_t half = 0; half < in.halves; ++half) {
        for (std::int64_t row = 0; row < in.half_rows; ++row) {
          for (std::int64_t col = 0; col < in.cols; ++col) {
            const auto element = static_cast<std::size_t>(
                ((e * in.halves + half) * in.half_rows + row) * in.cols + col);
            function(element, in.block_of(e, half, row, col));
          }
        }
      }
    }
  };
  each([&](std::size_t element, std::size_t block) {
    amax[block] = std::max(amax[block], std::fabs(in.dequantized(element, block)));
  });
  Bytes exponents;
  for (const float largest : amax) {
    exponents.push_back(static_cast<std::byte>(exponent_byte(ceil_to_ue8m0(largest / 448.0f))));
  }
  Bytes codes(in.codes.size());
  each([&](std::size_t element, std::size_t block) {
    const float scale = ceil_to_ue8m0(amax[block] / 448.0f);
    codes[element] = static_cast<std::byte>(
        encode(Format::e4m3, in.dequantized(element, block) * (1.0f / scale), EncodePolicy::torch));
  });
  return {codes, exponents};
}

TEST(RequantizeUe8m0, MatchesPlainLoopsAlsoInRaggedBlocks) {
  for (const auto& [halves, rows, cols] :
       {std::tuple{2, 256, 384}, std::tuple{1, 200, 300}, std::tuple{2, 130, 128}}) {
    const BlockLayer in(2, halves, rows, cols);
    const auto [codes, exponents] = requantize_slowly(in);
    const Plan weight =
        make_plan("w13", in.layer.at(Slot::w13),
                  std::vector<Step>{recode::requantize_ue8m0_codes(Slot::w13)}, &in.layer);
    EXPECT_EQ(testing::apply_plan(weight, in.layer.at(Slot::w13)), codes);
    const Plan scale =
        make_plan("w13_scale", in.layer.at(Slot::w13_scale),
                  std::vector<Step>{recode::requantize_ue8m0_scales(Slot::w13)}, &in.layer);
    EXPECT_EQ(testing::apply_plan(scale, in.layer.at(Slot::w13_scale)), exponents);
  }
}

TEST(RequantizeUe8m0, DoesNotDependOnHowARowIsCut) {
  const BlockLayer in(1, 2, 128, 300);
  const auto recoder = recode::requantize_ue8m0_codes(Slot::w13).make(in.layer);
  const std::int64_t row = 200;
  const auto begin = static_cast<std::size_t>(row) * 300;
  const std::span<const std::byte> codes(in.codes.data() + begin, 300);
  Bytes whole(300);
  recoder->rewrite({0, row, 0}, codes, whole);
  Bytes pieces(300);
  for (std::size_t at = 0; at < 300; at += 7) {
    const std::size_t count = std::min<std::size_t>(7, 300 - at);
    recoder->rewrite({0, row, static_cast<std::int64_t>(at)}, codes.subspan(at, count),
                     std::span(pieces).subspan(at, count));
  }
  EXPECT_EQ(whole, pieces);
}

TEST(RequantizeUe8m0, PutsANanBlockToTheLargestScale) {
  BlockLayer in(1, 1, 128, 256);
  in.codes[5] = std::byte{0x7F};
  const auto scales = recode::requantize_ue8m0_scales(Slot::w13).make(in.layer);
  Bytes bytes(2);
  scales->rewrite({0, 0, 0}, std::as_bytes(std::span(in.scales)).first(8), bytes);
  EXPECT_EQ(bytes[0], std::byte{254});
  EXPECT_LT(bytes[1], std::byte{254});
}

TEST(RequantizeUe8m0, RejectsBlocksOfAnotherSize) {
  BlockLayer in(1, 1, 128, 128);
  in.layer.stacks[static_cast<std::size_t>(Slot::w13_scale)]->block_cols = 64;
  EXPECT_THAT(error_of([&] { recode::requantize_ue8m0_codes(Slot::w13).make(in.layer); }),
              HasSubstr("128 x 128 are needed"));
}

LayerTensors scale_layer(DType dtype, std::span<const std::byte> bytes, std::int64_t cols) {
  LayerTensors layer;
  layer.stacks[static_cast<std::size_t>(Slot::w2_scale)] =
      dense_stack({"w2_scale", dtype, {1, 1, cols}, bytes}, GateOrder::none, info(dtype).bits);
  return layer;
}

Bytes rewrite(const Recode& recode, const LayerTensors& layer) {
  const TensorStack& stack = layer.at(Slot::w2_scale);
  Bytes in(static_cast<std::size_t>(stack.cols * stack.element_bits / 8));
  stack.read(0, 0, 0, stack.cols, in.data());
  const auto recoder = recode.make(layer);
  Bytes out(static_cast<std::size_t>(stack.cols * recoder->out_bits() / 8));
  recoder->rewrite({0, 0, 0}, in, out);
  Bytes back(in.size());
  EXPECT_TRUE(recoder->invertible());
  recoder->restore({0, 0, 0}, out, back);
  EXPECT_EQ(back, in);
  return out;
}

TEST(PowerOfTwoScales, StoreExponentsAndComeBack) {
  const std::array<float, 4> floats{1.0f, 0x1p-126f, 0.0f, 0x1p127f};
  const LayerTensors layer = scale_layer(DType::f32, std::as_bytes(std::span(floats)), 4);
  EXPECT_THAT(rewrite(recode::power_of_two_scales(Slot::w2_scale), layer),
              ElementsAre(std::byte{127}, std::byte{1}, std::byte{0}, std::byte{254}));
  const Bytes bytes = testing::random_bytes(9, 3);
  EXPECT_EQ(
      rewrite(recode::power_of_two_scales(Slot::w2_scale), scale_layer(DType::f8_e8m0, bytes, 9)),
      bytes);
}

TEST(PowerOfTwoScales, RejectWhatWouldLoseBits) {
  const std::array<float, 3> floats{1.0f, 1.5f, 2.0f};
  const LayerTensors layer = scale_layer(DType::f32, std::as_bytes(std::span(floats)), 3);
  EXPECT_THAT(error_of([&] { recode::power_of_two_scales(Slot::w2_scale).make(layer); }),
              HasSubstr("scale [0, 1] is 3FC00000"));
}

TEST(ScalesToF32, WidenEveryByteAndComeBack) {
  Bytes bytes(256);
  for (std::size_t i = 0; i < 256; ++i) bytes[i] = static_cast<std::byte>(i);
  const LayerTensors layer = scale_layer(DType::f8_e8m0, bytes, 256);
  const std::vector<float> made =
      testing::floats(rewrite(recode::scales_to_f32(Slot::w2_scale), layer));
  EXPECT_EQ(made[0], 0x1p-127f);
  EXPECT_EQ(made[127], 1.0f);
  EXPECT_EQ(made[254], 0x1p127f);
  EXPECT_TRUE(std::isnan(made[255]));
}

TEST(ScalesToF32, RejectAnotherDtypeAndAnotherBlock) {
  const Bytes bytes(8);
  EXPECT_THAT(error_of([&] {
                recode::scales_to_f32(Slot::w2_scale).make(scale_layer(DType::f8_e4m3, bytes, 8));
              }),
              HasSubstr("F8_E4M3"));
  EXPECT_THAT(error_of([&] {
                recode::scales_to_f32(Slot::w2_scale, 128).make(scale_layer(DType::f32, bytes, 2));
              }),
              HasSubstr("128 x 128 are needed"));
}

TEST(UpcastMxfp4, HoldsTheEndsOfTheScaleRange) {
  const Bytes codes(64, std::byte{0xA2});  // 1, -1
  const Bytes scales{std::byte{0}, std::byte{1}, std::byte{254}, std::byte{255}};
  LayerTensors layer;
  layer.stacks[static_cast<std::size_t>(Slot::w2)] =
      dense_stack({"w2", DType::u8, {1, 1, 64}, codes}, GateOrder::none, 4);
  auto& scale = layer.stacks[static_cast<std::size_t>(Slot::w2_scale)];
  scale = dense_stack({"w2_scale", DType::u8, {1, 1, 4}, scales}, GateOrder::none, 8);
  scale->block_cols = 32;
  const auto recoder = recode::upcast_mxfp4(Slot::w2).make(layer);
  Bytes out(256);
  recoder->rewrite({0, 0, 0}, codes, out);
  const auto value = [&out](std::size_t i) {
    std::uint16_t code = 0;
    std::memcpy(&code, out.data() + 2 * i, 2);
    return decode(Format::bf16, code);
  };
  EXPECT_EQ(value(0), 0.0f);
  EXPECT_EQ(value(33), -0x1p-126f);
  EXPECT_EQ(value(64), 0x1p127f);
  EXPECT_TRUE(std::isnan(value(96)));
}

}  // namespace
}  // namespace moeref
