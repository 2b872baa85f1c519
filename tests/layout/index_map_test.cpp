#include "layout/index_map.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/layout/random_map.hpp"

namespace moeref {
namespace {

using enum Axis;

IndexMap placed(std::int64_t rows, std::int64_t cols, const std::vector<Digit>& order) {
  IndexMap map(1, rows, cols, 8);
  map.place(order);
  return map;
}

TEST(IndexMap, BeginsAsIdentity) {
  const IndexMap map(2, 3, 5, 16);
  EXPECT_EQ(map.out_elements(), 15);
  EXPECT_EQ(map.out_bytes(), 30);
  for (std::int64_t place = 0; place < 15; ++place) {
    const Origin origin = map.origin(place);
    EXPECT_FALSE(origin.pad);
    EXPECT_EQ(origin.row, place / 5);
    EXPECT_EQ(origin.col, place % 5);
  }
}

TEST(IndexMap, CountsNibblesAsHalfBytes) { EXPECT_EQ(IndexMap(1, 3, 6, 4).out_bytes(), 9); }

TEST(IndexMap, PlacesTilesOneAfterTheOther) {
  const IndexMap map = placed(32, 8, {{row, 16}, {col, 4}, {row, 1, 16}, {col, 1, 4}});
  for (std::int64_t r = 0; r < 32; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      EXPECT_EQ(map.place_of(r, c), ((r / 16 * 2 + c / 4) * 16 + r % 16) * 4 + c % 4);
    }
  }
}

TEST(IndexMap, PlacesTensorCoreScalesAsTheirFormulaSays) {
  const IndexMap map =
      placed(256, 12, {{row, 128}, {col, 4}, {row, 1, 32}, {row, 32, 4}, {col, 1, 4}});
  for (std::int64_t r = 0; r < 256; ++r) {
    for (std::int64_t c = 0; c < 12; ++c) {
      EXPECT_EQ(map.place_of(r, c),
                (r / 128 * 3 + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4);
    }
  }
}

TEST(IndexMap, GivesTheRestToTheDigitWithoutASize) {
  const IndexMap map = placed(12, 10, {{col, 2}, {row, 3}, {row, 1, 3}, {col, 1, 2}});
  ASSERT_EQ(map.digits.size(), 4u);
  EXPECT_EQ(map.digits[0].size, 5);
  EXPECT_EQ(map.digits[1].size, 4);
  EXPECT_EQ(map.digits[0].stride, 24);
  EXPECT_EQ(map.digits[1].stride, 6);
  EXPECT_EQ(map.digits[2].stride, 2);
  EXPECT_EQ(map.digits[3].stride, 1);
}

TEST(IndexMap, TakesAnAxisWithoutElements) {
  const IndexMap map = placed(0, 8, {{row, 4}, {col, 1}, {row, 1, 4}});
  EXPECT_EQ(map.out_elements(), 0);
  EXPECT_EQ(map.out_bytes(), 0);
}

TEST(IndexMap, RejectsDigitsThatDoNotCoverAnAxisOnce) {
  // A weight is missing.
  EXPECT_THROW(placed(8, 8, {{row, 2}, {col, 1}}), std::invalid_argument);
  EXPECT_THROW(placed(8, 8, {{row, 4}, {row, 1, 2}, {col, 1}}), std::invalid_argument);
  // An axis is missing.
  EXPECT_THROW(placed(8, 8, {{row, 1}}), std::invalid_argument);
  EXPECT_THROW(placed(8, 8, {}), std::invalid_argument);
  // Two digits of one weight.
  EXPECT_THROW(placed(8, 8, {{row, 1, 4}, {row, 1, 2}, {col, 1}}), std::invalid_argument);
  // Too few, too many, and sizes that do not divide the axis.
  EXPECT_THROW(placed(8, 8, {{row, 1, 4}, {col, 1}}), std::invalid_argument);
  EXPECT_THROW(placed(8, 8, {{row, 1, 16}, {col, 1}}), std::invalid_argument);
  EXPECT_THROW(placed(9, 8, {{row, 4}, {row, 1, 4}, {col, 1}}), std::invalid_argument);
  // A rest that is not the last.
  EXPECT_THROW(placed(8, 8, {{row, 8, 1}, {row, 1}, {row, 1, 8}, {col, 1}}), std::invalid_argument);
}

TEST(IndexMap, LeavesTheOrderWhenDigitsAreRejected) {
  IndexMap map(1, 4, 4, 8);
  EXPECT_THROW(map.place({{row, 2}, {col, 1}}), std::invalid_argument);
  EXPECT_EQ(map.place_of(2, 3), 11);
}

TEST(IndexMap, FindsEveryElementWhereItPlacedIt) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 200; ++i) {
    const testing::RandomMap drawn = testing::random_map(random, {});
    SCOPED_TRACE(drawn.text);
    const IndexMap& map = drawn.map;
    std::vector<bool> taken(static_cast<std::size_t>(map.out_elements()));
    for (std::int64_t r = 0; r < map.rows.size(); ++r) {
      for (std::int64_t c = 0; c < map.cols.size(); ++c) {
        const std::int64_t place = map.place_of(r, c);
        ASSERT_GE(place, 0);
        ASSERT_LT(place, map.out_elements());
        ASSERT_FALSE(taken[static_cast<std::size_t>(place)]);
        taken[static_cast<std::size_t>(place)] = true;
        const Origin origin = map.origin(place);
        const bool pad = map.rows[r].is_pad() || map.cols[c].is_pad();
        ASSERT_EQ(origin.pad, pad);
        if (pad) continue;
        ASSERT_EQ(origin.row, map.rows[r].index());
        ASSERT_EQ(origin.col, map.cols[c].index());
      }
    }
  }
}

TEST(IndexMap, LetsTheLaterPadWinWhereRowsAndColumnsMeet) {
  IndexMap map(1, 1, 1, 8);
  map.rows.pad_parts(1, 2, 0, std::byte{1});
  map.cols.pad_parts(1, 2, 1, std::byte{2});
  map.rows.pad_parts(1, 3, 2, std::byte{3});
  map.place({{row, 1}, {col, 1}});
  const std::byte wanted[] = {std::byte{0}, std::byte{2}, std::byte{1},
                              std::byte{2}, std::byte{3}, std::byte{3}};
  const int steps[] = {0, 1, 0, 1, 2, 2};
  for (std::int64_t place = 1; place < 6; ++place) {
    const Origin origin = map.origin(place);
    EXPECT_TRUE(origin.pad);
    EXPECT_EQ(origin.fill, wanted[place]) << place;
    EXPECT_EQ(origin.pad_step, steps[place]) << place;
  }
}

TEST(IndexMap, GivesTheColumnsFillWhereOneStepPadsBoth) {
  IndexMap map(1, 1, 1, 8);
  map.rows.pad_parts(1, 2, 0, std::byte{1});
  map.cols.pad_parts(1, 2, 0, std::byte{2});
  map.place({{row, 1}, {col, 1}});
  EXPECT_EQ(map.origin(3).fill, std::byte{2});
  EXPECT_EQ(map.origin(2).fill, std::byte{1});
}

}  // namespace
}  // namespace moeref
