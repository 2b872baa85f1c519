// Orders of aiter against the chains of view and permute that define them.
#include "layout/tiles/aiter.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "layout/recode/int4.hpp"
#include "layout/step.hpp"
#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<std::int64_t>;
using tiles::StripeView;

/// Bytes that tell their place: the index, little-endian, as wide as an element.
Bytes numbered(std::int64_t count, int bits) {
  Bytes bytes(static_cast<std::size_t>(count * bits / 8));
  for (std::int64_t i = 0; i < count; ++i) {
    for (int byte = 0; byte < bits / 8; ++byte) {
      bytes[static_cast<std::size_t>(i * bits / 8 + byte)] =
          static_cast<std::byte>(i >> (8 * byte) & 255);
    }
  }
  return bytes;
}

/// x.view(sizes).permute(order), as the list of source elements.
Sizes permuted(const Sizes& sizes, const std::vector<std::size_t>& order) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
  Sizes sources;
  const std::function<void(std::size_t, std::int64_t)> visit = [&](std::size_t depth,
                                                                   std::int64_t at) {
    if (depth == order.size()) {
      sources.push_back(at);
      return;
    }
    for (std::int64_t i = 0; i < sizes[order[depth]]; ++i) {
      visit(depth + 1, at + i * strides[order[depth]]);
    }
  };
  visit(0, 0);
  return sources;
}

struct Result {
  Plan plan;
  TensorStack stack;
  Bytes in;
  Bytes out;
};

/// The steps on [experts, rows, cols] of numbered elements.
Result run(const Shape& shape, int bits, const std::vector<Step>& steps,
           GateOrder order = GateOrder::separate) {
  Result result;
  result.in = numbered(element_count(shape), bits);
  const DType dtype = bits == 8 ? DType::u8 : bits == 16 ? DType::bf16 : DType::f32;
  result.stack = dense_stack({"x", dtype, shape, result.in}, order, bits);
  result.plan = make_plan("x", result.stack, steps, nullptr);
  result.out.resize(
      static_cast<std::size_t>(result.plan.map.experts * result.plan.map.out_bytes()));
  apply(result.plan.map, result.stack, result.plan.recoders, result.out, 1);
  return result;
}

void expect_sources(const Result& result, const Sizes& sources) {
  const int bits = result.plan.map.element_bits;
  const auto width = static_cast<std::size_t>(bits) / 8;
  Bytes expected;
  for (const std::int64_t source : sources) {
    const auto from = result.in.begin() + source * static_cast<std::int64_t>(width);
    expected.insert(expected.end(), from, from + static_cast<std::ptrdiff_t>(width));
  }
  EXPECT_EQ(result.out, expected);
}

TEST(AiterShuffleWeight, IsTheViewAndPermuteOfEachElementSize) {
  for (const int bits : {8, 16, 32}) {
    for (const std::int64_t rows : {16, 32}) {
      const std::int64_t pack = 128 / bits;
      const Result result =
          run({2, 96, 64}, bits, {Tile{tiles::aiter_shuffle_weight(rows, 16, bits)}});
      expect_sources(result,
                     permuted({2, 96 / rows, rows, 2, 32 / pack, pack}, {0, 1, 3, 4, 2, 5}));
      EXPECT_EQ(result.plan.shape, (Shape{2, 96, 64}));
    }
  }
}

TEST(AiterShuffleWeight, MovesWholeBytesOfFp4Codes) {
  const Bytes bytes = numbered(32 * 64, 8);
  const TensorView view{"w", DType::u8, {1, 32, 64}, bytes};
  const auto made = [&](int bits) {
    const TensorStack stack = dense_stack(view, GateOrder::separate, bits);
    const Plan plan = make_plan(
        "w", stack, std::vector<Step>{Tile{tiles::aiter_shuffle_weight(16, 16, bits)}}, nullptr);
    Bytes out(bytes.size());
    apply(plan.map, stack, {}, out, 1);
    EXPECT_EQ(plan.shape, (Shape{1, 32, 64}));
    return out;
  };
  EXPECT_EQ(made(4), made(8));
}

TEST(AiterShuffleWeight, TakesRunsOf32Int4Values) {
  const Result result = run({1, 32, 64}, 8, {Tile{tiles::aiter_shuffle_int4_values(16, 16)}});
  expect_sources(result, permuted({1, 2, 16, 2, 1, 32}, {0, 1, 3, 4, 2, 5}));
}

TEST(AiterShuffleWeight, PadsColumnsBefore) {
  const Result result =
      run({1, 16, 40}, 8, {PadCols{.multiple = 64}, Tile{tiles::aiter_shuffle_weight(16, 16, 8)}});
  EXPECT_EQ(result.plan.shape, (Shape{1, 16, 64}));
  EXPECT_EQ(result.out[static_cast<std::size_t>((40 / 16) * 256 + 8)], std::byte{0});
  EXPECT_EQ(result.out[256], result.in[16]);
}

TEST(AiterShuffleWeightA16w4, AlternatesBlocksOfGateAndUp) {
  for (const std::int64_t lanes : {16, 32}) {
    const std::int64_t groups = 64 / lanes;
    const Result gate_up =
        run({2, 128, 128}, 8,
            {InterleaveHalves{lanes}, Tile{tiles::aiter_shuffle_weight_a16w4(lanes, 16)}},
            GateOrder::gate_up);
    expect_sources(gate_up, permuted({2, 2, 64 / lanes, lanes, 8 / groups, groups, 16},
                                     {0, 2, 1, 4, 5, 3, 6}));
  }
}

TEST(AiterShuffleWeightNk, SplitsKAmongTheLanes) {
  const Result result = run({1, 64, 128}, 8, {Tile{tiles::aiter_shuffle_weight_nk(32, 32)}});
  expect_sources(result, permuted({1, 2, 32, 4, 2, 16}, {0, 1, 3, 4, 2, 5}));
}

TEST(AiterShuffleWeightGfx1250, SeesStripesAsRowsOrAsColumns) {
  const Result rows =
      run({1, 48, 96}, 8, {Tile{tiles::aiter_shuffle_weight_gfx1250(StripeView::rows)}});
  expect_sources(rows, permuted({3, 16, 3, 2, 16}, {0, 2, 3, 1, 4}));
  EXPECT_EQ(rows.plan.shape, (Shape{1, 3, 1536}));
  const Result columns =
      run({2, 48, 96}, 8, {Tile{tiles::aiter_shuffle_weight_gfx1250(StripeView::transposed)}});
  EXPECT_EQ(columns.plan.shape, (Shape{2, 1536, 3}));
  EXPECT_EQ(columns.plan.strides, (Sizes{48 * 96, 1, 1536}));
}

TEST(AiterE8m0Shuffle, IsTheViewAndPermuteWithPaddingOfZero) {
  const Result whole = run({1, 512, 16}, 8, {Tile{tiles::aiter_e8m0_shuffle()}});
  expect_sources(whole, permuted({16, 2, 16, 2, 2, 4}, {0, 3, 5, 2, 4, 1}));
  const Result padded = run({1, 96, 6}, 8, {Tile{tiles::aiter_e8m0_shuffle()}});
  EXPECT_EQ(padded.plan.shape, (Shape{1, 256, 8}));
  EXPECT_EQ(padded.out.back(), std::byte{0});
}

TEST(AiterShuffleScale, PairsGateWithUpAndPadsWithOne) {
  const Result pairs =
      run({3, 64, 16}, 8, {InterleaveHalves{16}, Tile{tiles::aiter_shuffle_scale()}},
          GateOrder::gate_up);
  expect_sources(pairs, permuted({3, 2, 2, 16, 2, 2, 4}, {0, 2, 4, 6, 3, 5, 1}));
  const Result padded = run({1, 32, 5}, 8, {Tile{tiles::aiter_shuffle_scale()}});
  EXPECT_EQ(padded.plan.shape, (Shape{1, 32, 8}));
  EXPECT_EQ(padded.out[2], std::byte{4});          // row 0, column 4
  EXPECT_EQ(padded.out[64 + 2], std::byte{0x7F});  // row 0, column 5
}

TEST(AiterTritonScales, AreStripesOfTiles) {
  const Result gfx950 =
      run({1, 64, 16}, 8, {Tile{tiles::aiter_scale_gfx950(32, 8, StripeView::rows)}});
  expect_sources(gfx950, permuted({2, 2, 16, 2, 2, 4}, {0, 3, 5, 2, 4, 1}));
  EXPECT_EQ(gfx950.plan.shape, (Shape{1, 2, 512}));
  const Result gfx1250 =
      run({1, 48, 8}, 8, {Tile{tiles::aiter_scale_gfx1250(16, 4, StripeView::rows)}});
  expect_sources(gfx1250, permuted({3, 16, 2, 4}, {0, 2, 1, 3}));
  const Result batched = run({2, 256, 16}, 8, {Tile{tiles::aiter_scale_batched(8)}});
  expect_sources(batched, permuted({4, 4, 32, 2, 8}, {0, 3, 2, 1, 4}));
}

TEST(AiterInt4, PacksShuffledValuesAlongMemory) {
  const Result packed =
      run({1, 16, 32}, 8, {recode::int8_to_int4(), Tile{tiles::aiter_int4_weight()}});
  const Sizes order = permuted({1, 16, 2, 16}, {0, 2, 1, 3});
  for (std::size_t byte = 0; byte < packed.out.size(); ++byte) {
    const std::size_t low = byte / 4 * 8 + byte % 4;
    const auto value = [&](std::size_t place) {
      return packed.in[static_cast<std::size_t>(order[place])] & std::byte{15};
    };
    EXPECT_EQ(packed.out[byte], value(low) | value(low + 4) << 4) << byte;
  }
  EXPECT_EQ(packed.plan.shape, (Shape{1, 16, 16}));
}

TEST(AiterInt4, PutsTheScalesOfTwoGroupsIntoOneWord) {
  const Result result = run({2, 4, 8}, 16, {Tile{tiles::aiter_int4_scale()}});
  expect_sources(result, permuted({2, 2, 2, 8}, {0, 1, 3, 2}));
  EXPECT_EQ(result.plan.shape, (Shape{2, 2, 8, 2}));
}

TEST(AiterTiles, RefuseWhatAiterRefuses) {
  const auto fails = [](const Shape& shape, const TileLayout& tile, int bits = 8) {
    EXPECT_THROW(run(shape, bits, {Tile{tile}}), Error) << tile.name;
  };
  fails({1, 24, 32}, tiles::aiter_shuffle_weight(16, 16, 8));
  fails({1, 16, 48}, tiles::aiter_shuffle_weight(16, 16, 8));
  fails({1, 16, 32}, tiles::aiter_shuffle_weight_a16w4(16, 16));
  fails({1, 16, 80}, tiles::aiter_shuffle_weight_nk(16, 64));
  fails({1, 16, 16}, tiles::aiter_shuffle_weight_gfx1250(StripeView::rows));
  fails({1, 48, 8}, tiles::aiter_shuffle_scale());
  fails({1, 48, 8}, tiles::aiter_shuffle_scale_n32k4());
  fails({1, 32, 6}, tiles::aiter_shuffle_scale_n32k4());
  fails({1, 64, 16}, tiles::aiter_scale_batched(16));
  fails({1, 5, 8}, tiles::aiter_int4_scale(), 16);
  EXPECT_THROW(tiles::aiter_shuffle_weight(16, 4, 8), Error);
  EXPECT_THROW(tiles::aiter_shuffle_weight(16, 16, 64), Error);
  EXPECT_THROW(tiles::aiter_shuffle_weight_a16w4(128, 16), Error);
  EXPECT_THROW(tiles::aiter_shuffle_weight_nk(16, 30), Error);
  EXPECT_THROW(tiles::aiter_scale_gfx950(32, 7, StripeView::rows), Error);
}

/// Parameters with which a step of the family can be made, and a matrix that it takes.
TEST(AiterTiles, AreBijectionsThatTheirNamesMakeAgain) {
  for (const NamedStep& named : tiles::aiter()) {
    if (named.kind == StepKind::recode) continue;
    SCOPED_TRACE(named.name);
    std::vector<std::int64_t> parameters;
    const auto count = std::count(named.parameters.begin(), named.parameters.end(), ',') + 1;
    if (!named.parameters.empty()) parameters = {16, 16, 8};
    if (named.parameters == "n, k") parameters = {16, 64};
    parameters.resize(named.parameters.empty() ? 0 : static_cast<std::size_t>(count));
    const Step step = named.make(parameters);
    const std::vector<Step> again = parse_steps("steps", describe(step));
    ASSERT_EQ(again.size(), 1u);
    EXPECT_EQ(describe(again[0]), describe(step));
    const TileLayout& tile = std::get<Tile>(step).layout;
    EXPECT_EQ(std::get<Tile>(again[0]).layout.need_cols, tile.need_cols);
    const int bits = tile.bits.front();
    const Shape shape{2, 256, 128};
    const Bytes in = numbered(element_count(shape) * (bits == 4 ? 4 : bits) / 8, 8);
    const TensorStack stack =
        dense_stack({"x", bits == 16 ? DType::bf16 : DType::u8, {2, 256, bits == 4 ? 64 : 128}, in},
                    GateOrder::separate, bits);
    const Plan plan = make_plan("x", stack, std::vector<Step>{step}, nullptr);
    Bytes out(in.size());
    ASSERT_EQ(plan.map.experts * plan.map.out_bytes(), static_cast<std::int64_t>(in.size()));
    apply(plan.map, stack, {}, out, 1);
    EXPECT_NE(out, in);
    Bytes back(in.size());
    const UndoReport report = undo(plan.map, out, {}, back, 1);
    EXPECT_EQ(back, in);
    EXPECT_EQ(report.pads + report.copies, 0);
  }
}

}  // namespace
}  // namespace moeref
