#include "quant/dequantize.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/quant/dequantize_judge.hpp"
#include "tests/support/error_of.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace moeref {
namespace {

using namespace test;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(CodeAt, ReadsNibblesInBothOrders) {
  const std::vector<std::uint8_t> packed{0x21, 0x43, 0x65, 0x87};
  ScaledMatrix matrix = plain(2, 4, Format::e2m1, bytes_of(packed));
  for (std::uint32_t i = 0; i < 8; ++i) EXPECT_EQ(code_at(matrix, i / 4, i % 4), i + 1);
  matrix.codes.nibbles = NibbleOrder::high_first;
  for (std::uint32_t i = 0; i < 8; ++i) EXPECT_EQ(code_at(matrix, i / 4, i % 4), (i ^ 1) + 1);
}

TEST(CodeAt, FollowsOriginAndStrides) {
  std::vector<std::uint16_t> numbers(60);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::uint16_t>(i);
  ScaledMatrix matrix = plain(3, 4, Format::bf16, bytes_of(numbers));
  matrix.codes.origin = 5;
  matrix.codes.row_stride = 2;
  matrix.codes.col_stride = 10;
  for (std::int64_t row = 0; row < 3; ++row) {
    for (std::int64_t col = 0; col < 4; ++col) {
      EXPECT_EQ(code_at(matrix, row, col), 5 + 2 * row + 10 * col);
    }
  }
  const std::vector<float> odd{1.5f, -2.0f, 3.0f};
  ScaledMatrix reversed = plain(1, 3, Format::f32, bytes_of(odd));
  reversed.codes.origin = 2;
  reversed.codes.col_stride = -1;
  EXPECT_EQ(element_at(reversed, 0, 0), 3.0);
  EXPECT_EQ(element_at(reversed, 0, 2), 1.5);
  EXPECT_EQ(values_of(reversed, DequantizeOrder::once), (std::vector<float>{3.0f, -2.0f, 1.5f}));
}

TEST(ScaleAt, FindsTheBlockOfAShardThatStartsInsideOne) {
  const std::vector<float> scales{1, 2, 3, 4, 5, 6};  // [2, 3] blocks of 2 x 4
  const std::vector<std::uint8_t> codes(4, 0x38);
  ScaledMatrix matrix = plain(2, 2, Format::e4m3, bytes_of(codes));
  EXPECT_EQ(scale_at(matrix, 1, 1), 1.0f);
  matrix.scales = blocks(Format::f32, bytes_of(scales), 2, 4, 3);
  matrix.scales->row_begin = 1;
  matrix.scales->col_begin = 7;
  EXPECT_EQ(scale_at(matrix, 0, 0), 2.0f);
  EXPECT_EQ(scale_at(matrix, 0, 1), 3.0f);
  EXPECT_EQ(scale_at(matrix, 1, 0), 5.0f);
  EXPECT_EQ(scale_at(matrix, 1, 1), 6.0f);
  EXPECT_EQ(values_of(matrix, DequantizeOrder::once), (std::vector<float>{2, 3, 5, 6}));
}

TEST(Dequantize, ScalesMxfp4BlocksAndKeepsMinusZero) {
  std::vector<std::uint8_t> packed(32);  // [2, 32]
  for (std::size_t i = 0; i < packed.size(); ++i)
    packed[i] = static_cast<std::uint8_t>(i % 16 * 17);
  const std::vector<std::uint8_t> scales{128, 120};
  ScaledMatrix matrix = plain(2, 32, Format::e2m1, bytes_of(packed));
  matrix.scales = blocks(Format::e8m0, bytes_of(scales), 1, 32, 1);
  const float magnitudes[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const std::vector<float> values = values_of(matrix, DequantizeOrder::once);
  const std::vector<float> cleared = values_of(matrix, DequantizeOrder::modelopt_nvfp4);
  for (std::size_t i = 0; i < 64; ++i) {
    const std::size_t code = (i / 2) % 16;
    const float scale = i < 32 ? 2.0f : 0x1p-7f;
    const float value = magnitudes[code % 8] * scale * (code < 8 ? 1.0f : -1.0f);
    EXPECT_EQ(to_bits(values[i]), to_bits(value)) << i;
    EXPECT_EQ(to_bits(cleared[i]), to_bits(code == 8 ? 0.0f : value)) << i;
  }
}

TEST(Dequantize, TakesE8M0ToTheEndsOfItsRange) {
  const std::vector<std::uint8_t> packed{0x21, 0x43, 0xA9, 0xCB};  // 0.5 1 1.5 2 | -0.5 -1 -1.5 -2
  const auto row = [&](std::uint8_t scale, Format target) {
    const std::vector<std::uint8_t> scales{scale};
    ScaledMatrix matrix = plain(1, 8, Format::e2m1, bytes_of(packed));
    matrix.scales = blocks(Format::e8m0, bytes_of(scales), 1, 32, 1);
    return values_of(matrix, DequantizeOrder::once, target);
  };
  for (const Format target : {Format::f32, Format::bf16}) {
    EXPECT_EQ(row(0x00, target),
              (std::vector<float>{0x1p-128f, 0x1p-127f, 0x1.8p-127f, 0x1p-126f, -0x1p-128f,
                                  -0x1p-127f, -0x1.8p-127f, -0x1p-126f}));
    EXPECT_EQ(row(0xFE, target),
              (std::vector<float>{0x1p126f, 0x1p127f, 0x1.8p127f, kInfinity, -0x1p126f, -0x1p127f,
                                  -0x1.8p127f, -kInfinity}));
  }
  EXPECT_EQ(row(142, Format::f16)[3], kInfinity);  // 2 * 2^15
  EXPECT_EQ(row(142, Format::f16)[2], 0x1.8p15f);
  EXPECT_EQ(row(103, Format::f16)[0], 0.0f);      // 2^-25: a tie with zero
  EXPECT_EQ(row(103, Format::f16)[2], 0x1p-23f);  // 1.5 * 2^-24: a tie, to even
  for (const Format target : {Format::f32, Format::bf16, Format::f16}) {
    for (const float value : row(0xFF, target)) EXPECT_EQ(to_bits(value), kNanBits);
  }
}

TEST(Dequantize, CoversRaggedBlocksPerTensorAndPerChannelScales) {
  constexpr std::int64_t kRows = 130;
  constexpr std::int64_t kCols = 257;
  std::vector<std::uint8_t> codes(kRows * kCols);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % 0x7F);
  const std::vector<float> block_scales{0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
  std::vector<float> row_scales(kRows);
  for (std::size_t i = 0; i < row_scales.size(); ++i) row_scales[i] = 0.01f * static_cast<float>(i);

  ScaledMatrix blocked = plain(kRows, kCols, Format::e4m3, bytes_of(codes));
  blocked.scales = blocks(Format::f32, bytes_of(block_scales), 128, 128, 3);
  ScaledMatrix channel = blocked;
  channel.scales = blocks(Format::f32, bytes_of(row_scales), 1, kCols, 1);
  ScaledMatrix tensor = blocked;
  constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
  tensor.scales = blocks(Format::f32, bytes_of(block_scales), kAll, kAll, 0);
  tensor.scales->col_stride = 0;

  const std::vector<float> of_blocked = values_of(blocked, DequantizeOrder::checkpoint);
  const std::vector<float> of_channel = values_of(channel, DequantizeOrder::checkpoint);
  const std::vector<float> of_tensor = values_of(tensor, DequantizeOrder::checkpoint);
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t col = 0; col < kCols; ++col) {
      const auto i = static_cast<std::size_t>(row * kCols + col);
      const float q = decode(Format::e4m3, codes[i]);
      const auto block = static_cast<std::size_t>(row / 128 * 3 + col / 128);
      ASSERT_EQ(of_blocked[i], q * block_scales[block]);
      ASSERT_EQ(of_channel[i], q * row_scales[static_cast<std::size_t>(row)]);
      ASSERT_EQ(of_tensor[i], q * 0.1f);
    }
  }
}

TEST(Dequantize, MultipliesOrDividesByTheGlobalScale) {
  const std::vector<std::uint8_t> packed(8, 0x75);  // 3, 6, 3, 6, ...
  const std::vector<std::uint8_t> scales{0x39};     // 1.125
  ScaledMatrix matrix = plain(1, 16, Format::e2m1, bytes_of(packed));
  matrix.scales = blocks(Format::e4m3, bytes_of(scales), 1, 16, 1);
  matrix.global_scale = 0.3f;
  EXPECT_EQ(values_of(matrix, DequantizeOrder::checkpoint)[1], 6.75f);  // rule none: not used
  EXPECT_EQ(f64_values_of(matrix)[1], 6.75);
  matrix.global_rule = GlobalScaleRule::multiply;
  EXPECT_EQ(values_of(matrix, DequantizeOrder::checkpoint)[0], 3.0f * (1.125f * 0.3f));
  EXPECT_EQ(f64_values_of(matrix)[0], 3.375 * static_cast<double>(0.3f));
  matrix.global_rule = GlobalScaleRule::divide;
  EXPECT_EQ(values_of(matrix, DequantizeOrder::checkpoint)[0], 3.0f * (1.125f / 0.3f));
  EXPECT_EQ(f64_values_of(matrix)[0], 3.375 / static_cast<double>(0.3f));
}

TEST(Dequantize, RoundsTheScaleFirstWhereTheSourceDoes) {
  const std::vector<std::uint8_t> codes{0x7E};           // 448
  std::vector<float> scales{1.0f + 0x1p-8f + 0x1p-20f};  // just above a tie of bf16: 1 + 2^-7
  ScaledMatrix matrix = plain(1, 1, Format::e4m3, bytes_of(codes));
  matrix.scales = blocks(Format::f32, bytes_of(scales), 1, 1, 1);
  EXPECT_EQ(values_of(matrix, DequantizeOrder::modelopt_fp8, Format::bf16)[0], 452.0f);  // 451.5
  EXPECT_EQ(values_of(matrix, DequantizeOrder::checkpoint, Format::bf16)[0], 450.0f);    // 449.75
  EXPECT_EQ(values_of(matrix, DequantizeOrder::once, Format::bf16)[0], 450.0f);
  scales[0] = 0x1p-26f;  // below half the smallest f16
  EXPECT_EQ(values_of(matrix, DequantizeOrder::sglang_fp16, Format::f16)[0], 0.0f);
  EXPECT_EQ(values_of(matrix, DequantizeOrder::once, Format::f16)[0], 448.0f * 0x1p-26f);
}

TEST(Dequantize, RoundsOnceOnlyUnderOnce) {
  // q * s lies above the tie 1 + 2^-8 of bf16 by less than half a unit of f32.
  const std::vector<std::uint8_t> codes{0x3A};  // 1.25
  const std::vector<float> scales{static_cast<float>((1.0 + 0x1p-8 + 0x1p-24) / 1.25)};
  ScaledMatrix matrix = plain(1, 1, Format::e4m3, bytes_of(codes));
  matrix.scales = blocks(Format::f32, bytes_of(scales), 1, 1, 1);
  const double exact = 1.25 * static_cast<double>(scales[0]);
  ASSERT_GT(exact, 1.0 + 0x1p-8);
  ASSERT_EQ(static_cast<float>(exact), 1.0f + 0x1p-8f);
  EXPECT_EQ(values_of(matrix, DequantizeOrder::once, Format::bf16)[0], 1.0f + 0x1p-7f);
  EXPECT_EQ(values_of(matrix, DequantizeOrder::checkpoint, Format::bf16)[0], 1.0f);
}

TEST(Dequantize, WritesOneNanWhateverItsSource) {
  const std::vector<std::uint8_t> codes{0x7F, 0xFF, 0x7C,
                                        0xFC, 0xFD, 0x00};  // E5M2 NaNs, infinities, 0
  const std::vector<float> scales{-1.0f, kInfinity};
  ScaledMatrix matrix = plain(1, 6, Format::e5m2, bytes_of(codes));
  matrix.scales = blocks(Format::f32, bytes_of(scales), 1, 5, 1);
  for (const DequantizeOrder order :
       {DequantizeOrder::once, DequantizeOrder::checkpoint, DequantizeOrder::modelopt_fp8,
        DequantizeOrder::sglang_fp16}) {
    for (const Format target : {Format::f32, Format::bf16, Format::f16}) {
      const std::vector<float> values = values_of(matrix, order, target);
      for (const std::size_t i : {0u, 1u, 4u, 5u}) EXPECT_EQ(to_bits(values[i]), kNanBits);
      EXPECT_EQ(values[2], -kInfinity);
      EXPECT_EQ(values[3], kInfinity);
    }
  }
  const std::vector<double> values = f64_values_of(matrix);
  EXPECT_EQ(std::bit_cast<std::uint64_t>(values[1]), 0x7FF8'0000'0000'0000u);
  EXPECT_EQ(std::bit_cast<std::uint64_t>(values[5]), 0x7FF8'0000'0000'0000u);
  EXPECT_EQ(values[3], static_cast<double>(kInfinity));
}

#if defined(__x86_64__)
TEST(Dequantize, IgnoresAndRestoresTheHostsFloatEnvironment) {
  const std::vector<std::uint8_t> packed{0x21};
  const std::vector<std::uint8_t> scales{0x00};
  ScaledMatrix matrix = plain(1, 2, Format::e2m1, bytes_of(packed));
  matrix.scales = blocks(Format::e8m0, bytes_of(scales), 1, 2, 1);
  const unsigned int saved = _mm_getcsr();
  const unsigned int flushing =
      0x1F80 | 0x8040 | 0x6000;  // flush, zero subnormals, round toward zero
  _mm_setcsr(flushing);
  const std::vector<float> values = values_of(matrix, DequantizeOrder::once);
  const unsigned int after = _mm_getcsr();
  _mm_setcsr(saved);
  EXPECT_EQ(after & 0xE040u, flushing & 0xE040u);
  EXPECT_EQ(to_bits(values[0]), 0x0020'0000u);
  EXPECT_EQ(to_bits(values[1]), 0x0040'0000u);
}
#endif

TEST(Dequantize, NamesTheMatrixAndTheFixInItsErrors) {
  const std::vector<std::uint8_t> codes(8, 0x38);
  std::vector<float> out(8);
  const auto attempt = [&](const ScaledMatrix& matrix, DequantizeOrder order, Format target) {
    return error_of([&] { dequantize(matrix, order, target, out); });
  };
  const auto expect_words = [](const std::string& message,
                               std::initializer_list<const char*> words) {
    for (const char* word : words) {
      EXPECT_NE(message.find(word), std::string::npos) << word << " in: " << message;
    }
  };
  ScaledMatrix matrix = plain(2, 4, Format::e4m3, bytes_of(codes));
  EXPECT_EQ(attempt(matrix, DequantizeOrder::once, Format::f32), "no error");
  expect_words(attempt(matrix, DequantizeOrder::once, Format::e4m3), {"weight: ", "e4m3", "bf16"});
  expect_words(attempt(matrix, DequantizeOrder::modelopt_nvfp4, Format::f32), {"weight: ", "e2m1"});
  expect_words(attempt(ScaledMatrix{}, DequantizeOrder::once, Format::f32), {"no codes"});
  matrix.global_rule = GlobalScaleRule::multiply;
  expect_words(attempt(matrix, DequantizeOrder::modelopt_fp8, Format::f32), {"weight: ", "global"});
  expect_words(attempt(matrix, DequantizeOrder::sglang_fp16, Format::f16), {"weight: ", "global"});
  matrix.global_rule = GlobalScaleRule::none;
  matrix.cols = 3;
  expect_words(attempt(matrix, DequantizeOrder::once, Format::f32), {"weight: ", "[2, 3]", "8"});
  expect_words(error_of([&] { dequantize(matrix, std::span<double>{}); }), {"weight: ", "[2, 3]"});
  matrix.cols = 4;
  matrix.scales = blocks(Format::e2m1, bytes_of(codes), 1, 4, 1);
  expect_words(attempt(matrix, DequantizeOrder::once, Format::f32), {"weight: ", "e2m1", "scale"});
  matrix.scales = blocks(Format::e8m0, bytes_of(codes), 0, 4, 1);
  expect_words(attempt(matrix, DequantizeOrder::once, Format::f32), {"weight: ", "[0, 4]"});
  matrix.scales.reset();
  matrix.codes.format = Format::f64;
  expect_words(attempt(matrix, DequantizeOrder::once, Format::f32), {"weight: ", "f64"});
}

TEST(Dequantize, TakesEmptyMatrices) {
  const std::vector<std::uint8_t> codes(1);
  EXPECT_TRUE(values_of(plain(0, 4, Format::e2m1, bytes_of(codes)), DequantizeOrder::once).empty());
  EXPECT_TRUE(values_of(plain(4, 0, Format::e2m1, bytes_of(codes)), DequantizeOrder::once).empty());
  EXPECT_TRUE(f64_values_of(plain(0, 4, Format::bf16, bytes_of(codes))).empty());
}

}  // namespace
}  // namespace moeref
