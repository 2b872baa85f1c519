// Scale swizzles, block layouts and half interleaving against formulas written down on their own.

#include "layout/tiles/nvidia.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <set>
#include <string>

#include "layout/step.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Sizes {
  std::int64_t experts;
  std::int64_t rows;
  std::int64_t cols;
  int bits;
};

TensorStack stack_of(const Sizes& sizes, int halves = 1) {
  TensorStack stack;
  stack.name = "scales";
  stack.dtype = sizes.bits == 32 ? DType::f32 : sizes.bits == 16 ? DType::bf16 : DType::u8;
  stack.element_bits = sizes.bits;
  stack.experts = sizes.experts;
  stack.halves = halves;
  stack.half_rows = sizes.rows / halves;
  stack.cols = sizes.cols;
  return stack;
}

Plan plan_of(const Sizes& sizes, const std::vector<Step>& steps, int halves = 1) {
  return make_plan("scales", stack_of(sizes, halves), steps, nullptr);
}

std::string message(const Sizes& sizes, const std::vector<Step>& steps, int halves = 1) {
  return error_of([&] { plan_of(sizes, steps, halves); });
}

using Place = std::function<std::int64_t(std::int64_t row, std::int64_t col)>;

/// Every element stands at `place`, and every other place is a pad of 0.
void expect_places(const Plan& plan, const Sizes& sizes, const Place& place) {
  std::set<std::int64_t> taken;
  for (std::int64_t row = 0; row < sizes.rows; ++row) {
    for (std::int64_t col = 0; col < sizes.cols; ++col) {
      const Origin origin = plan.map.origin(place(row, col));
      ASSERT_FALSE(origin.pad) << row << ", " << col;
      ASSERT_EQ(origin.row, row);
      ASSERT_EQ(origin.col, col);
      taken.insert(place(row, col));
    }
  }
  ASSERT_EQ(static_cast<std::int64_t>(taken.size()), sizes.rows * sizes.cols);
  for (std::int64_t at = 0; at < plan.map.out_elements(); ++at) {
    if (taken.count(at) != 0) continue;
    ASSERT_TRUE(plan.map.origin(at).pad) << at;
    ASSERT_EQ(plan.map.origin(at).fill, std::byte{0});
  }
}

constexpr std::array<Sizes, 6> kScales{{{1, 128, 4, 8},
                                        {2, 96, 6, 16},
                                        {3, 300, 1, 8},
                                        {1, 1, 9, 8},
                                        {2, 256, 12, 32},
                                        {1, 129, 5, 16}}};

TEST(Swizzle128x4, PutsScalesWhereTcgen05ReadsThem) {
  for (const Sizes& sizes : kScales) {
    const Plan plan = plan_of(sizes, {Tile{tiles::swizzle_128x4()}});
    const std::int64_t tiles = (sizes.cols + 3) / 4;
    expect_places(plan, sizes, [tiles](std::int64_t r, std::int64_t c) {
      return (r / 128 * tiles + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
    });
    EXPECT_THAT(plan.shape, ElementsAre(sizes.experts, (sizes.rows + 127) / 128 * 128, tiles * 4));
    EXPECT_TRUE(plan.strides.empty());
  }
}

TEST(Swizzle8x4, PutsScalesInTilesOf32) {
  for (const Sizes& sizes : kScales) {
    if (sizes.bits == 32) continue;
    const Plan plan = plan_of(sizes, {Tile{tiles::swizzle_8x4()}});
    const std::int64_t tiles = (sizes.cols + 3) / 4;
    expect_places(plan, sizes, [tiles](std::int64_t r, std::int64_t c) {
      return (r / 8 * tiles + c / 4) * 32 + r % 8 * 4 + c % 4;
    });
  }
  EXPECT_THAT(message({1, 8, 4, 32}, {Tile{tiles::swizzle_8x4()}}),
              HasSubstr("elements of 8, 16 bits, got 32"));
}

TEST(MmaView, ReachesEveryScaleThroughItsStrides) {
  const Sizes sizes{2, 300, 7, 8};
  const Plan plan = plan_of(sizes, {Tile{tiles::swizzle_128x4_mma_view()}});
  EXPECT_THAT(plan.shape, ElementsAre(32, 4, 3, 4, 2, 2));
  EXPECT_THAT(plan.strides, ElementsAre(16, 4, 1024, 1, 512, 3072));
  for (std::int64_t expert = 0; expert < 2; ++expert) {
    for (std::int64_t row = 0; row < sizes.rows; ++row) {
      for (std::int64_t col = 0; col < sizes.cols; ++col) {
        const std::array<std::int64_t, 6> index{row % 32, row % 128 / 32, row / 128,
                                                col % 4,  col / 4,        expert};
        std::int64_t place = 0;
        for (std::size_t d = 0; d < 6; ++d) place += index[d] * plan.strides[d];
        const Origin origin = plan.map.origin(place % plan.map.out_elements());
        ASSERT_EQ(place / plan.map.out_elements(), expert);
        ASSERT_EQ(origin.row, row);
        ASSERT_EQ(origin.col, col);
      }
    }
  }
}

TEST(BlockMajorK, KeepsBlocksOfColumnsTogether) {
  const Sizes sizes{2, 5, 256, 16};
  const Plan plan = plan_of(sizes, {Tile{tiles::block_major_k(64)}});
  expect_places(plan, sizes, [&sizes](std::int64_t r, std::int64_t c) {
    return (c / 64 * sizes.rows + r) * 64 + c % 64;
  });
  EXPECT_THAT(plan.shape, ElementsAre(2, 4, 5, 64));
  const Plan packed = plan_of({1, 4, 512, 4}, {Tile{tiles::block_major_k(256)}});
  EXPECT_THAT(packed.shape, ElementsAre(1, 2, 4, 128));
}

TEST(BlockMajorK, NeedsWholeBlocks) {
  EXPECT_THAT(message({1, 16, 192, 8}, {Tile{tiles::block_major_k(128)}}),
              HasSubstr("block_major_k(128) needs rows % 1 == 0 and columns % 128 == 0, got [16, "
                        "192]"));
}

TEST(InterleaveHalves, AlternatesBlocksOf64Rows) {
  const Plan plan = plan_of({1, 384, 1, 8}, {InterleaveHalves{64}}, 2);
  for (std::int64_t row = 0; row < 192; ++row) {
    const std::int64_t first = row / 64 * 128 + row % 64;
    EXPECT_EQ(plan.map.rows[first].index(), row);
    EXPECT_EQ(plan.map.rows[first + 64].index(), row + 192);
  }
}

TEST(InterleaveHalves, RejectsHalvesThatBlocksDoNotDivide) {
  EXPECT_THAT(message({1, 130, 1, 8}, {InterleaveHalves{64}}, 2),
              HasSubstr("halves that are a multiple of 64 rows, got 130"));
}

TEST(NvidiaSteps, AreKnownByName) {
  const auto steps = parse_steps("--steps", "interleave_halves(64) swizzle_128x4_mma_view");
  EXPECT_EQ(describe(steps[1]), "swizzle_128x4_mma_view");
  for (const char* name : {"swizzle_128x4", "swizzle_8x4", "block_major_k(128)"}) {
    EXPECT_EQ(describe(parse_steps("--steps", name)[0]), name);
  }
}

}  // namespace
}  // namespace moeref
