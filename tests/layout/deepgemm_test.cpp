// DeepGEMM's scale and FP4 orders, the choice among them, and its backends.
#include "layout/tiles/deepgemm.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

#include "layout/recode/requantize_ue8m0.hpp"
#include "quant/ue8m0.hpp"
#include "tests/layout/layout_support.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using deepgemm::required_layout;
using deepgemm::ScaleFactors;
using deepgemm::ScaleRequest;
using testing::Bytes;
using ::testing::HasSubstr;
using testing::Matrices;
using testing::prepare;

TEST(PackUe8m0, FollowsItsFormula) {
  constexpr std::int64_t mn = 13;
  const std::int64_t k = 7;
  const Matrices in(2, mn, k, 8);
  const std::vector<Step> steps{Tile{tiles::deepgemm_pack_ue8m0()}};
  const Bytes made = testing::run(in, steps);
  ASSERT_EQ(made.size(), std::size_t{2 * 2 * 16 * 4});
  for (std::int64_t g = 0; g < 2; ++g) {
    for (std::int64_t q = 0; q < 2; ++q) {
      for (std::int64_t i = 0; i < 16; ++i) {
        for (std::int64_t j = 0; j < 4; ++j) {
          const bool real = i < mn && 4 * q + j < k;
          const std::byte expected =
              real ? in.bytes[static_cast<std::size_t>((g * mn + i) * k + 4 * q + j)]
                   : std::byte{0};
          EXPECT_EQ(made[static_cast<std::size_t>(((g * 2 + q) * 16 + i) * 4 + j)], expected);
        }
      }
    }
  }
  const Plan plan = testing::plan_of(in, steps);
  EXPECT_EQ(plan.dtype, DType::i32);
  EXPECT_EQ(plan.shape, (Shape{2, 16, 2}));
  EXPECT_EQ(plan.strides, (std::vector<std::int64_t>{32, 1, 16}));
}

TEST(PackUe8m0KGrouped, PutsFourRowsInAWord) {
  const Matrices in(1, 6, 8, 8);
  const Bytes made = testing::run(in, {Tile{tiles::deepgemm_pack_ue8m0_k_grouped()}});
  ASSERT_EQ(made.size(), std::size_t{2 * 8 * 4});
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t col = 0; col < 8; ++col) {
      const std::byte expected = row < 6 ? in.bytes[row * 8 + col] : std::byte{0};
      EXPECT_EQ(made[(row / 4 * 8 + col) * 4 + row % 4], expected);
    }
  }
  const Matrices odd(1, 6, 6, 8);
  EXPECT_THAT(error_of([&] { testing::run(odd, {Tile{tiles::deepgemm_pack_ue8m0_k_grouped()}}); }),
              HasSubstr("columns % 4"));
}

TEST(TmaAligned, PutsColumnsAfterEachOtherAndPadsRows) {
  const Matrices in(2, 6, 3, 32);
  const Bytes made = testing::run(in, {Tile{tiles::deepgemm_tma_aligned()}});
  ASSERT_EQ(made.size(), std::size_t{2 * 3 * 8 * 4});
  for (std::size_t g = 0; g < 2; ++g) {
    for (std::size_t c = 0; c < 3; ++c) {
      for (std::size_t r = 0; r < 8; ++r) {
        std::uint32_t word = 0;
        std::uint32_t expected = 0;
        std::memcpy(&word, made.data() + ((g * 3 + c) * 8 + r) * 4, 4);
        if (r < 6) std::memcpy(&expected, in.bytes.data() + ((g * 6 + r) * 3 + c) * 4, 4);
        EXPECT_EQ(word, expected);
      }
    }
  }
}

TEST(TransposePackedFp4, ExchangesRowsAndColumns) {
  const Matrices in(1, 6, 10, 4);
  const Bytes made = testing::run(in, {Tile{tiles::transpose_packed_fp4()}});
  for (std::int64_t m = 0; m < 6; ++m) {
    for (std::int64_t n = 0; n < 10; ++n) {
      EXPECT_EQ(testing::nibble(made, n * 6 + m), testing::nibble(in.bytes, m * 10 + n));
    }
  }
  const Matrices odd(1, 5, 10, 4);
  EXPECT_THAT(error_of([&] { testing::run(odd, {Tile{tiles::transpose_packed_fp4()}}); }),
              HasSubstr("rows % 2"));
}

TEST(DeepGemmTiles, ComeBackFromUndo) {
  const auto check = [](const Matrices& in, const TileLayout& tile) {
    UndoReport report;
    EXPECT_EQ(testing::there_and_back(in, {Tile{tile}}, report), in.bytes) << tile.name;
    EXPECT_EQ(report.wrong_pads, 0) << tile.name;
  };
  check(Matrices(2, 7, 5, 32), tiles::deepgemm_mn_major());
  check(Matrices(2, 7, 5, 32), tiles::deepgemm_tma_aligned());
  check(Matrices(2, 7, 5, 8), tiles::deepgemm_pack_ue8m0());
  check(Matrices(2, 7, 8, 8), tiles::deepgemm_pack_ue8m0_k_grouped());
  check(Matrices(2, 7, 8, 8), tiles::deepgemm_ue8m0_words());
  check(Matrices(2, 6, 4, 4), tiles::deepgemm_int8_fp4());
  check(Matrices(2, 6, 4, 4), tiles::transpose_packed_fp4());
}

std::string described(const std::vector<Step>& steps) {
  std::string text;
  for (const Step& step : steps) text += (text.empty() ? "" : " ") + describe(step);
  return text;
}

TEST(RequiredLayout, AlignsRowScalesOnSm90) {
  const ScaleFactors scales{"sf", DType::f32, {13, 5}, {}};
  EXPECT_EQ(described(required_layout(scales, {.arch = 9, .mn = 13, .k = 640})),
            "deepgemm_tma_aligned");
  EXPECT_EQ(described(required_layout(
                scales, {.arch = 10, .mn = 13, .k = 640, .disable_ue8m0_cast = true})),
            "deepgemm_tma_aligned");
}

TEST(RequiredLayout, KeepsBlockScalesOnSm90) {
  const ScaleRequest request{.arch = 9, .mn = 300, .k = 512, .gran_mn = 128, .groups = 2};
  const auto layout = [&request](std::vector<std::int64_t> strides) {
    return described(required_layout({"sf", DType::f32, {2, 3, 4}, std::move(strides)}, request));
  };
  EXPECT_EQ(layout({}), "");
  EXPECT_EQ(layout({12, 4, 1}), "");
  EXPECT_EQ(layout({12, 1, 3}), "deepgemm_mn_major");
  EXPECT_THAT(error_of([&] { layout({16, 1, 4}); }), HasSubstr("exactly transposed"));
  EXPECT_THAT(error_of([&] { layout({24, 4, 1}); }), HasSubstr("contiguous"));
}

TEST(RequiredLayout, RepeatsAndPacksOnSm100) {
  const ScaleFactors blocks{"sf", DType::f32, {2, 2, 9}, {}};
  EXPECT_EQ(described(required_layout(
                blocks, {.mn = 135, .k = 288, .gran_mn = 128, .gran_k = 32, .groups = 2})),
            "deepgemm_exponents repeat_rows(128) deepgemm_pack_ue8m0");
  const ScaleFactors rows{"sf", DType::f32, {135, 3}, {}};
  EXPECT_EQ(described(required_layout(rows, {.mn = 135, .k = 300})),
            "deepgemm_exponents deepgemm_pack_ue8m0");
}

TEST(RequiredLayout, KeepsPackedWordsOnSm100) {
  const auto layout = [](std::int64_t mn, std::vector<std::int64_t> strides) {
    return described(required_layout({"sf", DType::i32, {3, mn, 2}, std::move(strides)},
                                     {.mn = mn, .k = 1000, .groups = 3}));
  };
  EXPECT_EQ(layout(13, {32, 1, 16}), "deepgemm_tma_aligned");
  EXPECT_EQ(layout(1, {8, 2, 4}), "deepgemm_tma_aligned");
  EXPECT_THAT(error_of([&] { layout(13, {}); }), HasSubstr("MN-major with 16 words"));
  EXPECT_THAT(error_of([&] { layout(13, {26, 1, 13}); }), HasSubstr("16 words"));
  EXPECT_THAT(error_of([&] { layout(13, {64, 1, 16}); }), HasSubstr("16 words"));
}

TEST(RequiredLayout, NamesEveryMistake) {
  const auto error = [](ScaleFactors scales, ScaleRequest request) {
    scales.name = "sf";
    return error_of([&] { required_layout(scales, request); });
  };
  const ScaleRequest plain{.mn = 16, .k = 256};
  EXPECT_THAT(error({.dtype = DType::bf16, .shape = {16, 2}}, plain), HasSubstr("is BF16"));
  EXPECT_THAT(error({.shape = {1, 16, 2}}, plain), HasSubstr("need rank 2"));
  EXPECT_THAT(error({.shape = {16, 2}}, {.mn = 16, .k = 256, .groups = 1}),
              HasSubstr("need rank 3"));
  EXPECT_THAT(error({.shape = {3, 16, 2}}, {.mn = 16, .k = 256, .groups = 2}),
              HasSubstr("has 3 groups; 2 are needed"));
  EXPECT_THAT(error({.shape = {15, 2}}, plain), HasSubstr("need [16, 2]"));
  EXPECT_THAT(error({.shape = {16, 3}}, plain), HasSubstr("need [16, 2]"));
  EXPECT_THAT(error({.dtype = DType::i32, .shape = {16, 2}}, plain), HasSubstr("need [16, 1]"));
  EXPECT_THAT(error({.shape = {16, 2}, .strides = {2}}, plain), HasSubstr("1 strides"));
  EXPECT_THAT(error({.shape = {16, 8}}, {.arch = 9, .mn = 16, .k = 256, .gran_k = 32}),
              HasSubstr("SM90 has no layout for F32 scales of granularity (1, 32)"));
  EXPECT_THAT(error({.shape = {16, 4}}, {.mn = 16, .k = 256, .gran_k = 64}),
              HasSubstr("granularity (1, 64)"));
  EXPECT_THAT(error({.shape = {16, 2}}, {.arch = 12, .mn = 16, .k = 256}), HasSubstr("SM120"));
  EXPECT_THAT(error({.dtype = DType::i32, .shape = {2, 1}}, {.mn = 16, .k = 256, .gran_mn = 8}),
              HasSubstr("I32 scales of granularity (8, 128)"));
  EXPECT_THAT(
      error({.shape = {16, 8}}, {.mn = 16, .k = 256, .gran_k = 32, .disable_ue8m0_cast = true}),
      HasSubstr("which is disabled"));
}

TEST(DefaultRecipe, FollowsTheArchitecture) {
  using Recipe = std::array<std::int64_t, 3>;
  EXPECT_EQ(deepgemm::default_recipe(9, DType::f32, DType::f32), (Recipe{1, 128, 128}));
  EXPECT_EQ(deepgemm::default_recipe(10, DType::f32, DType::f32), (Recipe{1, 128, 128}));
  EXPECT_EQ(deepgemm::default_recipe(10, DType::i32, DType::i32), (Recipe{1, 1, 128}));
  EXPECT_THAT(error_of([] { deepgemm::default_recipe(9, DType::i32, DType::i32); }),
              HasSubstr("SM90 takes no I32"));
}

MoeLayer block_layer(std::int64_t hidden = 256, std::int64_t intermediate = 384) {
  return sample_layer(
      {.experts = 2, .hidden = hidden, .intermediate = intermediate, .weight_format = "fp8_block"});
}

TEST(DeepGemmFp8, KeepsWeightsAndScales) {
  const MoeLayer layer = block_layer(192);
  for (const char* major : {"scale_major=k", "scale_major=mn"}) {
    const PreparedLayer prepared = prepare("deepgemm_fp8", {major}, layer);
    EXPECT_EQ(make(testing::find(prepared, "w13"), 1).bytes,
              testing::logical(*prepared.source, Slot::w13));
    EXPECT_EQ(testing::as_kernel_reads(prepared, "w13_scale", 2, 6, 2, 128, 128),
              testing::logical(*prepared.source, Slot::w13_scale));
    EXPECT_EQ(testing::find(prepared, "w2_scale").shape, (Shape{2, 2, 3}));
  }
  const PreparedLayer transposed = prepare("deepgemm_fp8", {"scale_major=mn"}, layer);
  EXPECT_EQ(testing::find(transposed, "w13_scale").strides, (std::vector<std::int64_t>{12, 1, 6}));
}

TEST(DeepGemmFp8Ue8m0, GivesEveryRowTheExponentOfItsNewBlock) {
  const MoeLayer layer = block_layer();
  const PreparedLayer prepared = prepare("deepgemm_fp8_ue8m0", {}, layer);
  EXPECT_EQ(testing::find(prepared, "w13_scale").shape, (Shape{2, 768, 1}));
  const Bytes rows = testing::as_kernel_reads(prepared, "w13_scale", 2, 768, 2, 1, 128);
  const auto recoder = recode::requantize_ue8m0_scales(Slot::w13).make(*prepared.source);
  const Bytes stored = testing::logical(*prepared.source, Slot::w13_scale);
  for (std::int64_t expert = 0; expert < 2; ++expert) {
    for (std::int64_t row = 0; row < 768; ++row) {
      Bytes block(2);
      recoder->rewrite({expert, row / 128, 0}, std::span(stored).first(8), block);
      for (std::size_t col = 0; col < 2; ++col) {
        ASSERT_EQ(rows[static_cast<std::size_t>(expert * 768 + row) * 2 + col], block[col]);
      }
    }
  }
  const std::vector<float> decoded = prepared.recipe.kernel.w13_scale(rows);
  EXPECT_EQ(decoded[0], std::bit_cast<float>(std::to_integer<std::uint32_t>(rows[0]) << 23));
}

TEST(DeepGemmFp8Ue8m0, CanTakeScalesThatAlreadyArePowersOfTwo) {
  EXPECT_THAT(error_of([] { prepare("deepgemm_fp8_ue8m0", {"requantize=off"}, block_layer()); }),
              HasSubstr("no power of two"));
  MoeLayer layer = block_layer();
  std::vector<float> powers(64, 0.25f);
  for (Expert& expert : layer.experts) {
    for (ScaledMatrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
      matrix->scales->data = reinterpret_cast<const std::byte*>(powers.data());
    }
  }
  const PreparedLayer prepared = prepare("deepgemm_fp8_ue8m0", {"requantize=off"}, layer);
  EXPECT_EQ(make(testing::find(prepared, "w2"), 1).bytes,
            testing::logical(*prepared.source, Slot::w2));
  EXPECT_EQ(testing::as_kernel_reads(prepared, "w2_scale", 1, 256, 3, 1, 128),
            Bytes(2 * 256 * 3, std::byte{125}));
}

TEST(DeepGemmFp8Ue8m0, RejectsSizesThatCutABlock) {
  const auto error = [](std::int64_t hidden, std::int64_t intermediate) {
    return error_of([&] { prepare("deepgemm_fp8_ue8m0", {}, block_layer(hidden, intermediate)); });
  };
  EXPECT_THAT(error(192, 256), HasSubstr("hidden is 192"));
  EXPECT_THAT(error(256, 192), HasSubstr("intermediate is 192"));
}

TEST(DeepGemmFp4, PacksScalesOf32Columns) {
  const MoeLayer layer = sample_layer(
      {.experts = 3, .hidden = 160, .intermediate = 96, .weight_format = "mxfp4", .limit = 10.0f});
  const PreparedLayer prepared = prepare("deepgemm_fp4", {}, layer);
  EXPECT_EQ(testing::find(prepared, "w13").dtype, DType::i8);
  EXPECT_EQ(testing::find(prepared, "w13").shape, (Shape{3, 192, 80}));
  EXPECT_EQ(testing::find(prepared, "w13_scale").shape, (Shape{3, 192, 2}));
  EXPECT_EQ(testing::find(prepared, "w2_scale").shape, (Shape{3, 160, 1}));
  EXPECT_EQ(testing::as_kernel_reads(prepared, "w13", 2, 192, 160),
            testing::logical(*prepared.source, Slot::w13));
  EXPECT_EQ(testing::as_kernel_reads(prepared, "w13_scale", 2, 192, 5, 1, 32),
            testing::logical(*prepared.source, Slot::w13_scale));
  EXPECT_EQ(testing::find(prepared, "swiglu_limit").values, std::vector<float>{10.0f});
}

TEST(DeepGemm, RefusesBiases) {
  const std::vector<std::pair<std::string, std::string>> backends{
      {"deepgemm_fp8", "fp8_block"},
      {"deepgemm_fp8_ue8m0", "fp8_block"},
      {"deepgemm_fp4", "mxfp4"}};
  for (const auto& one : backends) {
    const MoeLayer layer = sample_layer({.bias = true, .weight_format = one.second});
    EXPECT_THAT(error_of([&] { prepare(one.first, {}, layer); }), HasSubstr("adds no bias"));
  }
}

}  // namespace
}  // namespace moeref
