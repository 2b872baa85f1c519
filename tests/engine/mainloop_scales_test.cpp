// Scale blocks and chains of main loops, and what is refused.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/accumulate/mainloop.hpp"
#include "tests/engine/mainloop_gemm.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using judge::UnitCodes;
using testing::CodeRow;
using testing::expect_as_judged;
using testing::Form;
using testing::forms;
using testing::Gemm;
using testing::make_gemm;
using testing::run;
using testing::Scales;
using testing::store;
using testing::UnitInputs;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// A GEMM whose scales lie per `block` columns on one side.
Gemm scaled_gemm(Promotion promotion, std::int64_t chain, std::int64_t x_block,
                 std::int64_t weight_block, std::int64_t k) {
  std::mt19937_64 random(5);
  const Form& form = forms()[2];
  Gemm gemm = make_gemm({form.unit, chain, promotion, false}, form, UnitInputs::normal,
                        Scales::none, {3, 4, k}, random);
  if (x_block != 0) testing::add_scales(Scales::tame, 1, x_block, gemm.x, random);
  if (weight_block != 0) testing::add_scales(Scales::tame, 2, weight_block, gemm.weight, random);
  return gemm;
}

TEST(Mainloop, RefusesAChainThatCrossesScaleBlocks) {
  for (const Promotion promotion :
       {Promotion::fma_product, Promotion::fma_row, Promotion::fma_column}) {
    for (const auto& [chain, block] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{128, 64}, {64, 96}, {0, 128}}) {
      const Gemm left = scaled_gemm(promotion, chain, block, 0, 256);
      const Gemm right = scaled_gemm(promotion, chain, 0, block, 256);
      for (const Gemm* gemm : {&left, &right}) {
        const std::string error = error_of([&] { run(*gemm, 1); });
        EXPECT_THAT(error, ::testing::StartsWith(gemm == &left ? "x: " : "w: "));
        EXPECT_THAT(error, ::testing::HasSubstr(fmt::format("{}", block)));
        EXPECT_EQ(error.find('\n'), std::string::npos) << error;
      }
    }
  }
  const Gemm groups = scaled_gemm(Promotion::column_groups, 64, 0, 32, 256);
  EXPECT_THAT(error_of([&] { run(groups, 1); }), ::testing::StartsWith("w: "));
}

TEST(Mainloop, TakesScaleBlocksThatHoldWholeChains) {
  for (const auto& [chain, block] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {64, 128}, {128, 128}, {32, 256}, {64, 1000}, {0, 256}, {512, 256}}) {
    const Gemm gemm = scaled_gemm(Promotion::fma_product, chain, block, block, 256);
    expect_as_judged(gemm, fmt::format("chain {}, block {}", chain, block));
  }
  // Scales that a promotion does not read may lie as they like.
  expect_as_judged(scaled_gemm(Promotion::add, 64, 48, 48, 256), "add");
  expect_as_judged(scaled_gemm(Promotion::none, 64, 48, 48, 256), "none");
  expect_as_judged(scaled_gemm(Promotion::column_groups, 64, 48, 64, 256), "column groups");
}

TEST(Mainloop, LooksUpTheScalesOfAShardInTheWhole) {
  const Gemm whole = scaled_gemm(Promotion::fma_row, 64, 128, 128, 256);
  // The judge sees the last half of K; the engine slices with scales of the whole.
  Gemm half = scaled_gemm(Promotion::fma_row, 64, 0, 0, 128);
  for (auto [from, to] : {std::pair{&whole.x, &half.x}, std::pair{&whole.weight, &half.weight}}) {
    std::vector<CodeRow> rows;
    for (const UnitCodes& row : from->rows) {
      rows.emplace_back(row.codes.begin() + 128, row.codes.end());
    }
    const ScaleGrid grid = *from->view.scales;
    *to = store("half", from->rows.front().format, 128, rows);
    for (std::int64_t block = 0; block * grid.block_rows < from->view.rows; ++block) {
      to->scales.push_back(from->scales[to_size(block * grid.row_stride + 1)]);
    }
    to->view.scales = ScaleGrid{.data = reinterpret_cast<const std::byte*>(to->scales.data()),
                                .format = Format::f32,
                                .block_rows = grid.block_rows,
                                .block_cols = 128,
                                .row_stride = 1,
                                .col_stride = 1};
  }
  half.rows = whole.rows;
  expect_as_judged(half, "half");
  const ScaledMatrix weight = col_slice(whole.weight.view, 128, 128);
  std::vector<float> acc(whole.rows.size() * 7, testing::kUntouched);
  accumulate::run_mainloop(
      whole.mainloop,
      accumulate::mainloop_input(whole.mainloop, col_slice(whole.x.view, 128, 128), whole.rows),
      weight, acc.data(), 7, 1);
  EXPECT_EQ(testing::bits_of(acc), testing::bits_of(run(half, 1)));
  // From the middle of a block on, chains of 64 end where the block does.
  const ScaledMatrix shifted = col_slice(whole.weight.view, 32, 128);
  EXPECT_THAT(
      error_of([&] {
        accumulate::run_mainloop(
            whole.mainloop,
            accumulate::mainloop_input(whole.mainloop, col_slice(whole.x.view, 0, 128), whole.rows),
            shifted, acc.data(), 7, 1);
      }),
      ::testing::StartsWith("w: "));
}

TEST(Mainloop, RefusesUnitsThatAreNone) {
  std::mt19937_64 random(9);
  const auto error_with = [&](const Mainloop& mainloop, Format left, Format right) {
    const Form form{"", mainloop.unit, left, right};
    const Gemm gemm =
        make_gemm(mainloop, form, UnitInputs::normal, Scales::none, {2, 3, 256}, random);
    const std::string error = error_of([&] { run(gemm, 1); });
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    return error;
  };
  using enum Format;
  const FusedDot plain;
  FusedDot half = plain;
  half.output = StepOutput::f16_nearest;
  FusedDot after = plain;
  after.accumulator = AccumulatorPoint::added_after;
  FusedDot scaled = plain;
  scaled.block_scales = true;
  for (const FusedDot& unit : {half, after, scaled}) {
    EXPECT_THAT(error_with({unit, 0, Promotion::none, false}, f16, f16),
                ::testing::HasSubstr("f32 accumulator"));
  }
  EXPECT_THAT(error_with({plain, 0, Promotion::none, false}, f32, bf16),
              ::testing::StartsWith("x: has f32"));
  EXPECT_THAT(error_with({plain, 0, Promotion::none, false}, bf16, f32),
              ::testing::StartsWith("w: has f32"));
  // A chain that ends inside a chunk of the order.
  EXPECT_THAT(
      error_with({testing::converted(bf16, TermOrder::kw8), 32, Promotion::add, false}, e4m3, e2m1),
      ::testing::HasSubstr("a multiple of 64"));
  EXPECT_THAT(error_with({plain, 24, Promotion::add, false}, bf16, bf16),
              ::testing::HasSubstr("a multiple of 16"));
  EXPECT_EQ(error_with({plain, 24, Promotion::none, false}, bf16, bf16), "no error");
}

TEST(Mainloop, RefusesOperandsOfDifferentK) {
  const Gemm a = scaled_gemm(Promotion::none, 0, 0, 0, 64);
  const Gemm b = scaled_gemm(Promotion::none, 0, 0, 0, 96);
  std::vector<float> acc(100);
  const std::string error = error_of([&] {
    accumulate::run_mainloop(a.mainloop, accumulate::mainloop_input(a.mainloop, a.x.view, a.rows),
                             b.weight.view, acc.data(), 10, 1);
  });
  EXPECT_THAT(error, ::testing::StartsWith("w: "));
  EXPECT_THAT(error, ::testing::HasSubstr("96"));
  EXPECT_THAT(error, ::testing::HasSubstr("64"));
}

}  // namespace
}  // namespace moeref
