// Sizes, scales and orders of each backend of aiter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "quant/error.hpp"
#include "tests/layout/aiter_support.hpp"

namespace moeref {
namespace {

using namespace testing;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(AiterFp8Block, LeavesTheLastRanksEmptyWhenHalvesArePadded) {
  // 1536 rows on 8 ranks: 192 each become 256, of which six ranks use all.
  const MoeLayer layer = layer_of("fp8_block", 1, 128, 1536);
  const Backed backed{"aiter_fp8_block", {"device=gfx950"}, "fp8_block"};
  const PreparedLayer full = prepared(backed, layer, {.tp_rank = 5, .tp_size = 8});
  EXPECT_EQ(full.range.begin, 1280);
  EXPECT_EQ(full.range.count, 256);
  for (const std::int64_t rank : {6, 7}) {
    const PreparedLayer empty = prepared(backed, layer, {.tp_rank = rank, .tp_size = 8});
    EXPECT_EQ(empty.range.count, 0);
    EXPECT_EQ(find(empty, "w13").shape, (Shape{1, 512, 128}));
    EXPECT_EQ(find(empty, "w13_scale").shape, (Shape{1, 4, 1}));
    EXPECT_EQ(find(empty, "w2_scale").shape, (Shape{1, 1, 2}));
    for (const std::string_view name : {"w13", "w13_scale", "w2", "w2_scale"}) {
      const Tensor made = make(find(empty, name), 1);
      EXPECT_THAT(made.bytes, ::testing::Each(std::byte{0})) << name;
    }
  }
}

TEST(AiterFp8Block, DoublesScalesForFnuzDevices) {
  const MoeLayer layer = layer_of("fp8_block", 1, 128, 128);
  const Tensor fnuz = make(find(prepared({"aiter_fp8_block", {}, ""}, layer), "w2_scale"), 1);
  const Tensor ocp =
      make(find(prepared({"aiter_fp8_block", {"device=gfx950"}, ""}, layer), "w2_scale"), 1);
  EXPECT_EQ(fnuz.view().at<float>(0), 2.0f * ocp.view().at<float>(0));
  EXPECT_EQ(find(prepared({"aiter_fp8_block", {}, ""}, layer), "w2").dtype, DType::f8_e4m3fnuz);
}

TEST(AiterFp8Channel, PadsTheScalesOfGateAndUpWithTheirRows) {
  const PreparedLayer layer =
      prepared({"aiter_fp8_channel", {}, ""}, layer_of("fp8_channel", 2, 64, 96));
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 256, 64}));
  EXPECT_EQ(find(layer, "w13_scale").shape, (Shape{2, 256, 1}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 64, 1}));
}

TEST(AiterFp8Tensor, WritesTheLargerScaleForEveryRow) {
  const MoeLayer source = layer_of("fp8_tensor", 2, 64, 96);
  const PreparedLayer layer = prepared({"aiter_fp8_tensor", {"device=gfx942"}, ""}, source);
  const ExpertScalars& scalars = layer.source->scalars;
  const std::vector<float>& w13 = find(layer, "w13_scale1").values;
  ASSERT_EQ(w13.size(), 2u * 2u * 128u);
  for (std::size_t expert = 0; expert < 2; ++expert) {
    const float larger = std::max(scalars.w13_scale[2 * expert], scalars.w13_scale[2 * expert + 1]);
    EXPECT_EQ(w13[expert * 256], 2.0f * larger);
    EXPECT_EQ(w13[expert * 256 + 255], 2.0f * larger);
  }
  const std::vector<float>& w2 = find(layer, "w2_scale1").values;
  ASSERT_EQ(w2.size(), 2u * 64u);
  EXPECT_EQ(w2[64], 2.0f * scalars.w2_scale[1]);
  const KernelReading& kernel = layer.recipe.kernel;
  const ScalarValues values{{"w13_scale1", w13}, {"w2_scale1", w2}};
  EXPECT_EQ(kernel.gate_factor(values, 1), w13[256]);
  EXPECT_EQ(kernel.up_factor(values, 1), w13[384]);
  EXPECT_EQ(kernel.down_factor(values, 1), w2[64]);
}

/// Rows of w13 whose bytes the upstream requantization changes, as (half, row).
std::vector<std::pair<std::int64_t, std::int64_t>> differing_rows(const MoeLayer& layer,
                                                                  const Shard& rank) {
  const auto dense = [&](const char* option) {
    const PreparedLayer made =
        prepared({"aiter_fp8_tensor", {"device=gfx950", option}, ""}, layer, rank);
    return std::pair(as_kernel_reads(made, made.recipe.tensors[0]), made.recipe.kernel);
  };
  const auto [right, kernel] = dense("requantize=per_half");
  const auto [upstream, same] = dense("requantize=unpadded_offset_upstream");
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;
  for (std::int64_t row = 0; row < 2 * kernel.intermediate; ++row) {
    const auto begin = row * kernel.hidden;
    if (!std::equal(right.begin() + begin, right.begin() + begin + kernel.hidden,
                    upstream.begin() + begin)) {
      rows.emplace_back(row / kernel.intermediate, row % kernel.intermediate);
    }
  }
  return rows;
}

TEST(AiterFp8Tensor, UpstreamOffsetsAreRightWithoutPadding) {
  EXPECT_TRUE(differing_rows(layer_of("fp8_tensor", 1, 64, 256), {}).empty());
}

TEST(AiterFp8Tensor, UpstreamOffsetsLeaveTheLastRowsOfUpWithTheirOldCodes) {
  // 192 rows in 256: rows 0 .. 383 of 512 are requantized, up ends at row 447.
  const MoeLayer layer = layer_of("fp8_tensor", 1, 64, 192);
  const PreparedLayer loaded = prepared({"aiter_fp8_tensor", {"device=gfx950"}, ""}, layer);
  const std::vector<float>& scales = loaded.source->scalars.w13_scale;
  const auto rows = differing_rows(layer, {});
  // Codes that requantization would not change do not show.
  if (scales[1] < scales[0]) {
    EXPECT_EQ(rows.size(), 64u);
  }
  for (const auto& [half, row] : rows) {
    EXPECT_EQ(half, 1);
    EXPECT_GE(row, 128);
    EXPECT_LT(row, 192);
  }
}

TEST(AiterFp8Tensor, UpstreamOffsetsGiveFullRanksOfGateTheScaleOfUp) {
  // Ranks hold 256 rows, upstream counts 192: gate's rows 192 .. 255 take up's scale.
  const MoeLayer layer = layer_of("fp8_tensor", 1, 64, 384);
  const auto rows = differing_rows(layer, {.tp_rank = 0, .tp_size = 2});
  EXPECT_THAT(rows, ::testing::Contains(::testing::Pair(0, ::testing::Ge(192))));
  EXPECT_THAT(rows, ::testing::Each(::testing::AnyOf(::testing::Pair(0, ::testing::Ge(192)),
                                                     ::testing::Pair(1, ::testing::Ge(128)))));
}

TEST(AiterFp8Tensor, NotesMisplacedRowsWhereverThereAreSome) {
  const auto note = [](std::int64_t intermediate, const Shard& rank, const char* option) {
    return prepared({"aiter_fp8_tensor", {option}, ""}, layer_of("fp8_tensor", 1, 32, intermediate),
                    rank)
        .recipe.notes.back();
  };
  const Shard rank{.tp_rank = 5, .tp_size = 8};  // 256 rows, none of them padding
  constexpr const char* kUpstream = "requantize=unpadded_offset_upstream";
  EXPECT_THAT(note(1536, rank, kUpstream), HasSubstr("upstream defect: rows are requantized as if "
                                                     "the up half began at row 192"));
  EXPECT_THAT(note(96, {}, kUpstream),
              HasSubstr("began at row 96 of the rank, it begins at row 128"));
  EXPECT_THAT(note(1024, rank, kUpstream), Not(HasSubstr("defect")));
  EXPECT_THAT(note(1536, rank, "requantize=per_half"), Not(HasSubstr("defect")));
}

TEST(AiterMxfp4, ShufflesTheScalesOfAllExpertsTogether) {
  const PreparedLayer layer =
      prepared({"aiter_mxfp4", {}, "mxfp4"}, layer_of("mxfp4", 3, 256, 256));
  const PreparedTensor& scale = find(layer, "w13_scale");
  const Tensor made = make(scale, 1);
  ASSERT_EQ(made.shape, (Shape{3, 512, 8}));
  for (std::int64_t r = 0; r < 3 * 512; ++r) {
    const Bytes row = recoded_row(scale, r / 512, r % 512);
    for (std::int64_t c = 0; c < 8; ++c) {
      const std::int64_t place =
          r / 32 * 32 * 8 + c / 8 * 256 + c % 4 * 64 + r % 16 * 4 + c / 4 % 2 * 2 + r / 16 % 2;
      ASSERT_EQ(made.bytes[static_cast<std::size_t>(place)], row[static_cast<std::size_t>(c)]);
    }
  }
}

TEST(AiterMxfp4, ShufflesWeightsOnGfx950Only) {
  const MoeLayer source = layer_of("mxfp4", 1, 256, 256);
  const PreparedLayer plain = prepared({"aiter_mxfp4", {"device=gfx942"}, ""}, source);
  const PreparedLayer tiled = prepared({"aiter_mxfp4", {"device=gfx950"}, ""}, source);
  const Tensor rows = make(find(plain, "w2"), 1);
  const Tensor tiles = make(find(tiled, "w2"), 1);
  EXPECT_EQ(rows.shape, tiles.shape);
  EXPECT_EQ(rows.shape, (Shape{1, 256, 128}));
  for (std::int64_t n = 0; n < 256; ++n) {
    for (std::int64_t c = 0; c < 128; ++c) {
      const std::int64_t place = (n / 16 * 8 + c / 16) * 256 + n % 16 * 16 + c % 16;
      ASSERT_EQ(tiles.bytes[static_cast<std::size_t>(place)],
                rows.bytes[static_cast<std::size_t>(n * 128 + c)]);
    }
  }
}

TEST(AiterMxfp4, PadsTo256ValuesAHalf) {
  const PreparedLayer layer = prepared({"aiter_mxfp4", {}, ""}, layer_of("mxfp4", 2, 256, 768),
                                       {.tp_rank = 1, .tp_size = 2});
  EXPECT_EQ(layer.range.begin, 512);
  EXPECT_EQ(layer.range.count, 256);
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 1024, 128}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 256, 16}));
}

TEST(AiterA16w4, AlternatesBlocksOf16RowsIfInterleaved) {
  const PreparedLayer layer =
      prepared({"aiter_a16w4", {"w13=interleaved"}, ""}, layer_of("mxfp4", 1, 256, 256));
  const PreparedTensor& weight = find(layer, "w13");
  const PreparedTensor& scale = find(layer, "w13_scale");
  const Tensor codes = make(weight, 1);
  const Tensor scales = make(scale, 1);
  for (std::int64_t n = 0; n < 512; ++n) {
    const std::int64_t g = n / 256;
    const std::int64_t r = n % 256;
    const Bytes row = recoded_row(weight, 0, n);
    for (std::int64_t c = 0; c < 128; ++c) {
      const std::int64_t place = (((r / 16) * 2 + g) * 8 + c / 16) * 256 + r % 16 * 16 + c % 16;
      ASSERT_EQ(codes.bytes[static_cast<std::size_t>(place)], row[static_cast<std::size_t>(c)]);
    }
    const Bytes scale_row = recoded_row(scale, 0, n);
    for (std::int64_t c = 0; c < 8; ++c) {
      const std::int64_t place = r / 16 * 32 * 8 + c % 4 * 64 + r % 16 * 4 + c / 4 % 2 * 2 + g;
      ASSERT_EQ(scales.bytes[static_cast<std::size_t>(place)],
                scale_row[static_cast<std::size_t>(c)]);
    }
  }
}

TEST(AiterA16w4, PadsBothSizesTo256AndWidensBiases) {
  const PreparedLayer layer =
      prepared({"aiter_a16w4", {"w13=interleaved"}, ""}, layer_of("mxfp4", 2, 288, 96, true, true));
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 512, 256}));
  EXPECT_EQ(find(layer, "w13_scale").shape, (Shape{2, 512, 16}));
  EXPECT_EQ(find(layer, "w2").shape, (Shape{2, 512, 128}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 512, 8}));
  EXPECT_EQ(find(layer, "w13_bias").dtype, DType::f32);
  EXPECT_EQ(find(layer, "w2_bias").dtype, DType::f32);
  EXPECT_EQ(find(layer, "swiglu_limit").values, std::vector<float>{7.0f});
  expect_kernel_reads_layer(layer);
}

TEST(AiterA16w4, CutsGptOssByBlocksOf32) {
  const MoeLayer layer = layer_of("mxfp4", 1, 256, 160, true, true);
  std::vector<std::int64_t> counts;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const PreparedLayer made =
        prepared({"aiter_a16w4", {}, ""}, layer, {.tp_rank = rank, .tp_size = 4});
    counts.push_back(made.range.count);
    expect_kernel_reads_layer(made);
  }
  EXPECT_EQ(counts, (std::vector<std::int64_t>{64, 64, 32, 0}));
}

TEST(AiterA16w4, PassesNoLimitIfThereIsNone) {
  const PreparedLayer layer = prepared({"aiter_a16w4", {}, ""}, layer_of("mxfp4", 1, 256, 256));
  EXPECT_THROW(find(layer, "swiglu_limit"), std::out_of_range);
}

TEST(AiterA16w4, RefusesLimitsThatDiffer) {
  MoeLayer layer = layer_of("mxfp4", 2, 256, 256);
  layer.activation.limits = {7.0f, 8.0f};
  EXPECT_THROW(prepared({"aiter_a16w4", {}, ""}, layer), Error);
}

}  // namespace
}  // namespace moeref
