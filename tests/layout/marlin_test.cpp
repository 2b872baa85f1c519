#include "layout/tiles/marlin.hpp"

#include <gtest/gtest.h>

#include <array>
#include <utility>
#include <vector>

#include "quant/error.hpp"

namespace moeref {
namespace {

/// The place of row n, column k, in codes; the formula of the kernel's tile routine.
std::int64_t repacked_place(int bits, bool eight_bit, std::int64_t size_n, std::int64_t n,
                            std::int64_t k) {
  const std::int64_t col = n % 8;
  std::int64_t word = 0;
  std::int64_t inside = 0;
  if (!eight_bit) {
    const std::int64_t k8 = k % 16 / 8;
    const std::int64_t t = k % 8 / 2;
    const std::int64_t k1 = k % 2;
    const std::int64_t tile = k / 16 * (size_n / 64) + n / 64;
    const std::int64_t w = n % 64 / 16;
    const std::int64_t h = n % 16 / 8;
    const std::int64_t lane = 4 * col + t;
    word = bits == 4 ? tile * 128 + 4 * lane + w : tile * 256 + 8 * lane + 2 * w + h;
    inside = bits == 4 ? 4 * k1 + 2 * h + k8 : 2 * k1 + k8;
  } else {
    const std::int64_t half = k % 32 / 16;
    const std::int64_t t = k % 16 / 4;
    const std::int64_t m = k % 4;
    const std::int64_t tile = k / 32 * (size_n / 32) + n / 32;
    const std::int64_t j = n % 32 / 16;
    const std::int64_t blk = n % 16 / 8;
    const std::int64_t lane = 4 * col + t;
    word = bits == 4 ? tile * 128 + 4 * lane + 2 * j + blk
                     : tile * 256 + 8 * lane + 4 * j + 2 * blk + half;
    inside = bits == 4 ? 2 * m + half : m;
  }
  return word * (32 / bits) + inside;
}

TensorStack empty_stack(int bits, std::int64_t experts, std::int64_t rows, std::int64_t cols) {
  TensorStack stack;
  stack.name = "w";
  stack.element_bits = bits;
  stack.dtype = bits == 16 ? DType::bf16 : DType::u8;
  stack.experts = experts;
  stack.half_rows = rows;
  stack.cols = cols;
  return stack;
}

Plan plan_of(const TensorStack& stack, const std::vector<Step>& steps) {
  return make_plan("w", stack, steps, nullptr);
}

TEST(MarlinRepack, PutsEveryCodeWhereTheKernelsTileRoutineDoes) {
  for (const bool eight_bit : {false, true}) {
    for (const int bits : {4, 8}) {
      for (const auto& [n, k] :
           std::vector<std::pair<std::int64_t, std::int64_t>>{{64, 32}, {192, 96}, {128, 160}}) {
        const Plan plan =
            plan_of(empty_stack(bits, 3, n, k), {Tile{tiles::marlin_repack(bits, eight_bit)}});
        EXPECT_EQ(plan.dtype, DType::i32);
        EXPECT_EQ(plan.shape, (Shape{3, k / 16, n * 16 * bits / 32}));
        for (std::int64_t row = 0; row < n; ++row) {
          for (std::int64_t col = 0; col < k; ++col) {
            ASSERT_EQ(plan.map.place_of(row, col), repacked_place(bits, eight_bit, n, row, col))
                << bits << " bits, n " << row << " k " << col;
          }
        }
      }
    }
  }
}

TEST(MarlinRepack, RefusesWhatTheTilesDoNotDivide) {
  const auto repack = [](int bits, bool eight_bit, std::int64_t n, std::int64_t k) {
    plan_of(empty_stack(bits, 1, n, k), {Tile{tiles::marlin_repack(bits, eight_bit)}});
  };
  EXPECT_THROW(repack(4, false, 96, 32), Error);
  EXPECT_THROW(repack(8, false, 64, 24), Error);
  EXPECT_THROW(repack(8, true, 64, 48), Error);
  EXPECT_THROW(repack(4, true, 48, 32), Error);
  EXPECT_NO_THROW(repack(4, true, 96, 32));
  EXPECT_THROW(tiles::marlin_repack(2, false), Error);
}

/// The rows that stand along n after the step.
std::vector<std::int64_t> order_of(const PermuteRuns& step, std::int64_t rows) {
  const Plan plan = plan_of(empty_stack(8, 1, rows, 1), {step});
  std::vector<std::int64_t> order;
  for (std::int64_t row = 0; row < rows; ++row) order.push_back(plan.map.rows[row].index());
  return order;
}

TEST(MarlinScaleOrder, IsGroupWiseInRunsOf64) {
  const auto order = order_of(tiles::marlin_scale_order(256, 32, false), 128);
  for (std::int64_t q = 0; q < 2; ++q) {
    for (std::int64_t i = 0; i < 8; ++i) {
      for (std::int64_t j = 0; j < 8; ++j) {
        EXPECT_EQ(order[static_cast<std::size_t>(64 * q + 8 * i + j)], 64 * q + i + 8 * j);
      }
    }
  }
}

TEST(MarlinScaleOrder, IsSingleInRunsOf32WithoutGroupsOrWithOne) {
  constexpr std::array<std::int64_t, 8> kLanes{0, 1, 8, 9, 16, 17, 24, 25};
  for (const PermuteRuns& step :
       {tiles::marlin_scale_order(256, 0, false), tiles::marlin_scale_order(256, -1, false),
        tiles::marlin_scale_order(32, 32, false), tiles::marlin_scale_order(16, 32, false),
        tiles::marlin_scale_order(256, 32, true)}) {
    const auto order = order_of(step, 96);
    for (std::int64_t q = 0; q < 3; ++q) {
      for (std::int64_t i = 0; i < 4; ++i) {
        for (std::int64_t u = 0; u < 8; ++u) {
          EXPECT_EQ(order[static_cast<std::size_t>(32 * q + 8 * i + u)],
                    32 * q + 2 * i + kLanes[static_cast<std::size_t>(u)]);
        }
      }
    }
  }
}

TEST(MarlinGroupPairs, AlternatesTwoGroupsInRunsOf8) {
  constexpr std::int64_t kRows = 64;
  const Plan plan = plan_of(empty_stack(8, 1, kRows, 6), {Tile{tiles::marlin_group_pairs()}});
  EXPECT_EQ(plan.shape, (Shape{1, 6, kRows}));
  for (std::int64_t p = 0; p < kRows; ++p) {
    for (std::int64_t g = 0; g < 6; ++g) {
      EXPECT_EQ(plan.map.place_of(p, g), g / 2 * 2 * kRows + p / 8 * 16 + g % 2 * 8 + p % 8);
    }
  }
  EXPECT_THROW(plan_of(empty_stack(8, 1, kRows, 5), {Tile{tiles::marlin_group_pairs()}}), Error);
}

TEST(MarlinGroupMajor, PutsRowsSideBySide) {
  const Plan plan = plan_of(empty_stack(16, 2, 64, 3), {Tile{tiles::marlin_group_major()}});
  EXPECT_EQ(plan.shape, (Shape{2, 3, 64}));
  EXPECT_EQ(plan.map.place_of(5, 2), 2 * 64 + 5);
}

TEST(MarlinSteps, AreNamedForCommands) {
  const auto steps = parse_steps(
      "--steps", "marlin_s0e5m3(2) marlin_permute_groups marlin_swap_quads marlin_group_pairs");
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_EQ(describe(steps[0]), "marlin_s0e5m3(2)");
  EXPECT_EQ(describe(parse_steps("--steps", "marlin_repack_a8(4)").front()), "marlin_repack_a8(4)");
  EXPECT_THROW(parse_steps("--steps", "marlin_repack(5)"), Error);
}

}  // namespace
}  // namespace moeref
