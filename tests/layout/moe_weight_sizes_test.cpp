#include "layout/moe_weight_sizes.hpp"

#include <gtest/gtest.h>

#include "quant/error.hpp"

namespace moeref {
namespace {

void expect_sizes(const MoeWeightRequest& request, std::int64_t up, std::int64_t down,
                  bool padded) {
  const MoeWeightSizes sizes = moe_weight_sizes(request);
  EXPECT_EQ(sizes.w13_up_dim, up);
  EXPECT_EQ(sizes.w2_down_dim, down);
  EXPECT_EQ(sizes.is_padded, padded);
}

TEST(MoeWeightSizes, PadsBothTensorsTo128ForAiter) {
  expect_sizes({.intermediate = 192}, 512, 256, true);
  expect_sizes({.intermediate = 256}, 512, 256, false);
  expect_sizes({.intermediate = 1}, 256, 128, true);
}

TEST(MoeWeightSizes, PadsPackedTensorsTo256Values) {
  expect_sizes({.intermediate = 192, .packed = true}, 512, 128, true);
  expect_sizes({.intermediate = 384, .packed = true}, 1024, 256, true);
  expect_sizes({.intermediate = 256, .packed = true}, 512, 128, false);
}

TEST(MoeWeightSizes, LeavesRowsUnpaddedWithoutConcat) {
  expect_sizes({.intermediate = 192, .concat = false}, 192, 256, true);
}

TEST(MoeWeightSizes, DoublesPackedRowsWithoutConcat) {
  expect_sizes({.intermediate = 192, .concat = false, .packed = true}, 384, 128, true);
}

TEST(MoeWeightSizes, HalvesPackedRowsWithoutTheFp4Type) {
  expect_sizes({.intermediate = 384, .packed = true, .fp4x2_dtype = false}, 512, 256, true);
}

TEST(MoeWeightSizes, PadsNothingForOtherRunners) {
  expect_sizes({.intermediate = 192, .aiter = false}, 384, 192, false);
  expect_sizes({.intermediate = 193, .packed = true, .aiter = false}, 386, 96, false);
}

TEST(MoeWeightSizes, RejectsANegativeSize) {
  EXPECT_THROW(moe_weight_sizes({.intermediate = -1}), Error);
}

}  // namespace
}  // namespace moeref
