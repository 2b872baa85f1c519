#include "layout/transform.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "quant/error.hpp"
#include "tests/layout/random_map.hpp"
#include "tests/layout/slow_transform.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using Bytes = std::vector<std::byte>;
using testing::RandomMap;

constexpr std::byte kUntouched{0xA5};

std::size_t out_size(const IndexMap& map) {
  return static_cast<std::size_t>(map.experts * map.out_bytes());
}

std::size_t restored_size(const RandomMap& drawn) {
  const IndexMap& map = drawn.map;
  return static_cast<std::size_t>(map.experts * map.in_rows * map.in_cols *
                                  restored_bits(map, drawn.recoders) / 8);
}

Bytes apply_fast(const RandomMap& drawn, int threads) {
  Bytes out(out_size(drawn.map), kUntouched);
  apply(drawn.map, drawn.stack, drawn.recoders, out, threads);
  return out;
}

Bytes apply_slow(const RandomMap& drawn) {
  Bytes out(out_size(drawn.map));
  judge::slow_apply(drawn.map, drawn.stack, drawn.recoders, out);
  return out;
}

void expect_same_report(const UndoReport& fast, const UndoReport& slow) {
  EXPECT_EQ(fast.pads, slow.pads);
  EXPECT_EQ(fast.wrong_pads, slow.wrong_pads);
  EXPECT_EQ(fast.first_wrong_pad, slow.first_wrong_pad);
  EXPECT_EQ(fast.copies, slow.copies);
  EXPECT_EQ(fast.wrong_copies, slow.wrong_copies);
  EXPECT_EQ(fast.first_wrong_copy, slow.first_wrong_copy);
}

void expect_same_undo(const RandomMap& drawn, const Bytes& placed, int threads) {
  Bytes fast(restored_size(drawn), kUntouched);
  Bytes slow(restored_size(drawn));
  const UndoReport fast_report = undo(drawn.map, placed, drawn.recoders, fast, threads);
  const UndoReport slow_report = judge::slow_undo(drawn.map, placed, drawn.recoders, slow);
  EXPECT_EQ(fast, slow);
  expect_same_report(fast_report, slow_report);
}

void expect_same_as_slow(std::uint64_t seed, int cases, const testing::MapSizes& sizes) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < cases; ++i) {
    const RandomMap drawn = testing::random_map(random, sizes);
    SCOPED_TRACE("case " + std::to_string(i) + ": " + drawn.text);
    constexpr int kThreads[] = {1, 2, 7};
    const int threads = kThreads[i % 3];
    const Bytes placed = apply_fast(drawn, threads);
    ASSERT_EQ(placed, apply_slow(drawn));
    expect_same_undo(drawn, placed, threads);
    Bytes damaged = placed;
    for (std::size_t byte = 0; byte < damaged.size(); byte += 1 + random() % 40) {
      damaged[byte] ^= std::byte{0x11};
    }
    expect_same_undo(drawn, damaged, threads);
    if (::testing::Test::HasFailure()) return;
  }
}

/// One expert after the other, dense.
RandomMap dense_map(std::int64_t experts, std::int64_t rows, std::int64_t cols, int bits) {
  std::mt19937_64 random(static_cast<std::uint64_t>(rows * cols + bits));
  RandomMap drawn;
  drawn.map = IndexMap(experts, rows, cols, bits);
  drawn.storage = testing::random_bytes(random, experts * rows * cols * bits / 8);
  drawn.stack.name = "w13";
  drawn.stack.element_bits = bits;
  drawn.stack.experts = experts;
  drawn.stack.half_rows = rows;
  drawn.stack.cols = cols;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    drawn.stack.planes.push_back({drawn.storage.data(), expert * rows * cols, cols, 1});
  }
  return drawn;
}

void expect_same_as_slow(const RandomMap& drawn) {
  const Bytes placed = apply_fast(drawn, 2);
  ASSERT_EQ(placed, apply_slow(drawn));
  expect_same_undo(drawn, placed, 2);
}

TEST(Transform, TakesNoExperts) {
  const RandomMap none = dense_map(0, 4, 8, 8);
  expect_same_as_slow(none);
}

TEST(Transform, MovesAsTheSlowOneForSmallRandomMaps) { expect_same_as_slow(1, 800, {}); }

TEST(Transform, MovesAsTheSlowOneForLongRows) {
  expect_same_as_slow(2, 60, {.max_experts = 2, .max_rows = 20, .max_cols = 6000});
}

TEST(Transform, MovesAsTheSlowOneForManyRows) {
  expect_same_as_slow(3, 60, {.max_experts = 2, .max_rows = 1500, .max_cols = 100});
}

TEST(Transform, MovesAsTheSlowOneForSeveralBoxesEachWay) {
  expect_same_as_slow(4, 25, {.max_experts = 2, .max_rows = 300, .max_cols = 1600});
}

TEST(Transform, MovesAsTheSlowOneForManyExperts) {
  expect_same_as_slow(5, 60, {.max_experts = 70, .max_rows = 6, .max_cols = 40});
}

TEST(Transform, MovesAsTheSlowOneForTheOrdersOfKernels) {
  using enum Axis;
  struct Order {
    std::string name;
    std::vector<int> bits;
    std::int64_t rows;
    std::int64_t cols;
    std::vector<Digit> digits;
  };
  const std::vector<Order> orders{
      {"marlin",
       {4, 8, 16},
       192,
       352,
       {{col, 16},
        {row, 64},
        {row, 1, 8},
        {col, 2, 4},
        {row, 16, 4},
        {col, 1, 2},
        {row, 8, 2},
        {col, 8, 2}}},
      {"hopper value",
       {4, 8},
       96,
       384,
       {{row, 16},
        {row, 2, 4},
        {col, 64},
        {row, 1, 2},
        {col, 2, 4},
        {col, 16, 4},
        {col, 8, 2},
        {row, 8, 2},
        {col, 1, 2}}},
      {"nibble order", {4}, 48, 160, {{row, 1}, {col, 8}, {col, 4, 2}, {col, 1, 4}}},
      {"nibbles by rows of pairs", {4}, 38, 90, {{row, 2}, {col, 1}, {row, 1, 2}}},
      {"tensor core scales",
       {8, 16, 32},
       256,
       92,
       {{row, 128}, {col, 4}, {row, 1, 32}, {row, 32, 4}, {col, 1, 4}}},
      {"16 x 16 tiles",
       {4, 8, 16, 32},
       96,
       160,
       {{row, 16}, {col, 16}, {row, 1, 16}, {col, 1, 16}}},
      {"K blocks", {4, 8, 16}, 67, 384, {{col, 128}, {row, 1}, {col, 1, 128}}},
      {"transposed", {4, 8, 16, 32}, 130, 90, {{col, 1}, {row, 1}}},
      {"transposed, odd columns", {8, 16, 32}, 200, 89, {{col, 1}, {row, 1}}},
      {"transposed, odd rows", {8, 16, 32}, 201, 88, {{col, 1}, {row, 1}}},
      {"transposed, a prime of rows", {8}, 5003, 24, {{col, 1}, {row, 1}}},
      {"runs of three", {8, 16}, 90, 63, {{col, 3}, {row, 1}, {col, 1, 3}}},
      {"wide weights", {4, 8, 16}, 512, 64, {{row, 1, 256}, {col, 1}, {row, 256}}},
  };
  for (const Order& order : orders) {
    for (const int bits : order.bits) {
      SCOPED_TRACE(order.name + ", " + std::to_string(bits) + " bits");
      RandomMap drawn = dense_map(2, order.rows, order.cols, bits);
      drawn.map.place(order.digits);
      expect_same_as_slow(drawn);
    }
  }
}

TEST(Transform, GivesTheSameBytesForAnyNumberOfThreads) {
  std::mt19937_64 random(6);
  for (int i = 0; i < 8; ++i) {
    const RandomMap drawn =
        testing::random_map(random, {.max_experts = 5, .max_rows = 400, .max_cols = 800});
    SCOPED_TRACE(drawn.text);
    const Bytes one = apply_fast(drawn, 1);
    for (const int threads : {0, 2, 3, 7}) EXPECT_EQ(apply_fast(drawn, threads), one);
  }
}

TEST(Transform, FillsATensorWithoutRows) {
  RandomMap drawn = dense_map(3, 0, 8, 8);
  drawn.map.rows.pad_parts(1, 4, 0, std::byte{0x7F});
  drawn.map.pad_steps = {"pad_rows"};
  drawn.map.place({{Axis::col, 4}, {Axis::row, 1}, {Axis::col, 1, 4}});
  EXPECT_EQ(apply_fast(drawn, 2), Bytes(96, std::byte{0x7F}));
  Bytes restored;
  const UndoReport report = undo(drawn.map, Bytes(96, std::byte{0x7F}), {}, restored, 2);
  EXPECT_EQ(report.pads, 96);
  EXPECT_EQ(report.wrong_pads, 0);
}

TEST(Transform, WritesNothingForATensorWithoutElements) {
  for (const auto& [rows, cols] : {std::pair{0, 8}, {8, 0}, {0, 0}}) {
    const RandomMap drawn = dense_map(2, rows, cols, 8);
    EXPECT_TRUE(apply_fast(drawn, 2).empty());
    Bytes restored;
    EXPECT_EQ(undo(drawn.map, {}, {}, restored, 2).pads, 0);
  }
}

TEST(Undo, GivesZerosForWhatTheLayoutDrops) {
  RandomMap drawn = dense_map(1, 4, 6, 8);
  drawn.map.rows.permute(2, [](std::int64_t i) { return 2 * i + 1; });
  drawn.map.cols.permute(3, [](std::int64_t i) { return i + 2; });
  drawn.map.place({{Axis::row, 1}, {Axis::col, 1}});
  Bytes restored(24, kUntouched);
  undo(drawn.map, apply_fast(drawn, 1), {}, restored, 1);
  for (std::size_t i = 0; i < 24; ++i) {
    const bool kept = i / 6 % 2 == 1 && i % 6 >= 2 && i % 6 < 5;
    EXPECT_EQ(restored[i], kept ? drawn.storage[i] : std::byte{0}) << i;
  }
}

TEST(Undo, GivesZerosWhereNothingIsLeftOfTheLayout) {
  RandomMap drawn = dense_map(2, 4, 6, 8);
  drawn.map.cols.permute(0, [](std::int64_t) { return 0; });
  drawn.map.place({{Axis::row, 1}, {Axis::col, 1}});
  Bytes restored(48, kUntouched);
  undo(drawn.map, {}, {}, restored, 2);
  EXPECT_EQ(restored, Bytes(48));
}

TEST(Undo, ReportsPadsAndCopiesByTheirPlaceInTheTensor) {
  RandomMap drawn = dense_map(2, 2, 2, 16);
  drawn.map.rows.permute(4, [](std::int64_t i) { return i / 2; });
  drawn.map.cols.pad_parts(1, 3, 0, std::byte{0x5A});
  drawn.map.pad_steps = {"pad_cols"};
  drawn.map.place({{Axis::row, 1}, {Axis::col, 1}});
  Bytes placed = apply_fast(drawn, 1);
  Bytes restored(16);
  UndoReport report = undo(drawn.map, placed, {}, restored, 1);
  EXPECT_EQ(restored, drawn.storage);
  EXPECT_EQ(report.pads, 8);
  EXPECT_EQ(report.copies, 8);
  EXPECT_EQ(report.wrong_pads + report.wrong_copies, 0);
  EXPECT_EQ(report.first_wrong_pad, -1);
  EXPECT_EQ(report.first_wrong_copy, -1);

  placed[2 * (12 + 5)] ^= std::byte{1};   // second expert, row 1: its pad
  placed[2 * (12 + 10)] ^= std::byte{1};  // row 3, column 1: a copy of row 2
  report = undo(drawn.map, placed, {}, restored, 1);
  EXPECT_EQ(report.wrong_pads, 1);
  EXPECT_EQ(report.first_wrong_pad, 17);
  EXPECT_EQ(report.wrong_copies, 1);
  EXPECT_EQ(report.first_wrong_copy, 22);
  EXPECT_EQ(restored, drawn.storage);
}

TEST(Undo, TakesTheFirstCopyInTheOrderOfTheOutput) {
  RandomMap drawn = dense_map(1, 1, 4, 8);
  drawn.map.rows.permute(2, [](std::int64_t) { return 0; });
  // Row 1 stands before row 0 nowhere but in the second half of the columns' first digit.
  drawn.map.place({{Axis::col, 2}, {Axis::row, 1}, {Axis::col, 1, 2}});
  Bytes placed = apply_fast(drawn, 1);
  placed[0] = std::byte{1};
  placed[6] = std::byte{2};
  Bytes restored(4);
  const UndoReport report = undo(drawn.map, placed, {}, restored, 1);
  EXPECT_EQ(restored[0], std::byte{1});
  EXPECT_EQ(restored[2], drawn.storage[2]);
  EXPECT_EQ(report.wrong_copies, 2);
  EXPECT_EQ(report.first_wrong_copy, 2);
}

TEST(Undo, StopsAtTheRecoderThatCannotBeInverted) {
  RandomMap drawn = dense_map(1, 3, 4, 16);
  drawn.recoders = {testing::place_recoder(16), testing::resize_recoder(16, 8),
                    testing::resize_recoder(8, 32)};
  drawn.map.element_bits = 32;
  EXPECT_EQ(restored_bits(drawn.map, drawn.recoders), 8);
  EXPECT_EQ(restored_bits(drawn.map, {}), 32);
  expect_same_as_slow(drawn);
}

std::string rejection(const RandomMap& drawn) {
  return error_of(
      [&] { check_movable("w2", drawn.map, drawn.recoders, drawn.stack.element_bits); });
}

TEST(CheckMovable, RejectsAnOddNumberOfFp4Columns) {
  EXPECT_EQ(rejection(dense_map(1, 4, 5, 4)),
            "w2: has 5 columns of FP4 codes, two a byte; needed is an even number");
  EXPECT_EQ(rejection(dense_map(1, 4, 5, 8)), "no error");
}

TEST(CheckMovable, RejectsPadsAndCutsAtOddFp4Columns) {
  const std::string message =
      "w2: its columns are cut or padded at an odd FP4 code, two are a byte; pad to an even number";
  RandomMap padded = dense_map(1, 4, 6, 4);
  padded.map.cols.pad_parts(1, 9, 0, std::byte{0});
  padded.map.place({{Axis::row, 1}, {Axis::col, 1}});
  EXPECT_EQ(rejection(padded), message);
  RandomMap parts = dense_map(1, 4, 6, 4);
  parts.map.cols.pad_parts(2, 4, 0, std::byte{0});
  parts.map.place({{Axis::row, 1}, {Axis::col, 1}});
  EXPECT_EQ(rejection(parts), message);
  RandomMap cut = dense_map(1, 4, 6, 4);
  cut.map.cols.permute(4, [](std::int64_t i) { return i + 1; });
  cut.map.place({{Axis::row, 1}, {Axis::col, 1}});
  EXPECT_EQ(rejection(cut), message);
  cut.map.cols.permute(2, [](std::int64_t i) { return i; });
  cut.stack.element_bits = 8;
  cut.map.element_bits = 8;
  EXPECT_EQ(rejection(cut), "no error");
  // FP4 only on the way counts, too.
  cut.recoders = {testing::resize_recoder(8, 4), testing::resize_recoder(4, 8)};
  EXPECT_EQ(rejection(cut), message);
}

TEST(CheckMovable, RejectsOrdersOfOddNumbersOfFp4Codes) {
  RandomMap drawn = dense_map(1, 6, 12, 4);
  drawn.map.place({{Axis::row, 3}, {Axis::col, 1}, {Axis::row, 1, 3}});
  EXPECT_EQ(rejection(drawn),
            "w2: the layout keeps 3 FP4 codes together, two are a byte; needed is an even number");
  drawn.map.place({{Axis::col, 3}, {Axis::row, 1}, {Axis::col, 1, 3}});
  EXPECT_THAT(rejection(drawn), ::testing::HasSubstr("keeps 3 FP4 codes together"));
  drawn.map.place({{Axis::col, 1, 3}, {Axis::col, 3}, {Axis::row, 1}});
  EXPECT_THAT(rejection(drawn), ::testing::HasSubstr("keeps 3 FP4 codes together"));
  drawn.map.place({{Axis::row, 2}, {Axis::col, 1}, {Axis::row, 1, 2}});
  EXPECT_EQ(rejection(drawn), "no error");
}

TEST(CheckMovable, RejectsBitsOfWordsThatAreNotWhole) {
  RandomMap drawn = dense_map(1, 3, 5, 16);
  std::array<int, 32> source;
  std::iota(source.begin(), source.end(), 0);
  drawn.map.words = std::make_shared<BitPermutation>("spread", source);
  EXPECT_EQ(rejection(drawn),
            "w2: spread moves bits inside 32-bit words, the layout has 30 bytes; pad to a multiple "
            "of 4");
}

TEST(CheckMovable, IsDoneBeforeAnyByteIsMoved) {
  const RandomMap drawn = dense_map(1, 4, 5, 4);
  Bytes out(10, kUntouched);
  EXPECT_THROW(apply(drawn.map, drawn.stack, {}, out, 1), Error);
  EXPECT_THROW(undo(drawn.map, out, {}, out, 1), Error);
  EXPECT_EQ(out, Bytes(10, kUntouched));
}

}  // namespace
}  // namespace moeref
