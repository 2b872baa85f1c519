// Steps count weight rows and columns, also on scales; names and errors of steps.

#include "layout/step.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "layout/tiles/nvidia.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TensorStack scale_rows(std::int64_t rows, std::int64_t block_rows) {
  TensorStack stack;
  stack.name = "scales";
  stack.experts = 1;
  stack.halves = 2;
  stack.half_rows = rows / 2;
  stack.cols = 1;
  stack.block_rows = block_rows;
  stack.block_cols = block_rows;
  return stack;
}

std::vector<std::int64_t> sources(const Plan& planned) {
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < planned.map.rows.size(); ++i) {
    const AxisEntry entry = planned.map.rows[i];
    rows.push_back(entry.is_pad() ? -1 : entry.index());
  }
  return rows;
}

std::vector<std::int64_t> moved(std::int64_t rows, std::int64_t block_rows,
                                const std::vector<Step>& steps) {
  return sources(make_plan("scales", scale_rows(rows, block_rows), steps, nullptr));
}

TEST(Steps, CountScaleRowsInBlocks) {
  EXPECT_EQ(moved(4, 128, {SwapHalves{}}), (std::vector<std::int64_t>{2, 3, 0, 1}));
  EXPECT_EQ(moved(4, 128, {PadHalves{.to = 384}}), (std::vector<std::int64_t>{0, 1, -1, 2, 3, -1}));
  EXPECT_EQ(moved(4, 128, {PadRows{.multiple = 64}}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(moved(4, 32, {InterleaveHalves{64}}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(moved(4, 64, {InterleaveHalves{64}}), (std::vector<std::int64_t>{0, 2, 1, 3}));
}

TEST(Steps, LeaveScalesOfMovesInsideABlock) {
  EXPECT_EQ(moved(4, 128, {ShuffleRows{128}}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(moved(4, 16, {ShuffleRows{64}}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(moved(4, 128, {SwapPairs{}}), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_THAT(error_of([] { moved(64, 16, {ShuffleRows{128}}); }),
              HasSubstr("shuffle_rows moves rows inside 32 rows, the scale blocks have 16"));
  EXPECT_THAT(error_of([] { moved(4, 128, {InterleaveHalves{1}}); }),
              HasSubstr("interleave_halves needs scales of at most 1 rows, got blocks of 128"));
}

TEST(Steps, KeepOneScaleForAWholeAxis) {
  EXPECT_EQ(moved(2, kWholeAxis, {SwapHalves{}, PadHalves{.to = 4096}, PadRows{.multiple = 96}}),
            (std::vector<std::int64_t>{1, 0}));
  const Plan planned = make_plan("scales", scale_rows(2, kWholeAxis),
                                 std::vector<Step>{PadCols{.to = 4096}}, nullptr);
  EXPECT_EQ(planned.map.cols.size(), 1);
}

TEST(Steps, CountRepeatedScalesByTheirNewRows) {
  EXPECT_EQ(moved(2, 2, {RepeatRows{.times = 2}, PadRows{.to = 5}}),
            (std::vector<std::int64_t>{0, 0, 1, 1, -1}));
}

TEST(Steps, SetTheOrderAfterEveryPad) {
  TensorStack stack = scale_rows(4, 1);
  stack.cols = 3;
  const Plan planned =
      make_plan("matrix", stack,
                std::vector<Step>{PadHalves{.multiple = 3}, PadCols{.multiple = 4}}, nullptr);
  EXPECT_EQ(planned.shape, (Shape{1, 6, 4}));
  const Origin element = planned.map.origin(3 * 4 + 1);
  EXPECT_FALSE(element.pad);
  EXPECT_EQ(element.row, 2);
  EXPECT_EQ(element.col, 1);
  EXPECT_TRUE(planned.map.origin(2 * 4).pad);
  EXPECT_TRUE(planned.map.origin(3).pad);
  EXPECT_EQ(planned.map.place_of(3, 1), 13);
}

TEST(Steps, RejectWhatDoesNotFit) {
  const auto failure = [](std::int64_t rows, const Step& step) {
    return error_of([&] { moved(rows, 1, {step}); });
  };
  for (const std::int64_t rows : {16, 24}) {
    EXPECT_THAT(failure(rows, ShuffleRows{128}), HasSubstr("multiple of 32 (epilogue tile 128)"));
  }
  EXPECT_THAT(failure(24, ShuffleRows{64}), HasSubstr("multiple of 16 (epilogue tile 64)"));
  EXPECT_EQ(failure(48, ShuffleRows{192}), "no error");
  EXPECT_THAT(failure(130, InterleaveHalves{64}), HasSubstr("halves that are a multiple of 64"));
  EXPECT_THAT(failure(4, PadHalves{.to = 1}), HasSubstr("pad_halves needs at most 1"));
  EXPECT_THAT(error_of([] {
                make_plan("w", scale_rows(4, 1), std::vector<Step>{Tile{tiles::block_major_k(128)}},
                          nullptr);
              }),
              HasSubstr("columns % 128 == 0"));
  EXPECT_THAT(error_of([] {
                make_plan("w", scale_rows(4, 1),
                          std::vector<Step>{Tile{tiles::swizzle_128x4()}, SwapHalves{}}, nullptr);
              }),
              HasSubstr("swap_halves cannot follow the order that is already set"));
  TensorStack odd = scale_rows(4, 1);
  odd.element_bits = 4;
  odd.cols = 961;
  EXPECT_THAT(error_of([&] { start_plan("w2", odd); }), HasSubstr("has 961 FP4 columns"));
}

TEST(ParseSteps, ReadsWhatDescribeWrites) {
  const std::vector<Step> steps =
      parse_steps("--steps", "swap_halves, shuffle_rows(128) pad_halves( 64 ) swizzle_128x4");
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_EQ(describe(steps[1]), "shuffle_rows(128)");
  EXPECT_EQ(describe(steps[2]), "pad_halves(64)");
  EXPECT_EQ(describe(steps[3]), "swizzle_128x4");
}

TEST(ParseSteps, RejectsUnknownNamesAndParameters) {
  const auto failure = [](const std::string& text) {
    return error_of([&] { parse_steps("--steps", text); });
  };
  EXPECT_THAT(failure("swap_halfs"),
              AllOf(HasSubstr("'swap_halfs' is no step"), HasSubstr("is it swap_halves")));
  EXPECT_THAT(failure("shuffle_rows"),
              HasSubstr("has 0 parameters; write shuffle_rows(epilogue_tile)"));
  EXPECT_THAT(failure("swap_halves(1)"), HasSubstr("has 1 parameters; write swap_halves"));
  EXPECT_THAT(failure("shuffle_rows(x)"), HasSubstr("parameters are integers from 1 to 1048576"));
  EXPECT_THAT(failure("shuffle_rows(128"), HasSubstr("no closing parenthesis"));
}

}  // namespace
}  // namespace moeref
