// What the golden operations of TRTLLM-Gen layouts reject, as the originals do.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::HasSubstr;

/// A case in memory, of zeros.
class Case {
 public:
  Case(std::string op, nlohmann::json params) {
    golden_.path = "case.safetensors";
    golden_.op = std::move(op);
    golden_.params = std::move(params);
  }
  Case& input(const std::string& name, DType dtype, Shape shape) {
    const auto bytes = static_cast<std::size_t>(element_count(shape) * info(dtype).bits / 8);
    buffers_.push_back(std::make_shared<std::vector<std::byte>>(bytes));
    golden_.inputs[name] = {"in." + name, dtype, std::move(shape), *buffers_.back()};
    return *this;
  }
  std::string run() const {
    return error_of([&] { conform::find_operation(golden_.op)(golden_); });
  }
  /// Of an output.
  Shape shape(std::string_view output) const {
    const auto outputs = conform::find_operation(golden_.op)(golden_).outputs;
    return std::get<Tensor>(outputs.find(output)->second).shape;
  }

 private:
  GoldenCase golden_;
  std::vector<std::shared_ptr<const std::vector<std::byte>>> buffers_;
};

Case shuffle(DType dtype, Shape shape, std::int64_t tile = 128) {
  return Case("shuffle_matrix_a", {{"epilogue_tile_m", tile}}).input("x", dtype, std::move(shape));
}

Case shuffle_scales(DType dtype, Shape shape, nlohmann::json params = {{"epilogue_tile_m", 128}}) {
  return Case("shuffle_matrix_sf_a", std::move(params)).input("sf", dtype, std::move(shape));
}

TEST(ShuffleMatrixA, RejectsRowsThatFillNoBlock) {
  EXPECT_THAT(shuffle(DType::u8, {16, 4}).run(), HasSubstr("multiple of 32 (epilogue tile 128)"));
  EXPECT_THAT(shuffle(DType::u8, {24, 4}).run(), HasSubstr("multiple of 32"));
  EXPECT_THAT(shuffle(DType::u8, {24, 4}, 64).run(), HasSubstr("multiple of 16"));
  EXPECT_EQ(shuffle(DType::u8, {48, 4}, 64).run(), "no error");
  EXPECT_THAT(shuffle(DType::u8, {1, 32, 4}).run(), HasSubstr("takes [rows, columns]"));
}

TEST(ShuffleMatrixSfA, RejectsWhatTheOriginalAsserts) {
  EXPECT_EQ(shuffle_scales(DType::u8, {128, 5}).run(), "no error");
  EXPECT_EQ(shuffle_scales(DType::bf16, {128, 5}).run(), "no error");
  EXPECT_THAT(shuffle_scales(DType::u8, {96, 4}).run(), HasSubstr("a multiple of 128"));
  EXPECT_THAT(shuffle_scales(DType::f32, {128, 4}).run(), HasSubstr("takes 8 or 16 bits"));
  EXPECT_THAT(shuffle_scales(DType::u8, {1, 128, 4}).run(), HasSubstr("takes [rows, columns]"));
  EXPECT_THAT(
      shuffle_scales(DType::u8, {128, 4}, {{"epilogue_tile_m", 128}, {"num_elts_per_sf", 8}}).run(),
      HasSubstr("must be 16 or 32"));
}

TEST(RowPermutations, RejectOddRows) {
  EXPECT_THAT(Case("trtllm_row_permutations", {{"M", 33}, {"epilogue_tile_m", 128}}).run(),
              HasSubstr("params.M is 33; the gated reorder needs an even number"));
}

Case prepare(const std::string& op, DType scale, std::int64_t hidden, std::int64_t intermediate,
             std::int64_t codes_per_byte, std::int64_t block) {
  Case made(op, {{"epilogue_tile_m", 128}});
  made.input("w13", DType::u8, {1, 2 * intermediate, hidden / codes_per_byte})
      .input("w13_scale", scale, {1, 2 * intermediate, hidden / block})
      .input("w2", DType::u8, {1, hidden, intermediate / codes_per_byte})
      .input("w2_scale", scale, {1, hidden, intermediate / block});
  return made;
}

Case align(std::int64_t intermediate, std::int64_t scales, std::int64_t alignment) {
  return Case("align_fp4_moe_weights", {{"min_alignment", alignment}, {"gated", true}})
      .input("w13", DType::u8, {1, 2 * intermediate, 32})
      .input("w13_scale", DType::u8, {1, 2 * intermediate, 4})
      .input("w2", DType::u8, {1, 64, intermediate / 2})
      .input("w2_scale", DType::u8, {1, 64, scales});
}

// The original allocates padded / 16 columns and copies what there is, whole block or not.
TEST(AlignFp4, PadsScalesToSixteenthsOfThePaddedSize) {
  EXPECT_EQ(align(40, 3, 16).shape("w2_scale"), (Shape{1, 64, 3}));
  EXPECT_EQ(align(40, 2, 16).shape("w2_scale"), (Shape{1, 64, 3}));
  EXPECT_EQ(align(24, 1, 128).shape("w2_scale"), (Shape{1, 64, 8}));
  EXPECT_EQ(align(24, 1, 8).shape("w2_scale"), (Shape{1, 64, 1}));
  EXPECT_EQ(align(24, 1, 128).shape("w13_scale"), (Shape{1, 256, 4}));
  EXPECT_THAT(align(40, 4, 16).run(), HasSubstr("w2_scale"));
}

TEST(AlignFp4, RejectsSizesThatAreNone) {
  EXPECT_THAT(align(32, 2, 0).run(), HasSubstr("params.min_alignment is 0"));
  EXPECT_THAT(align(32, 0, 16).run(), HasSubstr("0 columns of scales"));
}

TEST(BlockLayout, TakesBlocksOfOneColumn) {
  const Case one = Case("convert_to_block_layout", {{"blockK", 1}}).input("x", DType::u8, {4, 10});
  EXPECT_EQ(one.run(), "no error");
  EXPECT_EQ(element_count(one.shape("y")), 40);
  EXPECT_THAT(
      Case("convert_to_block_layout", {{"blockK", -1}}).input("x", DType::u8, {4, 10}).run(),
      HasSubstr("params.blockK is -1"));
}

TEST(PrepareTrtllm, RejectsScalesThatFillNoTile) {
  const auto nvfp4 = [](std::int64_t hidden, std::int64_t intermediate) {
    return prepare("prepare_trtllm_nvfp4", DType::u8, hidden, intermediate, 2, 16).run();
  };
  EXPECT_EQ(nvfp4(128, 64), "no error");
  EXPECT_THAT(nvfp4(96, 64), HasSubstr("hidden is 96, it must be a multiple of 128"));
  EXPECT_THAT(nvfp4(128, 48), HasSubstr("padded intermediate is 48"));
  const auto mxfp8 = [](std::int64_t hidden, std::int64_t intermediate) {
    return prepare("prepare_trtllm_mxfp8", DType::u8, hidden, intermediate, 1, 32).run();
  };
  EXPECT_EQ(mxfp8(128, 128), "no error");
  EXPECT_THAT(mxfp8(128, 64), HasSubstr("padded intermediate is 64"));
}

TEST(PrepareTrtllm, RejectsAnotherEpilogueTile) {
  Case made("prepare_trtllm_bf16", {{"epilogue_tile_m", 64}});
  made.input("w13", DType::bf16, {1, 128, 64}).input("w2", DType::bf16, {1, 64, 64});
  EXPECT_THAT(made.run(), HasSubstr("params.epilogue_tile_m is 64; flashinfer_trtllm_bf16"));
}

TEST(PrepareTrtllm, RejectsTensorsThatDoNotFit) {
  Case made("prepare_trtllm_bf16", {{"gated", true}});
  made.input("w13", DType::bf16, {1, 128, 64}).input("w2", DType::bf16, {1, 64, 128});
  EXPECT_THAT(made.run(), HasSubstr("in.w2"));
}

}  // namespace
}  // namespace moeref
