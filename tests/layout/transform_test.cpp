#include "layout/transform.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "quant/error.hpp"
#include "tests/layout/random_map.hpp"
#include "tests/layout/slow_transform.hpp"

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

}  // namespace
}  // namespace moeref
