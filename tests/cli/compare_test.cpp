#include "cli/compare.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <limits>

#include "quant/error.hpp"

namespace moeref::cli {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

Tensor f32(std::string tensor, Shape shape, const std::vector<float>& values) {
  return make_tensor<float>(std::move(tensor), DType::f32, std::move(shape), values);
}

Tensor ids(Shape shape, const std::vector<std::int32_t>& values) {
  return make_tensor<std::int32_t>("topk_ids", DType::i32, std::move(shape), values);
}

TEST(Compare, CallsTheSameBitsIdentical) {
  const Tensor golden = f32("final", {2, 2}, {1.0f, -0.0f, kNan, 4.0f});
  const Comparison result = compare_tensors("final", golden.view(), golden.view(), {});
  EXPECT_EQ(result.verdict, Verdict::identical);
  EXPECT_EQ(result.differing, 0);
  EXPECT_EQ(result.nan_actual, 1);
}

TEST(Compare, CountsMinusZeroAsOtherBitsAndZeroUlps) {
  const Tensor golden = f32("final", {1, 1}, {0.0f});
  const Tensor actual = f32("final", {1, 1}, {-0.0f});
  const Comparison result = compare_tensors("final", actual.view(), golden.view(), {});
  EXPECT_EQ(result.verdict, Verdict::wrong);
  EXPECT_EQ(result.differing, 1);
  EXPECT_EQ(result.largest_ulps, 0);
  EXPECT_EQ(result.first->golden_bits, "0x00000000");
  EXPECT_EQ(result.first->actual_bits, "0x80000000");
}

TEST(Compare, NamesTheFirstWrongTokenAndColumnAndTheWorst) {
  const Tensor golden = f32("final", {3, 2}, {1, 2, 3, 4, 5, 6});
  const Tensor actual = f32("final", {3, 2}, {1, 2, 3, 4.5f, 5, 9});
  const Comparison result = compare_tensors("final", actual.view(), golden.view(), {});
  EXPECT_EQ(result.first->coordinates, "token 1, hidden 1");
  ASSERT_EQ(result.worst.size(), 2u);
  EXPECT_EQ(result.worst[0].coordinates, "token 2, hidden 1");
  EXPECT_EQ(result.largest_difference, 3.0);
  EXPECT_EQ(result.worst_rows.size(), 2u);
  EXPECT_EQ(result.worst_rows[0].index, 1);
}

TEST(Compare, MeasuresUlpsInTheTensorsOwnType) {
  const std::vector<std::uint16_t> expected{0x3F80, 0x8001};
  const std::vector<std::uint16_t> found{0x3F83, 0x0002};
  const Tensor golden = make_tensor<std::uint16_t>("final", DType::bf16, {1, 2}, expected);
  const Tensor actual = make_tensor<std::uint16_t>("final", DType::bf16, {1, 2}, found);
  const Comparison result = compare_tensors("final", actual.view(), golden.view(), {});
  EXPECT_EQ(result.first->ulps, 3);
  EXPECT_EQ(result.largest_ulps, 3);  // across zero: -1 to +2
}

TEST(Compare, AllowsWhatLiesInsideTheBounds) {
  const Tensor golden = f32("final", {1, 3}, {1, 2, 3});
  const Tensor low = f32("low.final", {1, 3}, {0.5f, 2, 3});
  const Tensor high = f32("high.final", {1, 3}, {1.5f, 2, 3.25f});
  const TensorView low_view = low.view();
  const TensorView high_view = high.view();
  const Context bounds{&low_view, &high_view, nullptr};
  const Tensor inside = f32("final", {1, 3}, {1.5f, 2, 3.25f});
  EXPECT_EQ(compare_tensors("final", inside.view(), golden.view(), bounds).verdict,
            Verdict::allowed);
  const Tensor outside = f32("final", {1, 3}, {1.5f, 2, 3.5f});
  const Comparison result = compare_tensors("final", outside.view(), golden.view(), bounds);
  EXPECT_EQ(result.verdict, Verdict::wrong);
  EXPECT_EQ(result.differing, 2);
  EXPECT_EQ(result.outside, 1);
  EXPECT_EQ(result.first->allowed, "[3, 3.25]");
}

TEST(Compare, NeverLetsNanPass) {
  const Tensor golden = f32("final", {1, 1}, {1});
  const Tensor low = f32("low.final", {1, 1}, {-std::numeric_limits<float>::infinity()});
  const Tensor high = f32("high.final", {1, 1}, {std::numeric_limits<float>::infinity()});
  const TensorView low_view = low.view();
  const TensorView high_view = high.view();
  const Tensor actual = f32("final", {1, 1}, {kNan});
  const Comparison result =
      compare_tensors("final", actual.view(), golden.view(), {&low_view, &high_view, nullptr});
  EXPECT_EQ(result.verdict, Verdict::wrong);
  EXPECT_EQ(result.first->ulps, -1);
}

TEST(Compare, BlamesTheExpertsOfWrongTokens) {
  const Tensor golden = f32("final", {3, 1}, {1, 2, 3});
  const Tensor actual = f32("final", {3, 1}, {1, 2.5f, 3.5f});
  const Tensor routing = ids({3, 2}, {0, 1, 2, 1, 2, 3});
  const TensorView routing_view = routing.view();
  const Comparison result =
      compare_tensors("final", actual.view(), golden.view(), {nullptr, nullptr, &routing_view});
  ASSERT_GE(result.worst_experts.size(), 2u);
  EXPECT_EQ(result.worst_experts[0].index, 2);
  EXPECT_EQ(result.worst_experts[0].wrong, 2);
  EXPECT_EQ(result.worst_experts[0].total, 2);
  EXPECT_EQ(result.worst_experts.back().index, 1);
}

TEST(Compare, ReportsOtherShapesAndTypes) {
  const Tensor golden = f32("final", {2, 1}, {1, 2});
  const Tensor actual = f32("final", {1, 2}, {1, 2});
  const Comparison result = compare_tensors("final", actual.view(), golden.view(), {});
  EXPECT_EQ(result.verdict, Verdict::wrong);
  EXPECT_EQ(to_text(result), "final: wrong: it is F32 [1, 2], the golden tensor is F32 [2, 1]\n");
}

TEST(Compare, BlamesOnlyTheSlotsExpertInAStageWithSlots) {
  const Tensor golden = f32("gemm2", {2, 2, 1}, {1, 2, 3, 4});
  const Tensor actual = f32("gemm2", {2, 2, 1}, {1, 2, 3, 9});
  const Tensor routing = ids({2, 2}, {0, 1, 2, 3});
  const TensorView routing_view = routing.view();
  const Comparison result =
      compare_tensors("gemm2", actual.view(), golden.view(), {nullptr, nullptr, &routing_view});
  ASSERT_EQ(result.worst_experts.size(), 1u);
  EXPECT_EQ(result.worst_experts[0].index, 3);
  EXPECT_EQ(result.first->coordinates, "token 1, slot 1, column 0");
}

TEST(Compare, TakesIdsOfAnyIntegerWidth) {
  const std::vector<std::int64_t> wide{4, -1};
  const Tensor golden = ids({1, 2}, {4, -1});
  const Tensor actual = make_tensor<std::int64_t>("topk_ids", DType::i64, {1, 2}, wide);
  EXPECT_EQ(compare_tensors("topk_ids", actual.view(), golden.view(), {}).verdict,
            Verdict::identical);
}

TEST(Compare, FindsAUniformFactor) {
  const Tensor golden = f32("final", {1, 4}, {1, -2, 3, 0.5f});
  const Tensor actual = f32("final", {1, 4}, {2.5f, -5, 7.5f, 1.25f});
  const Comparison result = compare_tensors("final", actual.view(), golden.view(), {});
  EXPECT_DOUBLE_EQ(result.ratio, 2.5);
  EXPECT_DOUBLE_EQ(result.cosine, 1.0);
}

TEST(AlignSlots, FollowsTheGoldenOrderOfExperts) {
  const Tensor golden = ids({2, 3}, {4, 1, 7, 0, 2, 5});
  const Tensor actual = ids({2, 3}, {7, 4, 1, 0, 2, 6});
  const Tensor rows = f32("gemm2", {2, 3, 1}, {70, 40, 10, 1, 2, 3});
  const auto aligned = align_slots(rows.view(), actual.view(), golden.view());
  ASSERT_TRUE(aligned.has_value());
  const std::vector<float> expected{40, 10, 70, 1, 2, 3};  // token 1 has other experts: as it was
  EXPECT_EQ(std::memcmp(aligned->bytes.data(), expected.data(), 6 * sizeof(float)), 0);
  EXPECT_FALSE(align_slots(rows.view(), golden.view(), golden.view()).has_value());
}

}  // namespace
}  // namespace moeref::cli
