// Every step moves bytes as its stated formula says, on matrices and at the size of real blocks.

#include "layout/step.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <optional>

#include "layout/recode/float_cast.hpp"
#include "layout/tiles/nvidia.hpp"
#include "quant/error.hpp"
#include "tests/layout/random_map.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using Bytes = std::vector<std::byte>;

/// A dense tensor of bytes with its plan.
struct Subject {
  Bytes bytes;
  TensorStack stack;

  Subject(std::int64_t rows, std::int64_t cols, int halves) {
    std::mt19937_64 random(static_cast<std::uint64_t>(rows * 1000 + cols));
    bytes = testing::random_bytes(random, 2 * rows * cols);
    stack = dense_stack({"w13", DType::u8, {2, rows, cols}, bytes},
                        halves == 2 ? GateOrder::gate_up : GateOrder::none, 8);
  }
  std::byte at(std::int64_t expert, std::int64_t row, std::int64_t col) const {
    return bytes[static_cast<std::size_t>((expert * stack.rows() + row) * stack.cols + col)];
  }
};

struct Made {
  Plan plan;
  Bytes bytes;
};

Made run(const Subject& subject, const std::vector<Step>& steps) {
  Made made{make_plan("w13", subject.stack, steps, nullptr), {}};
  made.bytes.resize(static_cast<std::size_t>(made.plan.map.experts * made.plan.map.out_bytes()));
  apply(made.plan.map, subject.stack, made.plan.recoders, made.bytes, 1);
  return made;
}

/// Where element (row, col) of a row-major result comes from: an input place, or nothing for a pad.
using Source = std::function<std::optional<std::pair<std::int64_t, std::int64_t>>(
    std::int64_t row, std::int64_t col)>;

void expect_moved(const Subject& subject, const std::vector<Step>& steps, std::int64_t rows,
                  std::int64_t cols, std::byte fill, const Source& source) {
  const Made made = run(subject, steps);
  EXPECT_EQ(made.plan.shape, (Shape{2, rows, cols}));
  ASSERT_EQ(static_cast<std::int64_t>(made.bytes.size()), 2 * rows * cols);
  for (std::int64_t expert = 0; expert < 2; ++expert) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const auto from = source(row, col);
        const auto place = static_cast<std::size_t>((expert * rows + row) * cols + col);
        ASSERT_EQ(made.bytes[place], from ? subject.at(expert, from->first, from->second) : fill)
            << describe(steps.back()) << ": row " << row << ", column " << col;
      }
    }
  }
}

/// A step that moves rows only: out row -> in row.
void expect_rows(const Subject& subject, const Step& step,
                 const std::function<std::int64_t(std::int64_t)>& source) {
  expect_moved(subject, {step}, subject.stack.rows(), subject.stack.cols, std::byte{0},
               [&](std::int64_t row, std::int64_t col) {
                 return std::pair{source(row), col};
               });
}

std::int64_t same(std::int64_t row) { return row; }

TEST(SwapHalves, PutsUpBeforeGate) {
  expect_rows(Subject(10, 3, 2), SwapHalves{}, [](std::int64_t row) { return (row + 5) % 10; });
  expect_rows(Subject(10, 3, 1), SwapHalves{}, same);
}

TEST(SwapPairs, ExchangesNeighbours) {
  expect_rows(Subject(10, 3, 2), SwapPairs{},
              [](std::int64_t row) { return row % 2 == 0 ? row + 1 : row - 1; });
  expect_rows(Subject(9, 3, 1), SwapPairs{}, same);
}

TEST(InterleaveHalves, AlternatesBlocksOfGateAndUp) {
  for (const std::int64_t block : {1, 8, 16, 64}) {
    const std::int64_t half = 3 * block;
    std::vector<std::int64_t> source(static_cast<std::size_t>(2 * half));
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t r = 0; r < half; ++r) {
        source[static_cast<std::size_t>((2 * (r / block) + h) * block + r % block)] = h * half + r;
      }
    }
    expect_rows(Subject(2 * half, 5, 2), InterleaveHalves{block},
                [&](std::int64_t row) { return source[static_cast<std::size_t>(row)]; });
  }
  expect_rows(Subject(7, 5, 1), InterleaveHalves{64}, same);
}

TEST(ShuffleRows, ShufflesInsideBlocks) {
  for (const std::int64_t tile : {64, 128, 192, 256}) {
    const std::int64_t block = tile == 128 || tile == 256 ? 32 : 16;
    expect_rows(Subject(3 * block, 2, 1), ShuffleRows{tile}, [block](std::int64_t row) {
      const std::int64_t b = row / block * block;
      const std::int64_t j = row % block;
      return b + j % 8 * (block / 8) + j / 8;
    });
  }
}

TEST(ShuffleRows, HasTheFirstRowsOfTheOriginal) {
  // get_shuffle_matrix_a_row_indices: with 32 rows, out row 1 is in row 4, out row 8 is in row 1.
  const Made made = run(Subject(32, 1, 1), {ShuffleRows{128}});
  EXPECT_EQ(made.plan.map.rows[1].index(), 4);
  EXPECT_EQ(made.plan.map.rows[8].index(), 1);
  EXPECT_EQ(made.plan.map.rows[31].index(), 31);
}

TEST(PadHalves, AppendsRowsToEachHalf) {
  const Subject subject(10, 3, 2);
  const Source source =
      [](std::int64_t row,
         std::int64_t col) -> std::optional<std::pair<std::int64_t, std::int64_t>> {
    if (row % 8 >= 5) return std::nullopt;
    return std::pair{row / 8 * 5 + row % 8, col};
  };
  expect_moved(subject, {PadHalves{.multiple = 8}}, 16, 3, std::byte{0}, source);
  expect_moved(subject, {PadHalves{.to = 8, .fill = std::byte{0x7F}}}, 16, 3, std::byte{0x7F},
               source);
  EXPECT_TRUE(run(subject, {PadHalves{.multiple = 5}}).plan.map.pad_steps.empty());
}

TEST(PadRows, AppendsRowsAfterAll) {
  const Subject subject(10, 3, 2);
  const Source source =
      [](std::int64_t row,
         std::int64_t col) -> std::optional<std::pair<std::int64_t, std::int64_t>> {
    if (row >= 10) return std::nullopt;
    return std::pair{row, col};
  };
  expect_moved(subject, {PadRows{.multiple = 16}}, 16, 3, std::byte{0}, source);
  expect_moved(subject, {PadRows{.to = 11, .fill = std::byte{9}}}, 11, 3, std::byte{9}, source);
}

TEST(PadCols, AppendsColumns) {
  const Subject subject(4, 5, 1);
  const Source source =
      [](std::int64_t row,
         std::int64_t col) -> std::optional<std::pair<std::int64_t, std::int64_t>> {
    if (col >= 5) return std::nullopt;
    return std::pair{row, col};
  };
  expect_moved(subject, {PadCols{.multiple = 8}}, 4, 8, std::byte{0}, source);
  expect_moved(subject, {PadCols{.to = 6, .fill = std::byte{1}}}, 4, 6, std::byte{1}, source);
}

TEST(PermuteRuns, ReordersInsideRuns) {
  expect_rows(Subject(12, 2, 1), PermuteRuns{"reverse", {3, 2, 1, 0}},
              [](std::int64_t row) { return row / 4 * 4 + 3 - row % 4; });
}

TEST(RepeatRows, WritesEveryRowSeveralTimes) {
  const Subject subject(4, 2, 1);
  const Source source = [](std::int64_t row, std::int64_t col) { return std::pair{row / 3, col}; };
  expect_moved(subject, {RepeatRows{.times = 3}}, 12, 2, std::byte{0}, source);
  expect_moved(subject, {RepeatRows{.times = 3, .rows = 10}}, 10, 2, std::byte{0}, source);
}

TEST(Tile, OrdersAndPadsByItsDigits) {
  const Subject subject(100, 6, 1);
  const Made made = run(subject, {Tile{tiles::swizzle_128x4()}});
  EXPECT_EQ(made.plan.map.pad_steps, std::vector<std::string>{"swizzle_128x4"});
  ASSERT_EQ(made.bytes.size(), 2u * 128 * 8);
  for (std::int64_t expert = 0; expert < 2; ++expert) {
    for (std::int64_t r = 0; r < 128; ++r) {
      for (std::int64_t c = 0; c < 8; ++c) {
        const std::int64_t place = expert * 1024 + c / 4 * 512 + r % 32 * 16 + r / 32 * 4 + c % 4;
        const bool pad = r >= 100 || c >= 6;
        ASSERT_EQ(made.bytes[static_cast<std::size_t>(place)],
                  pad ? std::byte{0} : subject.at(expert, r, c));
      }
    }
  }
}

TEST(PermuteBits, MovesBitsAfterTheTile) {
  std::array<int, 32> source;
  std::iota(source.begin(), source.end(), 0);
  std::swap(source[0], source[31]);
  const auto bits = std::make_shared<BitPermutation>("ends", source);
  const Subject subject(4, 8, 1);
  const std::vector<Digit> digits{{Axis::col, 1}, {Axis::row, 1}};
  const Step transposed = Tile{{.name = "transposed", .digits = digits, .bits = {8}}};
  const Made plain = run(subject, {transposed});
  const Made moved = run(subject, {transposed, PermuteBits{bits}});
  for (std::size_t word = 0; word < plain.bytes.size(); word += 4) {
    const auto before = load<std::uint32_t>(plain.bytes.data() + word);
    const auto after = load<std::uint32_t>(moved.bytes.data() + word);
    EXPECT_EQ(after, (before & 0x7FFFFFFEu) | before >> 31 | before << 31);
  }
}

TEST(Recode, RewritesCodesBeforeTheyMove) {
  const Step recode =
      Recode{.name = "halve",
             .summary = "the low nibble of each byte",
             .out_bits = 4,
             .dtype = DType::u8,
             .make = [](const LayerTensors&) { return testing::resize_recoder(8, 4); },
             .needs_layer = false};
  const Subject subject(4, 6, 2);
  const Made made = run(subject, {recode, SwapHalves{}});
  EXPECT_EQ(made.plan.shape, (Shape{2, 4, 3}));
  EXPECT_EQ(made.plan.map.element_bits, 4);
  for (std::int64_t row = 0; row < 4; ++row) {
    for (std::int64_t pair = 0; pair < 3; ++pair) {
      const std::byte low = subject.at(1, (row + 2) % 4, 2 * pair) & std::byte{15};
      const std::byte high = subject.at(1, (row + 2) % 4, 2 * pair + 1) << 4;
      EXPECT_EQ(made.bytes[static_cast<std::size_t>(12 + row * 3 + pair)], low | high);
    }
  }
}

TEST(Steps, ComposeInTheirOrder) {
  const Subject subject(12, 3, 2);
  expect_moved(subject, {SwapHalves{}, PadHalves{.to = 8}, PadCols{.to = 4}, InterleaveHalves{1}},
               16, 4, std::byte{0},
               [](std::int64_t row,
                  std::int64_t col) -> std::optional<std::pair<std::int64_t, std::int64_t>> {
                 if (row / 2 >= 6 || col == 3) return std::nullopt;
                 return std::pair{(row % 2 == 0 ? 6 : 0) + row / 2, col};
               });
}

std::string plan_error(const TensorStack& stack, const std::vector<Step>& steps) {
  return error_of([&] { make_plan("w13", stack, steps, nullptr); });
}

TEST(Steps, RejectInOneLineThatNamesTheTensor) {
  const Subject odd(6, 6, 2);
  TensorStack three = odd.stack;
  three.half_rows = 3;
  const std::vector<std::pair<Step, std::string>> cases{
      {InterleaveHalves{2},
       "w13: interleave_halves needs halves that are a multiple of 2 rows, got 6 rows in all; put "
       "pad_halves(2) before it"},
      {ShuffleRows{128},
       "w13: shuffle_rows needs rows that are a multiple of 32 (epilogue tile 128), got 6; put a "
       "pad before it"},
      {ShuffleRows{64},
       "w13: shuffle_rows needs rows that are a multiple of 16 (epilogue tile 64), got 6; put a "
       "pad before it"},
      {PadHalves{.to = 2}, "w13: pad_halves needs at most 2 rows or columns, got 3; pad to more"},
      {PadRows{.to = 4}, "w13: pad_rows needs at most 4 rows or columns, got 6; pad to more"},
      {PadCols{.to = 4}, "w13: pad_cols needs at most 4 rows or columns, got 6; pad to more"},
      {PermuteRuns{"marlin_scales", {1, 0, 3, 2}},
       "w13: marlin_scales needs a multiple of 4 rows, got 6"},
      {RepeatRows{.times = 2, .rows = 13},
       "w13: repeat_rows needs at least 13 rows after repeating, got 12"},
      {Tile{tiles::block_major_k(4)},
       "w13: block_major_k(4) needs rows % 1 == 0 and columns % 4 == 0, got [6, 6]; put a pad "
       "before it"},
  };
  for (const auto& [step, message] : cases) EXPECT_EQ(plan_error(three, {step}), message);
}

TEST(Steps, RejectElementsOfAnotherSize) {
  TensorStack nibbles = Subject(6, 6, 2).stack;
  nibbles.element_bits = 4;
  EXPECT_EQ(plan_error(nibbles, {Tile{tiles::swizzle_128x4()}}),
            "w13: swizzle_128x4 needs elements of 8, 16, 32 bits, got 4");
  const Step recode =
      Recode{.name = "widen",
             .summary = "",
             .out_bits = 16,
             .dtype = DType::bf16,
             .make = [](const LayerTensors&) { return testing::resize_recoder(8, 16); },
             .needs_layer = false};
  EXPECT_EQ(plan_error(nibbles, {recode}), "w13: widen needs elements of 8 bits, got 4");
}

TEST(Steps, RejectAnOddNumberOfRowsOfTwoHalves) {
  const Subject subject(6, 2, 2);
  for (const Step& step : {Step{SwapHalves{}}, Step{SwapPairs{}}}) {
    EXPECT_EQ(plan_error(subject.stack, {PadRows{.to = 7}, step}),
              "w13: " + describe(step) + " needs an even number of rows, got 7");
  }
  EXPECT_EQ(plan_error(subject.stack, {PadRows{.to = 7}, InterleaveHalves{1}}),
            "w13: interleave_halves needs halves that are a multiple of 1 rows, got 7 rows in all; "
            "put pad_halves(1) before it");
}

TEST(Steps, RejectWordsThatAreNotWhole) {
  std::array<int, 32> source;
  std::iota(source.begin(), source.end(), 0);
  const auto bits = std::make_shared<BitPermutation>("same_bits", source);
  EXPECT_EQ(plan_error(Subject(3, 3, 1).stack, {PermuteBits{bits}}),
            "w13: same_bits needs whole 32-bit words");
}

TEST(Steps, RejectAnythingAfterBits) {
  std::array<int, 32> source;
  std::iota(source.begin(), source.end(), 0);
  const Step bits = PermuteBits{std::make_shared<BitPermutation>("same_bits", source)};
  const Subject subject(128, 4, 2);
  for (const Step& step : {bits, Step{SwapHalves{}}, Step{Tile{tiles::swizzle_128x4()}}}) {
    EXPECT_EQ(plan_error(subject.stack, {bits, step}),
              "w13: " + describe(step) +
                  " cannot follow same_bits, which moves the bits of whole words; put it before");
  }
}

TEST(Steps, RejectARecodingAfterAPad) {
  const Subject subject(6, 2, 2);
  const Recode recode = recode::cast_floats(Slot::w13_bias, DType::f32);
  for (const Step& pad : {Step{PadRows{.to = 7}}, Step{PadHalves{.to = 3}}, Step{PadCols{}}}) {
    EXPECT_EQ(
        plan_error(subject.stack, {pad, recode}),
        "w13: cast_to_f32 cannot follow a pad, whose bytes it would leave as they are; put it "
        "before");
  }
}

TEST(Steps, RejectMoreElementsThanATensorHas) {
  const Subject subject(6, 2, 1);
  const auto refusal = [&](std::int64_t most, const Step& step) {
    return error_of(
        [&] { make_plan("w13", subject.stack, std::vector<Step>{step}, nullptr, most); });
  };
  EXPECT_EQ(refusal(23, PadRows{.to = 6}),
            "w13: it makes 2 x [6, 2] elements, more than the tensor can have");
  EXPECT_EQ(refusal(27, PadRows{.to = 7}),
            "w13: pad_rows makes 2 x [7, 2] elements, more than the tensor can have");
  EXPECT_EQ(refusal(28, PadRows{.to = 7}), "no error");
  EXPECT_EQ(refusal(35, PadCols{.to = 3}),
            "w13: pad_cols makes 2 x [6, 3] elements, more than the tensor can have");
  EXPECT_EQ(refusal(47, RepeatRows{.times = 2}),
            "w13: repeat_rows makes 2 x [12, 2] elements, more than the tensor can have");
  EXPECT_EQ(refusal(1023, Tile{tiles::swizzle_128x4()}),
            "w13: swizzle_128x4 makes 2 x [128, 4] elements, more than the tensor can have");
  EXPECT_EQ(refusal(1024, Tile{tiles::swizzle_128x4()}), "no error");
  EXPECT_EQ(refusal(512, RepeatRows{.times = std::int64_t{1} << 62}),
            "w13: repeat_rows needs at most 512 rows, got 6 x 4611686018427387904");
}

TEST(Steps, RejectAnythingButBitsAfterATile) {
  const Subject subject(128, 4, 2);
  for (const Step& step :
       {Step{SwapHalves{}}, Step{PadRows{.multiple = 2}}, Step{Tile{tiles::swizzle_8x4()}}}) {
    EXPECT_EQ(
        plan_error(subject.stack, {Tile{tiles::swizzle_128x4()}, step}),
        "w13: " + describe(step) + " cannot follow the order that is already set; put it before");
  }
}

}  // namespace
}  // namespace moeref
