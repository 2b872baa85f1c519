// The Hopper orders of 4-bit weights and their scales, in bytes, against formulas written down on
// their own.

#include "layout/tiles/sm90.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "tests/layout/sample_source.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string message(const Source& source, const std::vector<Step>& steps) {
  return error_of([&] { make_plan("made", source.stack(), steps, nullptr); });
}

/// Output row and group of four bytes: where the group's bytes come from.
struct Group {
  std::int64_t top;   ///< row of the upper eight
  std::int64_t base;  ///< 32 p + 16 m + 8 h
  std::int64_t t;

  Group(std::int64_t row, std::int64_t byte)
      : top(row - row % 16 / 8 * 8),
        base(byte / 32 * 32 + byte % 32 / 16 * 16 + row % 16 / 8 * 8),
        t(byte % 16 / 4) {}
};

/// The word with bit `b` of code `n` at places[n][3 - b].
std::uint32_t scattered(std::uint32_t word, const std::array<std::array<int, 4>, 8>& places) {
  std::uint32_t result = 0;
  for (std::uint32_t n = 0; n < 8; ++n) {
    for (std::uint32_t b = 0; b < 4; ++b) {
      result |= (word >> (4 * n + b) & 1u) << places[n][3 - b];
    }
  }
  return result;
}

std::uint32_t word_of(const std::array<std::uint8_t, 4>& bytes) {
  return bytes[0] | static_cast<std::uint32_t>(bytes[1]) << 8 |
         static_cast<std::uint32_t>(bytes[2]) << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
}

std::uint32_t made_word(const Source& source, const Bytes& made, std::int64_t e, std::int64_t r,
                        std::int64_t byte) {
  std::uint32_t word = 0;
  std::memcpy(&word, made.data() + (e * source.rows + r) * source.cols / 2 + byte, 4);
  return word;
}

const std::vector<Step> kV2{Tile{tiles::sm90_weights_v2()}, tiles::sm90_bits_fp4()};
const std::vector<Step> kInt4{Tile{tiles::sm90_weights_int4()}};
const std::vector<Step> kFp4Fp8{Tile{tiles::sm90_weights_int4()}, tiles::sm90_bits_fp4_fp8()};
const std::vector<Step> kV1{Tile{tiles::sm90_weights_v1()}};

TEST(Sm90Weights, V2GathersRowsEightApartAndScattersBits) {
  constexpr std::array<std::array<int, 4>, 8> kPlaces{{{15, 8, 7, 6},
                                                       {31, 24, 23, 22},
                                                       {12, 5, 4, 3},
                                                       {28, 21, 20, 19},
                                                       {9, 2, 1, 0},
                                                       {25, 18, 17, 16},
                                                       {14, 11, 10, 13},
                                                       {30, 27, 26, 29}}};
  const Source source(2, 48, 192, 4);
  const Bytes made = applied(source, kV2);
  for (std::int64_t e = 0; e < 2; ++e) {
    for (std::int64_t r = 0; r < source.rows; ++r) {
      for (std::int64_t c = 0; c < source.cols / 2; c += 4) {
        const Group g(r, c);
        const std::int64_t s = g.base + g.t;
        const std::uint32_t word =
            word_of({source.at(e, g.top, s), source.at(e, g.top + 8, s), source.at(e, g.top, s + 4),
                     source.at(e, g.top + 8, s + 4)});
        ASSERT_EQ(made_word(source, made, e, r, c), scattered(word, kPlaces)) << r << ", " << c;
      }
    }
  }
  EXPECT_EQ(undone(source, kV2, made), source.bytes);
}

TEST(Sm90Weights, Int4MovesBytesAndFp4Fp8MovesSignsToo) {
  constexpr std::array<int, 8> kSign{7, 15, 23, 31, 3, 11, 19, 27};
  std::array<std::array<int, 4>, 8> places{};
  for (int n = 0; n < 8; ++n) {
    places[static_cast<std::size_t>(n)] = {kSign[static_cast<std::size_t>(n)], 4 * n + 2, 4 * n + 1,
                                           4 * n};
  }
  const Source source(2, 32, 128, 4);
  const Bytes int4 = applied(source, kInt4);
  const Bytes fp4 = applied(source, kFp4Fp8);
  for (std::int64_t e = 0; e < 2; ++e) {
    for (std::int64_t r = 0; r < source.rows; ++r) {
      for (std::int64_t c = 0; c < source.cols / 2; c += 4) {
        const Group g(r, c);
        const std::int64_t s = g.base + 2 * g.t;
        const std::uint32_t word =
            word_of({source.at(e, g.top, s), source.at(e, g.top, s + 1), source.at(e, g.top + 8, s),
                     source.at(e, g.top + 8, s + 1)});
        ASSERT_EQ(made_word(source, int4, e, r, c), word);
        ASSERT_EQ(made_word(source, fp4, e, r, c), scattered(word, places));
      }
    }
  }
  EXPECT_EQ(undone(source, kInt4, int4), source.bytes);
  EXPECT_EQ(undone(source, kFp4Fp8, fp4), source.bytes);
}

TEST(Sm90Weights, V1PairsTheCodesOfTwoRows) {
  const Source source(2, 32, 192, 4);
  const Bytes made = applied(source, kV1);
  for (std::int64_t e = 0; e < 2; ++e) {
    for (std::int64_t r = 0; r < source.rows; ++r) {
      for (std::int64_t c = 0; c < source.cols / 2; c += 2) {
        const Group g(r, c);
        const std::int64_t s = g.base + 4 * (c % 4 / 2) + g.t;
        const int x = source.at(e, g.top, s);
        const int y = source.at(e, g.top + 8, s);
        const auto at = static_cast<std::size_t>((e * source.rows + r) * source.cols / 2 + c);
        ASSERT_EQ(made[at], (x & 15) | (y & 15) << 4);
        ASSERT_EQ(made[at + 1], x >> 4 | (y >> 4) << 4);
      }
    }
  }
  EXPECT_EQ(undone(source, kV1, made), source.bytes);
}

TEST(Sm90Weights, NeedTilesOf16RowsAnd64Columns) {
  for (const auto& steps : {kV2, kInt4, kFp4Fp8, kV1}) {
    EXPECT_THAT(message(Source(1, 24, 64, 4), steps), HasSubstr("rows % 16 == 0 and columns % 64"));
    EXPECT_THAT(message(Source(1, 16, 96, 4), steps), HasSubstr("got [16, 96]"));
    EXPECT_THAT(message(Source(1, 16, 64, 8), steps), HasSubstr("elements of 4 bits, got 8"));
  }
}

struct Fold {
  std::int64_t group;
  int bits;
  std::int64_t rows;
  std::int64_t cols;
};

TEST(Sm90FoldedScales, FillRowsOf16Bytes) {
  for (const Fold& fold : {Fold{32, 8, 128, 8}, Fold{64, 8, 64, 6}, Fold{128, 8, 64, 3},
                           Fold{16, 8, 192, 16}, Fold{128, 16, 128, 2}, Fold{64, 16, 64, 4},
                           Fold{32, 16, 64, 4}, Fold{32, 32, 128, 8}, Fold{128, 32, 64, 1}}) {
    const Source source(2, fold.rows, fold.cols, fold.bits);
    const std::vector<Step> steps{Tile{tiles::sm90_folded_scales(fold.group, fold.bits)}};
    const Plan plan = make_plan("made", source.stack(), steps, nullptr);
    const std::int64_t q = 128 / fold.group;
    const std::int64_t physical = 128 / fold.bits;
    const std::int64_t f = 64 / (physical / q);
    ASSERT_THAT(plan.shape, ElementsAre(2, fold.rows / 64, fold.cols / q, f, physical));
    for (std::int64_t place = 0; place < plan.map.out_elements(); ++place) {
      const std::int64_t c = place % physical;
      const std::int64_t i = place / physical % f;
      const std::int64_t kb = place / physical / f % (fold.cols / q);
      const std::int64_t rb = place / physical / f / (fold.cols / q);
      const Origin origin = plan.map.origin(place);
      ASSERT_EQ(origin.row, 64 * rb + c / q * f + i);
      ASSERT_EQ(origin.col, kb * q + c % q);
    }
    EXPECT_EQ(undone(source, steps, applied(source, steps)), source.bytes);
  }
}

TEST(Sm90FoldedScales, RejectSizesThatDoNotFold) {
  const std::vector<Step> bytes{Tile{tiles::sm90_folded_scales(32, 8)}};
  EXPECT_THAT(message(Source(1, 32, 4, 8), bytes), HasSubstr("rows % 64 == 0"));
  EXPECT_THAT(message(Source(1, 64, 3, 8), bytes), HasSubstr("columns % 4 == 0, got [64, 3]"));
  EXPECT_THAT(message(Source(1, 64, 4, 16), bytes), HasSubstr("elements of 8 bits, got 16"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(48, 8); }), HasSubstr("must divide 128"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(0, 8); }), HasSubstr("must divide 128"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(256, 8); }), HasSubstr("must divide 128"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(4, 8); }), HasSubstr("use larger groups"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(16, 32); }), HasSubstr("use larger groups"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(32, 4); }), HasSubstr("16 bytes"));
  EXPECT_THAT(error_of([] { tiles::sm90_folded_scales(32, 24); }), HasSubstr("16 bytes"));
}

TEST(Sm90LegacyScales, PutAllRowsSideBySide) {
  for (const Fold& fold : {Fold{32, 8, 48, 8}, Fold{64, 16, 5, 4}, Fold{128, 8, 7, 3}}) {
    const Source source(2, fold.rows, fold.cols, fold.bits);
    const std::vector<Step> steps{Tile{tiles::sm90_legacy_scales(fold.group)}};
    const Plan plan = make_plan("made", source.stack(), steps, nullptr);
    const std::int64_t q = 128 / fold.group;
    ASSERT_THAT(plan.shape, ElementsAre(2, fold.cols / q, fold.rows * q));
    for (std::int64_t row = 0; row < fold.rows; ++row) {
      for (std::int64_t col = 0; col < fold.cols; ++col) {
        const Origin origin = plan.map.origin(col / q * fold.rows * q + row * q + col % q);
        ASSERT_EQ(origin.row, row);
        ASSERT_EQ(origin.col, col);
      }
    }
  }
  EXPECT_THAT(message(Source(1, 3, 6, 8), {Tile{tiles::sm90_legacy_scales(32)}}),
              HasSubstr("columns % 4 == 0"));
  EXPECT_THAT(error_of([] { tiles::sm90_legacy_scales(48); }), HasSubstr("must divide 128"));
}

TEST(Sm90Steps, AreKnownByName) {
  for (const char* name :
       {"sm90_weights_v2", "sm90_weights_int4", "sm90_weights_v1", "sm90_bits_fp4",
        "sm90_bits_fp4_fp8", "sm90_folded_scales(32, 8)", "sm90_legacy_scales(32)"}) {
    EXPECT_EQ(describe(parse_steps("--steps", name)[0]), name);
  }
}

}  // namespace
}  // namespace moeref
