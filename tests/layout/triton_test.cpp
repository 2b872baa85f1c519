// The storage orders of triton_kernels against their formulas, place by place.
#include "layout/tiles/triton.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/layout/layout_support.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::Matrices;

std::int64_t up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// C, D and P_F of the original's _compress_fp4, _compress_fourth and _pack_bits.
std::uint32_t compress(std::uint32_t n) { return (n & 8u) << 12 | (n & 7u) << 6; }
std::uint32_t compress_fourth(std::uint32_t n) {
  return (n & 8u) << 11 | (n & 6u) << 9 | (n & 1u) << 13;
}
std::uint32_t pair(std::uint32_t (*function)(std::uint32_t), std::uint32_t byte) {
  return function(byte & 15u) | function(byte >> 4) << 16;
}

/// Bytes in the order before the bits are spread, then spread.
Bytes hopper_by_formula(const Matrices& in, std::int64_t mma_version, std::int64_t row_multiple,
                        std::int64_t byte_multiple) {
  const std::int64_t rows = in.stack.half_rows;
  const std::int64_t bytes = in.stack.cols / 2;
  const std::int64_t R = up(rows, row_multiple);
  const std::int64_t C = up(bytes, byte_multiple);
  Bytes out(static_cast<std::size_t>(in.stack.experts * R * C));
  for (std::int64_t e = 0; e < in.stack.experts; ++e) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < bytes; ++c) {
        const std::int64_t line = r / 16 * 4 + r / 2 % 4;
        const std::int64_t x = mma_version == 3 ? c / 32 * 128 + r % 2 * 64 + c % 4 * 16 +
                                                      c / 8 % 4 * 4 + c / 4 % 2 * 2 + r / 8 % 2
                                                : c / 32 * 128 + r % 2 * 64 + c / 4 % 4 * 16 +
                                                      c / 16 % 2 * 8 + r / 8 % 2 * 4 + c % 4;
        out[static_cast<std::size_t>(e * R * C + line * 4 * C + x)] =
            in.bytes[static_cast<std::size_t>((e * rows + r) * bytes + c)];
      }
    }
  }
  for (std::size_t word = 0; word < out.size(); word += 4) {
    std::uint32_t x[4];
    for (std::size_t i = 0; i < 4; ++i) x[i] = std::to_integer<std::uint32_t>(out[word + i]);
    const std::uint32_t spread = pair(compress, x[0]) | pair(compress, x[1]) >> 3 |
                                 pair(compress, x[2]) >> 6 | pair(compress_fourth, x[3]);
    std::memcpy(out.data() + word, &spread, 4);
  }
  return out;
}

TEST(HopperMxValue, FollowsItsFormulaWithPadding) {
  for (const std::int64_t mma : {2, 3}) {
    const Matrices in(2, 300, 192, 4);
    const std::vector<Step> steps{Tile{tiles::hopper_mx_value(mma)},
                                  PermuteBits{tiles::hopper_mx_bits()}};
    EXPECT_EQ(testing::run(in, steps), hopper_by_formula(in, mma, 256, 64)) << mma;
    const Plan plan = testing::plan_of(in, steps);
    EXPECT_EQ(plan.shape, (Shape{2, 4 * 128, 128}));
    EXPECT_EQ(plan.strides, (std::vector<std::int64_t>{512 * 128, 1, 512}));
    EXPECT_EQ(plan.dtype, DType::u8);
  }
}

TEST(HopperMxValue, PadsLessInTheOlderRelease) {
  const Matrices in(3, 20, 96, 4);
  const std::vector<Step> steps{Tile{tiles::hopper_mx_value_v35(3)},
                                PermuteBits{tiles::hopper_mx_bits()}};
  EXPECT_EQ(testing::run(in, steps), hopper_by_formula(in, 3, 16, 32));
}

TEST(HopperMxValue, RejectsOtherMmaVersions) {
  EXPECT_THAT(error_of([] { tiles::hopper_mx_value(4); }), HasSubstr("mma_version is 4"));
}

TEST(HopperMxBits, GiveCodesUnderTheMaskOfTheKernel) {
  // The kernel takes four bf16 pairs out of a word by and, shift, or.
  constexpr std::uint32_t kMask = 0x81C0'81C0u;
  const std::uint32_t bytes = 0x9C5A'E713u;
  const std::uint32_t word = tiles::hopper_mx_bits()->apply(bytes);
  const std::uint32_t fourth =
      (word << 1 & 0x8000'8000u) | (word >> 3 & 0x0180'0180u) | (word >> 7 & 0x0040'0040u);
  const std::uint32_t decoded[] = {word & kMask, word << 3 & kMask, word << 6 & kMask, fourth};
  for (int byte = 0; byte < 4; ++byte) {
    EXPECT_EQ(decoded[byte], pair(compress, bytes >> 8 * byte & 0xFFu)) << byte;
  }
  EXPECT_EQ(tiles::hopper_mx_bits()->undo(word), bytes);
}

TEST(HopperMxScale, FollowsItsFormulaForEveryPowerOfTwo) {
  for (const std::int64_t warps : {1, 2, 4, 8, 16}) {
    const std::int64_t rows = 150;
    const std::int64_t cols = 5;
    const Matrices in(2, rows, cols, 8);
    const std::int64_t R = up(rows, 32 * warps);
    const std::int64_t C = up(cols, 2);
    Bytes expected(static_cast<std::size_t>(2 * R * C));
    for (std::int64_t e = 0; e < 2; ++e) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t q = r / (32 * warps);
        const std::int64_t a = r / (16 * warps) % 2;
        const std::int64_t w = r / 16 % warps;
        const std::int64_t h = r / 8 % 2;
        for (std::int64_t c = 0; c < cols; ++c) {
          const std::int64_t place =
              (q * warps + w) * 32 * C + c / 2 * 64 + a * 32 + r % 8 * 4 + c % 2 * 2 + h;
          expected[static_cast<std::size_t>(e * R * C + place)] =
              in.bytes[static_cast<std::size_t>((e * rows + r) * cols + c)];
        }
      }
    }
    const std::vector<Step> steps{Tile{tiles::hopper_mx_scale(warps)}};
    EXPECT_EQ(testing::run(in, steps), expected) << warps;
    EXPECT_EQ(testing::plan_of(in, steps).shape, (Shape{2, 32 * C, R / 32}));
  }
}

TEST(HopperMxScale, RejectsWarpsThatAreNoPowerOfTwo) {
  for (const std::int64_t warps : {0, 3, 6}) {
    EXPECT_THAT(error_of([warps] { tiles::hopper_mx_scale(warps); }), HasSubstr("power of two"));
  }
}

TEST(BlackwellMxScale, PadsKToEight) {
  const std::int64_t rows = 130;
  const std::int64_t cols = 9;
  const Matrices in(3, rows, cols, 8);
  const std::int64_t R = up(rows, 128);
  const std::int64_t C = up(cols, 8);
  Bytes expected(static_cast<std::size_t>(3 * R * C));
  for (std::int64_t e = 0; e < 3; ++e) {
    for (std::int64_t n = 0; n < rows; ++n) {
      for (std::int64_t k = 0; k < cols; ++k) {
        const std::int64_t flat = ((e * (R / 128) + n / 128) * (C / 4) + k / 4) * 512 +
                                  n % 32 * 16 + n % 128 / 32 * 4 + k % 4;
        expected[static_cast<std::size_t>(flat)] =
            in.bytes[static_cast<std::size_t>((e * rows + n) * cols + k)];
      }
    }
  }
  const std::vector<Step> steps{Tile{tiles::blackwell_mx_scale()}};
  EXPECT_EQ(testing::run(in, steps), expected);
  EXPECT_EQ(testing::plan_of(in, steps).shape, (Shape{1, 6, 4, 2, 256}));
}

TEST(BlackwellMxValue, PadsRowsTo128Bytes) {
  const Matrices in(2, 5, 300, 4);
  const std::vector<Step> steps{Tile{tiles::blackwell_mx_value()}};
  const Bytes made = testing::run(in, steps);
  ASSERT_EQ(made.size(), std::size_t{2 * 5 * 256});
  for (std::int64_t row = 0; row < 10; ++row) {
    for (std::int64_t c = 0; c < 256; ++c) {
      const std::byte expected =
          c < 150 ? in.bytes[static_cast<std::size_t>(row * 150 + c)] : std::byte{0};
      ASSERT_EQ(made[static_cast<std::size_t>(row * 256 + c)], expected) << row << ' ' << c;
    }
  }
  EXPECT_EQ(testing::plan_of(in, steps).shape, (Shape{2, 256, 5}));
  EXPECT_EQ(testing::plan_of(in, steps).strides, (std::vector<std::int64_t>{1280, 1, 256}));
}

TEST(BlackwellMx4ValueShuffled, FollowsItsFormulaForAnyBlock) {
  for (const auto& [block_k, block_n] :
       {std::pair{128, 256}, std::pair{192, 32}, std::pair{64, 1}}) {
    const std::int64_t rows = 70;
    const std::int64_t bytes = 100;
    const std::int64_t b = block_k / 2;
    const std::int64_t R = up(rows, block_n);
    const std::int64_t C = up(bytes, std::lcm(std::int64_t{128}, b));
    const Matrices in(2, rows, 2 * bytes, 4);
    Bytes expected(static_cast<std::size_t>(2 * R * C));
    for (std::int64_t e = 0; e < 2; ++e) {
      for (std::int64_t n = 0; n < rows; ++n) {
        for (std::int64_t c = 0; c < bytes; ++c) {
          const std::int64_t place =
              ((c / b * (R / block_n) + n / block_n) * block_n + n % block_n) * b + c % b;
          expected[static_cast<std::size_t>(e * R * C + place)] =
              in.bytes[static_cast<std::size_t>((e * rows + n) * bytes + c)];
        }
      }
    }
    const std::vector<Step> steps{Tile{tiles::blackwell_mx4_value_shuffled(block_k, block_n)}};
    EXPECT_EQ(testing::run(in, steps), expected) << block_k;
    EXPECT_EQ(testing::plan_of(in, steps).shape, (Shape{2, C / b, R / block_n, block_n, b}));
  }
  EXPECT_THAT(error_of([] { tiles::blackwell_mx4_value_shuffled(127, 256); }),
              HasSubstr("block_k must be even"));
}

TEST(Cdna4MxScale, FollowsItsFormula) {
  const Matrices in(2, 96, 24, 8);
  Bytes expected(in.bytes.size());
  for (std::int64_t e = 0; e < 2; ++e) {
    for (std::int64_t r = 0; r < 96; ++r) {
      for (std::int64_t c = 0; c < 24; ++c) {
        const std::int64_t place =
            (r / 32 * 3 + c / 8) * 256 + c % 4 * 64 + r % 16 * 4 + c % 8 / 4 * 2 + r % 32 / 16;
        expected[static_cast<std::size_t>(e * 96 * 24 + place)] =
            in.bytes[static_cast<std::size_t>((e * 96 + r) * 24 + c)];
      }
    }
  }
  EXPECT_EQ(testing::run(in, {Tile{tiles::cdna4_mx_scale()}}), expected);
}

TEST(Cdna4MxScale, RejectsSizesItWouldHaveToPad) {
  const Matrices in(1, 64, 12, 8);
  EXPECT_THAT(error_of([&] { testing::plan_of(in, {Tile{tiles::cdna4_mx_scale()}}); }),
              HasSubstr("columns % 8"));
}

TEST(RepackFp4, TransposesTheNibblesOfTwoByTwoBlocks) {
  const Matrices in(2, 6, 10, 4);
  const Bytes made = testing::run(in, {Tile{tiles::repack_fp4()}});
  ASSERT_EQ(made.size(), in.bytes.size());
  for (std::size_t e = 0; e < 2; ++e) {
    for (std::size_t k2 = 0; k2 < 3; ++k2) {
      for (std::size_t m = 0; m < 5; ++m) {
        const std::byte a = in.bytes[e * 30 + 2 * k2 * 5 + m];
        const std::byte b = in.bytes[e * 30 + (2 * k2 + 1) * 5 + m];
        EXPECT_EQ(made[e * 30 + k2 * 10 + 2 * m], (a & std::byte{15}) | (b & std::byte{15}) << 4);
        EXPECT_EQ(made[e * 30 + k2 * 10 + 2 * m + 1], a >> 4 | (b & std::byte{0xF0}));
      }
    }
  }
}

TEST(TritonTiles, ComeBackFromUndoWithAllPadsRight) {
  const std::vector<std::vector<Step>> fp4{
      {Tile{tiles::hopper_mx_value(3)}, PermuteBits{tiles::hopper_mx_bits()}},
      {Tile{tiles::hopper_mx_value(2)}, PermuteBits{tiles::hopper_mx_bits()}},
      {Tile{tiles::hopper_mx_value_v35(3)}, PermuteBits{tiles::hopper_mx_bits()}},
      {Tile{tiles::blackwell_mx_value()}},
      {Tile{tiles::blackwell_mx4_value_shuffled(128, 256)}},
      {Tile{tiles::k_major_view()}},
      {Tile{tiles::repack_fp4()}}};
  const std::vector<std::vector<Step>> bytes{{Tile{tiles::hopper_mx_scale(8)}},
                                             {Tile{tiles::blackwell_mx_scale()}},
                                             {Tile{tiles::cdna4_mx_scale()}}};
  const auto check = [](const Matrices& in, const std::vector<Step>& steps) {
    UndoReport report;
    EXPECT_EQ(testing::there_and_back(in, steps, report), in.bytes) << describe(steps.front());
    EXPECT_EQ(report.wrong_pads, 0);
    const Plan plan = testing::plan_of(in, steps);
    EXPECT_EQ(report.pads + in.stack.experts * in.stack.half_rows * in.stack.cols,
              plan.map.experts * plan.map.out_elements());
  };
  for (const auto& steps : fp4) check(Matrices(2, 34, 70, 4), steps);
  for (const auto& steps : bytes) check(Matrices(2, 96, 8, 8), steps);
}

TEST(TritonTiles, HaveNamesThatParseToThem) {
  for (const char* text :
       {"hopper_mx_value(3) hopper_mx_bits", "hopper_mx_value_v35(2) hopper_mx_bits",
        "hopper_mx_scale(8)", "blackwell_mx_scale", "blackwell_mx_value",
        "blackwell_mx4_value_shuffled(128, 256)", "cdna4_mx_scale", "k_major_view", "repack_fp4"}) {
    std::string described;
    for (const Step& step : parse_steps("--steps", text)) {
      described += (described.empty() ? "" : " ") + describe(step);
    }
    EXPECT_EQ(described, text);
  }
}

}  // namespace
}  // namespace moeref
