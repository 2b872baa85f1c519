#include "layout/axis_table.hpp"

#include <gtest/gtest.h>

namespace moeref {
namespace {

/// Entries as numbers: input indices, and -1 for pads.
std::vector<std::int64_t> indices(const AxisTable& table) {
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < table.size(); ++i) {
    indices.push_back(table[i].is_pad() ? -1 : table[i].index());
  }
  return indices;
}

TEST(AxisEntry, KeepsStepAndFillOfAPad) {
  for (const int step : {0, 1, 7, 1000}) {
    for (const int fill : {0, 1, 127, 128, 255}) {
      const AxisEntry pad = AxisEntry::pad(step, static_cast<std::byte>(fill));
      EXPECT_TRUE(pad.is_pad());
      EXPECT_EQ(pad.pad_step(), step);
      EXPECT_EQ(pad.fill(), static_cast<std::byte>(fill));
    }
  }
}

TEST(AxisEntry, KeepsAnIndex) {
  for (const std::int64_t index : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 40}) {
    EXPECT_FALSE(AxisEntry::index(index).is_pad());
    EXPECT_EQ(AxisEntry::index(index).index(), index);
  }
}

TEST(AxisTable, BeginsAsIdentity) {
  EXPECT_EQ(indices(AxisTable(3)), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(AxisTable(0).size(), 0);
  EXPECT_EQ(AxisTable().size(), 0);
}

TEST(AxisTable, ComposesPermutationsInTheOrderOfTheSteps) {
  AxisTable table(4);
  table.permute(4, [](std::int64_t i) { return (i + 1) % 4; });
  table.permute(4, [](std::int64_t i) { return 3 - i; });
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{0, 3, 2, 1}));
}

TEST(AxisTable, GrowsByCopiesAndShrinksByCuts) {
  AxisTable table(3);
  table.permute(6, [](std::int64_t i) { return i / 2; });
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{0, 0, 1, 1, 2, 2}));
  table.permute(2, [](std::int64_t i) { return i + 3; });
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{1, 2}));
}

TEST(AxisTable, PadsEachPartAtItsEnd) {
  AxisTable table(4);
  table.pad_parts(2, 3, 5, std::byte{0x7F});
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{0, 1, -1, 2, 3, -1}));
  EXPECT_EQ(table[2].pad_step(), 5);
  EXPECT_EQ(table[5].fill(), std::byte{0x7F});
}

TEST(AxisTable, PadsAnEmptyAxis) {
  AxisTable table(0);
  table.pad_parts(2, 2, 0, std::byte{0});
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{-1, -1, -1, -1}));
}

TEST(AxisTable, MovesPadsLikeRows) {
  AxisTable table(2);
  table.pad_parts(1, 3, 0, std::byte{1});
  table.pad_parts(1, 4, 1, std::byte{2});
  table.permute(4, [](std::int64_t i) { return 3 - i; });
  EXPECT_EQ(indices(table), (std::vector<std::int64_t>{-1, -1, 1, 0}));
  EXPECT_EQ(table[0].pad_step(), 1);
  EXPECT_EQ(table[1].pad_step(), 0);
}

TEST(AxisInverse, ListsEveryOutputOfAnInput) {
  AxisTable table(3);
  table.permute(5, [](std::int64_t i) { return i % 2; });
  table.pad_parts(1, 6, 0, std::byte{0});
  const AxisInverse inverse(table, 3);
  EXPECT_EQ(inverse[0], (std::vector<std::int64_t>{0, 2, 4}));
  EXPECT_EQ(inverse[1], (std::vector<std::int64_t>{1, 3}));
  EXPECT_TRUE(inverse[2].empty());
}

}  // namespace
}  // namespace moeref
