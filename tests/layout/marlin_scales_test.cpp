#include "layout/recode/marlin_scales.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "layout/recode/marlin_decoders.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/error_of.hpp"

namespace moeref::recode {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::byte e4m3(float value) {
  return static_cast<std::byte>(encode(Format::e4m3, value, EncodePolicy::ocp_saturate));
}

std::vector<std::byte> bytes_of(const std::vector<int>& values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

/// A layer that has scales of w13 only: one expert, one row each.
struct Scales {
  std::vector<std::byte> bytes;
  LayerTensors layer;

  Scales(std::vector<std::byte> content, DType dtype) : bytes(std::move(content)) {
    TensorStack stack;
    stack.name = "w13_scale";
    stack.dtype = dtype;
    stack.element_bits = info(dtype).bits;
    stack.experts = 1;
    stack.half_rows = static_cast<std::int64_t>(bytes.size()) * 8 / stack.element_bits;
    stack.cols = 1;
    stack.planes = {{bytes.data(), 0, 1, 1}};
    layer.stacks[static_cast<std::size_t>(Slot::w13_scale)] = stack;
  }
  Scales(const Scales&) = delete;
  Scales& operator=(const Scales&) = delete;
  const TensorStack& stack() const { return layer.at(Slot::w13_scale); }
};

Scales e4m3_scales(const std::vector<float>& values) {
  std::vector<std::byte> codes;
  for (const float value : values) codes.push_back(e4m3(value));
  return Scales(codes, DType::f8_e4m3);
}

template <typename T>
Scales number_scales(const std::vector<T>& values, DType dtype) {
  const auto raw = std::as_bytes(std::span(values));
  return Scales({raw.begin(), raw.end()}, dtype);
}

std::vector<std::byte> recoded(const Scales& scales, const Recode& recode) {
  const auto recoder = recode.make(scales.layer);
  std::vector<std::byte> out(
      static_cast<std::size_t>(scales.stack().half_rows * recoder->out_bits() / 8));
  recoder->rewrite({}, scales.bytes, out);
  return out;
}

std::vector<float> decoded(const Scales& scales, const Recode& recode,
                           const MarlinDecoder& decode_bytes) {
  return decode_bytes(recoded(scales, recode));
}

std::string message_of(const Scales& scales, const Recode& recode) {
  return error_of([&] { recode.make(scales.layer); });
}

/// Bits 7 .. 14 of the FP16 number, without the library's encoder: exponent and three bits.
std::byte upper_fp16_byte(double value) {
  if (value <= 0.0) return std::byte{0};
  if (value >= 65520.0) return std::byte{0xF8};
  const int exponent = std::max(std::ilogb(value), -14);
  const auto significand = static_cast<int>(std::ldexp(value, 3 - exponent));  // truncated
  const int field = significand >= 8 ? exponent + 15 : 0;
  return static_cast<std::byte>(field << 3 | (significand & 7));
}

TEST(MarlinS0E5M3, TakesTheUpperByteOfScaleTimes128TimesTheFactor) {
  for (const float factor : {1.0f, 2.0f, 8.0f, 128.0f}) {
    for (int code = 0; code < 0x7F; ++code) {
      const double scale = decode(Format::e4m3, static_cast<std::uint32_t>(code));
      EXPECT_EQ(s0e5m3_code(static_cast<std::byte>(code), factor, MarlinScales::vllm),
                upper_fp16_byte(scale * static_cast<double>(factor) * 128.0))
          << code << " factor " << factor;
    }
  }
}

TEST(MarlinS0E5M3, DropsTheSignOrFlushesIt) {
  const std::byte minus_one = e4m3(-1.0f);
  EXPECT_EQ(s0e5m3_code(minus_one, 1.0f, MarlinScales::vllm),
            s0e5m3_code(e4m3(1.0f), 1.0f, MarlinScales::vllm));
  EXPECT_EQ(s0e5m3_code(minus_one, 1.0f, MarlinScales::sglang), std::byte{0});
}

TEST(MarlinS0E5M3, FlushesProductsBelow2InSGLangModeOnly) {
  const std::byte below = e4m3(0x1.cp-7f);
  EXPECT_EQ(s0e5m3_code(below, 1.0f, MarlinScales::sglang), std::byte{0});
  EXPECT_EQ(s0e5m3_code(e4m3(0x1p-6f), 1.0f, MarlinScales::sglang), std::byte{0x80});
  EXPECT_EQ(s0e5m3_code(below, 1.0f, MarlinScales::vllm), std::byte{0x7E});
}

TEST(MarlinS0E5M3, KeepsANaN) {
  for (const auto mode : {MarlinScales::vllm, MarlinScales::sglang}) {
    EXPECT_EQ(s0e5m3_code(std::byte{0x7F}, 4.0f, mode), std::byte{0xFC});
  }
}

TEST(MarlinScaleFactor, LiftsTheSmallestScaleInVllmMode) {
  const auto factor = [](const std::vector<float>& values) {
    return marlin_scale_factor(e4m3_scales(values).stack(), MarlinScales::vllm, DType::bf16);
  };
  EXPECT_EQ(factor({0.0f, 0x1p-6f, 448.0f}), 1.0f);
  EXPECT_EQ(factor({0x1.cp-7f, 1.0f}), 2.0f);
  EXPECT_EQ(factor({0x1p-7f, 1.0f}), 2.0f);
  EXPECT_EQ(factor({0x1.8p-8f, 1.0f}), 4.0f);
  EXPECT_EQ(factor({0x1p-9f}), 8.0f);
  EXPECT_EQ(factor({0.0f, -1.0f}), 1.0f);
}

TEST(MarlinScaleFactor, LiftsTheLargestScaleInSGLangMode) {
  const auto factor = [](const std::vector<float>& values) {
    return marlin_scale_factor(e4m3_scales(values).stack(), MarlinScales::sglang, DType::bf16);
  };
  EXPECT_EQ(factor({448.0f, 0x1p-9f}), 1.0f);
  EXPECT_EQ(factor({240.0f}), 1.0f);
  EXPECT_EQ(factor({224.0f}), 2.0f);
  EXPECT_EQ(factor({1.0f}), 256.0f);
  EXPECT_EQ(factor({0x1p-9f}), 131072.0f);
  EXPECT_EQ(factor({0.0f}), 1.0f);
}

TEST(MarlinScaleFactor, Is1ForF16AndForV1) {
  const Scales scales = e4m3_scales({0x1p-9f});
  EXPECT_EQ(marlin_scale_factor(scales.stack(), MarlinScales::vllm, DType::f16), 1.0f);
  EXPECT_EQ(marlin_scale_factor(scales.stack(), MarlinScales::sglang, DType::f16), 1.0f);
  EXPECT_EQ(marlin_scale_factor(scales.stack(), MarlinScales::v1, DType::bf16), 1.0f);
}

TEST(MarlinS0E5M3, MeansTheScaleTimes128TimesTheFactorToTheBf16Kernel) {
  const Scales scales = e4m3_scales({0.0f, 0x1.8p-8f, 0.4375f, 20.0f});
  const auto values =
      decoded(scales, marlin_s0e5m3(Slot::w13_scale, MarlinScales::vllm, DType::bf16),
              decode_s0e5m3(DType::bf16));
  const float unit = 128.0f * 4.0f;
  EXPECT_EQ(values, (std::vector<float>{0.0f, 0x1.8p-8f * unit, 0.4375f * unit, 20.0f * unit}));
}

TEST(MarlinS0E5M3, OverflowsWhereVllmLiftsAWideRange) {
  const Scales scales = e4m3_scales({0x1p-9f, 448.0f});
  const Recode recode = marlin_s0e5m3(Slot::w13_scale, MarlinScales::vllm, DType::bf16);
  EXPECT_EQ(recoded(scales, recode), bytes_of({0x80, 0xF8}));
  EXPECT_EQ(decoded(scales, recode, decode_s0e5m3(DType::bf16)),
            (std::vector<float>{2.0f, 65536.0f}));
  EXPECT_EQ(decode_s0e5m3(DType::f16)(bytes_of({0xF8})).front(), kInfinity);
}

TEST(MarlinS0E5M3, DecodesSmallBytesInF16ButNotInBf16) {
  EXPECT_EQ(decode_s0e5m3(DType::f16)(bytes_of({0x7F, 0x40, 0x01})),
            (std::vector<float>{1.875f, 0x1p-7f, 0x1p-17f}));
  EXPECT_EQ(decode_s0e5m3(DType::bf16)(bytes_of({0x7F, 0x40, 0x01})),
            (std::vector<float>{0.0f, 0.0f, 0.0f}));
}

TEST(MarlinS0E5M3, IsUndoneUnlessCodesCollapse) {
  const Recode vllm = marlin_s0e5m3(Slot::w13_scale, MarlinScales::vllm, DType::bf16);
  const Scales narrow = e4m3_scales({0.0f, 0x1.8p-7f, 2.25f, 3.0f});
  const auto recoder = vllm.make(narrow.layer);
  ASSERT_TRUE(recoder->invertible());
  std::vector<std::byte> restored(narrow.bytes.size());
  recoder->restore({}, recoded(narrow, vllm), restored);
  EXPECT_EQ(restored, narrow.bytes);

  EXPECT_FALSE(vllm.make(e4m3_scales({0x1p-9f, 416.0f, 448.0f}).layer)->invertible());
  const Recode sglang = marlin_s0e5m3(Slot::w13_scale, MarlinScales::sglang, DType::bf16);
  EXPECT_FALSE(sglang.make(e4m3_scales({0x1p-9f, 0x1p-8f, 448.0f}).layer)->invertible());
}

TEST(MarlinS0E5M3, TakesAFactorWithoutALayer) {
  const Recode by_two = marlin_s0e5m3(2);
  EXPECT_FALSE(by_two.needs_layer);
  const auto recoder = by_two.make({});
  std::vector<std::byte> out(1);
  recoder->rewrite({}, std::vector<std::byte>{e4m3(1.0f)}, out);
  EXPECT_EQ(decode_s0e5m3(DType::bf16)(out).front(), 256.0f);
  EXPECT_FALSE(recoder->invertible()) << "256 and more leave FP16";
  EXPECT_TRUE(marlin_s0e5m3(1).make({})->invertible());
  EXPECT_THROW(marlin_s0e5m3(3), Error);
}

TEST(MarlinS0E5M3, RefusesScalesThatAreNoBytes) {
  const Scales scales = number_scales<float>({1.0f}, DType::f32);
  const std::string message =
      message_of(scales, marlin_s0e5m3(Slot::w13_scale, MarlinScales::vllm, DType::bf16));
  EXPECT_NE(message.find("w13_scale: is F32"), std::string::npos) << message;
}

TEST(MarlinGlobalScale, GetsTheBiasOfTheParameterType) {
  EXPECT_EQ(marlin_global_scale(3.0f, 8.0f, DType::bf16), 3.0f * 0x1p116f);
  EXPECT_EQ(marlin_global_scale(3.0f, 1.0f, DType::f16), 384.0f);
  EXPECT_EQ(marlin_global_scale(0x1p9f, 1.0f, DType::bf16), kInfinity);
}

TEST(MarlinE8M0, KeepsEveryByteThroughBf16) {
  std::vector<int> all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(byte);
  const Scales scales(bytes_of(all), DType::u8);
  const Recode recode = marlin_e8m0(Slot::w13_scale, DType::bf16, 0);
  EXPECT_EQ(recoded(scales, recode), scales.bytes);
  EXPECT_TRUE(recode.make(scales.layer)->invertible());
}

TEST(MarlinE8M0, LosesTheEndsThroughF16) {
  const Scales scales(bytes_of({0, 102, 103, 142, 143, 254}), DType::f8_e8m0);
  const Recode recode = marlin_e8m0(Slot::w13_scale, DType::f16, 0);
  EXPECT_EQ(recoded(scales, recode), bytes_of({0, 0, 103, 142, 255, 255}));
  EXPECT_FALSE(recode.make(scales.layer)->invertible());
}

TEST(MarlinE8M0, Adds6BesideFp8ActivationsUpTo249) {
  const Recode recode = marlin_e8m0(Slot::w13_scale, DType::bf16, 6);
  const Scales fits(bytes_of({0, 120, 249}), DType::u8);
  EXPECT_EQ(recoded(fits, recode), bytes_of({6, 126, 255}));
  const std::string message = message_of(Scales(bytes_of({120, 250}), DType::u8), recode);
  EXPECT_NE(message.find("exponent 250"), std::string::npos) << message;
  EXPECT_NE(message.find("at most 249"), std::string::npos) << message;
  const Scales numbers = number_scales<float>({0x1p123f}, DType::f32);
  EXPECT_NE(message_of(numbers, recode).find("exponent 250"), std::string::npos);
}

TEST(MarlinE8M0, TakesNumbersAsTheyAre) {
  const Scales scales = number_scales<float>({1.0f, 0x1p-10f, 0.0f, 3.0f}, DType::f32);
  EXPECT_EQ(recoded(scales, marlin_e8m0(Slot::w13_scale, DType::bf16, 0)),
            bytes_of({127, 117, 0, 129}));
  EXPECT_EQ(recoded(scales, marlin_e8m0(Slot::w13_scale, DType::bf16, 6)),
            bytes_of({133, 123, 6, 135}));
  EXPECT_NE(message_of(Scales(std::vector<std::byte>(8), DType::i64),
                       marlin_e8m0(Slot::w13_scale, DType::bf16, 0)),
            "");
}

TEST(MarlinE8M0, DecodesByShifting) {
  EXPECT_EQ(decode_marlin_e8m0(1.0f)(bytes_of({0, 1, 127, 254, 255})),
            (std::vector<float>{0.0f, 0x1p-126f, 1.0f, 0x1p127f, kInfinity}));
  EXPECT_EQ(decode_marlin_e8m0(0x1p-6f)(bytes_of({6, 133})), (std::vector<float>{0x1p-127f, 1.0f}));
}

TEST(MarlinE8M0Plus, IsUndone) {
  const auto recoder = marlin_e8m0_plus(6).make({});
  const std::vector<std::byte> stored = bytes_of({0, 120, 249});
  std::vector<std::byte> made(3);
  std::vector<std::byte> restored(3);
  recoder->rewrite({}, stored, made);
  EXPECT_EQ(made, bytes_of({6, 126, 255}));
  ASSERT_TRUE(recoder->invertible());
  recoder->restore({}, made, restored);
  EXPECT_EQ(restored, stored);
}

TEST(MarlinFp8Scales, RoundToTheParameterTypeBeforeTheFactor) {
  const Scales scales = number_scales<float>({1.00390625f, 0x1.03p-4f, 3e-8f, 255.0f}, DType::f32);
  const Recode bf16 = marlin_fp8_scales(Slot::w13_scale, DType::bf16, MarlinBias::in_scales);
  EXPECT_EQ(decoded(scales, bf16, decode_marlin_floats(DType::bf16, 0x1p-120f)),
            (std::vector<float>{1.0f, 0x1.04p-4f, decode(Format::bf16, 0x3301), 255.0f}));
  const Recode f16 = marlin_fp8_scales(Slot::w13_scale, DType::f16, MarlinBias::in_scales);
  EXPECT_EQ(decoded(scales, f16, decode_marlin_floats(DType::f16, 0x1p-8f)),
            (std::vector<float>{1.00390625f, 0x1.03p-4f, 0x1p-24f * 1.0f, 255.0f}));
}

TEST(MarlinFp8Scales, OverflowFrom256On) {
  const Scales scales = number_scales<float>({256.0f}, DType::f32);
  for (const DType params : {DType::bf16, DType::f16}) {
    const Recode folded = marlin_fp8_scales(Slot::w13_scale, params, MarlinBias::in_scales);
    EXPECT_EQ(decoded(scales, folded, decode_marlin_floats(params, 1.0f)).front(), kInfinity);
    const Recode plain = marlin_fp8_scales(Slot::w13_scale, params, MarlinBias::none);
    EXPECT_EQ(decoded(scales, plain, decode_marlin_floats(params, 1.0f)).front(), 256.0f);
  }
}

TEST(MarlinFp8Scales, TakeBf16ScalesAndRefuseBytes) {
  const Scales scales = number_scales<std::uint16_t>({0x3F80, 0x3E40}, DType::bf16);
  const Recode recode = marlin_fp8_scales(Slot::w13_scale, DType::bf16, MarlinBias::in_scales);
  EXPECT_EQ(decoded(scales, recode, decode_marlin_floats(DType::bf16, 0x1p-120f)),
            (std::vector<float>{1.0f, 0.1875f}));
  EXPECT_THAT(message_of(Scales(bytes_of({1}), DType::u8), recode),
              HasSubstr("takes F32, BF16 or F16 numbers"));
}

TEST(MaxScalesW13, GivesBothHalvesTheLarger) {
  Scales scales = number_scales<float>({2.0f, 3.0f}, DType::f32);
  scales.layer.shape.experts = 1;
  scales.layer.scalars.w13_scale = {2.0f, 3.0f};
  const auto out = recoded(scales, max_scales_w13());
  EXPECT_EQ(load<float>(out.data()), 3.0f);
  EXPECT_EQ(load<float>(out.data() + 4), 3.0f);
}

}  // namespace
}  // namespace moeref::recode
