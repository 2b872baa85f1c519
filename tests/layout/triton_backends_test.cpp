// What the plain and the Triton backends prepare, read back as their kernels read it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "layout/backend.hpp"
#include "quant/cast.hpp"
#include "quant/formats.hpp"
#include "tests/layout/layout_support.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using testing::Bytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::prepare;

/// Halves of a matrix and how much padding is behind each.
struct Extent {
  int halves;
  std::int64_t rows;  ///< of a half
  std::int64_t padded_rows;
  std::int64_t cols;
  std::int64_t padded_cols;
  int bits;
};

/// What `read` should be: `loaded` with zero rows at the end of each half and zero columns.
Bytes padded(const Bytes& loaded, std::int64_t experts, const Extent& extent) {
  const std::int64_t in_row = extent.cols * extent.bits / 8;
  const std::int64_t out_row = extent.padded_cols * extent.bits / 8;
  Bytes bytes(static_cast<std::size_t>(experts * extent.halves * extent.padded_rows * out_row));
  for (std::int64_t part = 0; part < experts * extent.halves; ++part) {
    for (std::int64_t row = 0; row < extent.rows; ++row) {
      std::copy_n(loaded.begin() + (part * extent.rows + row) * in_row, in_row,
                  bytes.begin() + (part * extent.padded_rows + row) * out_row);
    }
  }
  return bytes;
}

std::vector<float> values_of(const PreparedLayer& layer, std::string_view name) {
  return testing::find(layer, name).values;
}

bool has(const PreparedLayer& layer, std::string_view name) {
  return std::any_of(layer.tensors.begin(), layer.tensors.end(),
                     [name](const PreparedTensor& tensor) { return tensor.name == name; });
}

TEST(Reference, GivesEveryFormatAsItIs) {
  for (const char* format : {"mxfp4", "nvfp4", "nvfp4_ct", "fp8_tensor", "fp8_channel", "fp8_block",
                             "mxfp8", "bf16", "f16", "f32"}) {
    for (const bool gated : {true, false}) {
      const MoeLayer layer = sample_layer({.experts = 3,
                                           .hidden = 160,
                                           .intermediate = 96,
                                           .gated = gated,
                                           .bias = gated,
                                           .weight_format = format});
      const PreparedLayer prepared = prepare("reference", {}, layer);
      for (const TensorRecipe& recipe : prepared.recipe.tensors) {
        EXPECT_TRUE(recipe.steps.empty());
        EXPECT_EQ(make(testing::find(prepared, recipe.name), 1).bytes,
                  testing::logical(*prepared.source, recipe.from))
            << format << ' ' << recipe.name;
      }
      EXPECT_EQ(prepared.recipe.kernel.order, gated ? GateOrder::gate_up : GateOrder::none);
    }
  }
}

TEST(Reference, DecodesScalesAndFactorsAsStored) {
  const MoeLayer layer = sample_layer({.weight_format = "nvfp4"});
  const PreparedLayer prepared = prepare("reference", {}, layer);
  const Bytes scales = make(testing::find(prepared, "w13_scale"), 1).bytes;
  const std::vector<float> decoded = prepared.recipe.kernel.w13_scale(scales);
  ASSERT_EQ(decoded.size(), scales.size());
  EXPECT_EQ(decoded[7], decode(Format::e4m3, std::to_integer<std::uint32_t>(scales[7])));
  const ScalarValues scalars{{"w13_scale_2", values_of(prepared, "w13_scale_2")},
                             {"w2_scale_2", values_of(prepared, "w2_scale_2")}};
  const KernelReading& kernel = prepared.recipe.kernel;
  EXPECT_EQ(kernel.gate_factor(scalars, 1), layer.experts[1].gate.global_scale);
  EXPECT_EQ(kernel.up_factor(scalars, 1), layer.experts[1].up.global_scale);
  EXPECT_EQ(kernel.down_factor(scalars, 0), layer.experts[0].down.global_scale);
}

TEST(Reference, HasOneFactorForAMatrixThatIsNotGated) {
  const MoeLayer layer = sample_layer({.gated = false, .weight_format = "fp8_tensor"});
  const PreparedLayer prepared = prepare("reference", {}, layer);
  const ScalarValues scalars{{"w13_scale", values_of(prepared, "w13_scale")},
                             {"w2_scale", values_of(prepared, "w2_scale")}};
  EXPECT_EQ(prepared.recipe.kernel.up_factor(scalars, 1), prepared.source->scalars.w13_scale[1]);
}

TEST(TritonBf16, KeepsHalvesOrAlternatesRows) {
  const MoeLayer layer = sample_layer({.bias = true, .weight_format = "bf16"});
  for (const char* rows : {"rows=halves", "rows=interleaved"}) {
    const PreparedLayer prepared = prepare("triton_bf16", {rows}, layer);
    EXPECT_EQ(testing::as_kernel_reads(prepared, "w13", 2, 512, 256),
              testing::logical(*prepared.source, Slot::w13));
    EXPECT_EQ(testing::as_kernel_reads(prepared, "w13_bias", 2, 512, 1),
              testing::logical(*prepared.source, Slot::w13_bias));
  }
  const PreparedLayer alternating = prepare("triton_bf16", {"rows=interleaved"}, layer);
  const Bytes made = make(testing::find(alternating, "w13"), 1).bytes;
  const Bytes logical = testing::logical(*alternating.source, Slot::w13);
  EXPECT_TRUE(std::equal(made.begin() + 512, made.begin() + 1024, logical.begin() + 256 * 512));
}

TEST(TritonFp8Channel, HasAnF32ScaleForEachRow) {
  const MoeLayer layer = sample_layer(
      {.experts = 2, .hidden = 96, .intermediate = 40, .weight_format = "fp8_channel"});
  const PreparedLayer prepared = prepare("triton_fp8_channel", {}, layer);
  EXPECT_EQ(testing::find(prepared, "w13_scale").shape, (Shape{2, 80, 1}));
  EXPECT_EQ(testing::find(prepared, "w2_scale").shape, (Shape{2, 96, 1}));
  EXPECT_EQ(testing::find(prepared, "w13_scale").dtype, DType::f32);
  EXPECT_EQ(make(testing::find(prepared, "w13"), 1).bytes,
            testing::logical(*prepared.source, Slot::w13));
}

TEST(TritonFp8Channel, AppendsColumnsThatTheKernelStepsOver) {
  const MoeLayer layer = sample_layer(
      {.experts = 2, .hidden = 96, .intermediate = 40, .weight_format = "fp8_channel"});
  const PreparedLayer prepared = prepare("triton_fp8_channel", {"moe_padding=128"}, layer);
  EXPECT_EQ(testing::find(prepared, "w13").shape, (Shape{2, 80, 224}));
  EXPECT_EQ(testing::find(prepared, "w2").shape, (Shape{2, 96, 168}));
  EXPECT_EQ(testing::find(prepared, "w13_scale").shape, (Shape{2, 80, 1}));
  EXPECT_EQ(prepared.recipe.kernel.hidden, 96);
  EXPECT_EQ(prepared.recipe.kernel.unread_k, 0);
  EXPECT_EQ(make(testing::find(prepared, "w13"), 1).bytes,
            padded(testing::logical(*prepared.source, Slot::w13), 2, {2, 40, 40, 96, 224, 8}));
  EXPECT_EQ(testing::as_kernel_reads(prepared, "w2", 1, 96, 40),
            testing::logical(*prepared.source, Slot::w2));
}

TEST(TritonFp8Channel, NamesTheUpstreamPaddingDefect) {
  const MoeLayer layer = sample_layer({.weight_format = "fp8_channel"});
  const PreparedLayer prepared =
      prepare("triton_fp8_channel", {"moe_padding=cuda_upstream"}, layer);
  EXPECT_EQ(prepared.recipe.kernel.unread_k, 128);
  EXPECT_EQ(testing::find(prepared, "w13").shape, (Shape{2, 512, 256}));
  EXPECT_THAT(prepared.recipe.notes, ElementsAre(HasSubstr("upstream defect")));
}

TEST(TritonFp8, DoublesScalesForFnuz) {
  for (const char* format : {"fp8_channel", "fp8_block"}) {
    const MoeLayer layer = sample_layer({.weight_format = format});
    const std::string backend = std::string("triton_") + format;
    const PreparedLayer prepared = prepare(backend, {"fnuz=on"}, layer);
    const std::vector<float> doubled =
        testing::floats(make(testing::find(prepared, "w13_scale"), 1).bytes);
    const std::vector<float> stored =
        testing::floats(testing::logical(*prepared.source, Slot::w13_scale));
    ASSERT_EQ(doubled.size(), stored.size());
    for (std::size_t i = 0; i < stored.size(); ++i) EXPECT_EQ(doubled[i], 2.0f * stored[i]);
    const Bytes made = make(testing::find(prepared, "w13"), 1).bytes;
    const Bytes codes = testing::logical(*prepared.source, Slot::w13);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      ASSERT_EQ(made[i], codes[i] == std::byte{0x80} ? std::byte{0} : codes[i]);
    }
    EXPECT_EQ(testing::find(prepared, "w13").dtype, DType::f8_e4m3fnuz);
    EXPECT_EQ(prepared.recipe.kernel.codes, Format::e4m3fnuz);
  }
}

TEST(TritonFp8Block, KeepsCodesAndScales) {
  const MoeLayer layer = sample_layer(
      {.experts = 2, .hidden = 320, .intermediate = 256, .weight_format = "fp8_block"});
  const PreparedLayer prepared = prepare("triton_fp8_block", {}, layer);
  EXPECT_EQ(testing::find(prepared, "w13_scale").shape, (Shape{2, 4, 3}));
  EXPECT_EQ(testing::find(prepared, "w2_scale").shape, (Shape{2, 3, 2}));
  for (const Slot slot : {Slot::w13, Slot::w13_scale, Slot::w2, Slot::w2_scale}) {
    EXPECT_EQ(make(testing::find(prepared, name(slot)), 1).bytes,
              testing::logical(*prepared.source, slot));
  }
}

TEST(TritonFp8Block, RejectsARankThatCutsABlock) {
  const MoeLayer layer = sample_layer({.intermediate = 192, .weight_format = "fp8_block"});
  EXPECT_THAT(error_of([&] { prepare("triton_fp8_block", {}, layer); }),
              HasSubstr("intermediate is 192"));
}

/// One code of a half with its own scale, to the common one: what the framework computes.
std::byte requantized(std::byte code, float own, float common) {
  const float value = decode(Format::e4m3, std::to_integer<std::uint32_t>(code));
  const float product = cast<Format::f16>(value * cast<Format::f16>(own));
  const float scaled = std::clamp(product * (1.0f / common), -448.0f, 448.0f);
  return static_cast<std::byte>(encode(Format::e4m3, scaled, EncodePolicy::torch));
}

TEST(TritonFp8Tensor, RequantizesBothHalvesToTheLargerScale) {
  const MoeLayer layer =
      sample_layer({.experts = 2, .hidden = 48, .intermediate = 24, .weight_format = "fp8_tensor"});
  const PreparedLayer prepared = prepare("triton_fp8_tensor", {}, layer);
  const std::vector<float> own = prepared.source->scalars.w13_scale;
  const std::vector<float> common = values_of(prepared, "w13_scale");
  EXPECT_THAT(common, ElementsAre(std::max(own[0], own[1]), std::max(own[2], own[3])));
  EXPECT_EQ(values_of(prepared, "w2_scale"), prepared.source->scalars.w2_scale);
  const Bytes codes = testing::logical(*prepared.source, Slot::w13);
  const Bytes made = make(testing::find(prepared, "w13"), 1).bytes;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::size_t half = i / (24 * 48);
    ASSERT_EQ(made[i], requantized(codes[i], own[half], common[half / 2])) << i;
  }
  const auto& inputs = prepared.source->scalars.w13_input_scale;
  EXPECT_THAT(values_of(prepared, "w13_input_scale"),
              ElementsAre(*std::max_element(inputs.begin(), inputs.end())));
}

TEST(TritonFp8Tensor, DoublesEveryScaleForFnuz) {
  const MoeLayer layer = sample_layer({.weight_format = "fp8_tensor"});
  const PreparedLayer plain = prepare("triton_fp8_tensor", {}, layer);
  const PreparedLayer fnuz = prepare("triton_fp8_tensor", {"fnuz=on"}, layer);
  for (const char* name : {"w13_scale", "w2_scale", "w13_input_scale", "w2_input_scale"}) {
    std::vector<float> doubled = values_of(plain, name);
    for (float& scale : doubled) scale *= 2.0f;
    EXPECT_EQ(values_of(fnuz, name), doubled) << name;
  }
}

TEST(TritonFp8Tensor, RequantizesAtTheUnalignedOffsetAsCompressedTensorsDoes) {
  constexpr std::int64_t kRows = 150;  // of a rank; allocated are 256
  const MoeLayer layer = sample_layer(
      {.experts = 2, .hidden = 32, .intermediate = kRows, .weight_format = "fp8_tensor"});
  const PreparedLayer prepared = prepare("triton_fp8_tensor", {"requantize=ct_upstream"}, layer);
  EXPECT_EQ(testing::find(prepared, "w13").shape, (Shape{2, 512, 32}));
  EXPECT_EQ(testing::find(prepared, "w2").shape, (Shape{2, 32, 256}));
  EXPECT_EQ(prepared.recipe.kernel.intermediate, 256);
  const std::vector<float> own = prepared.source->scalars.w13_scale;
  const std::vector<float> common = values_of(prepared, "w13_scale");
  // The buffer as loaded, halves 256 rows apart; then the loop over two shards of 150 rows.
  Bytes buffer =
      padded(testing::logical(*prepared.source, Slot::w13), 2, {2, kRows, 256, 32, 32, 8});
  for (std::size_t expert = 0; expert < 2; ++expert) {
    for (std::size_t shard = 0; shard < 2; ++shard) {
      const std::size_t begin = (expert * 512 + shard * kRows) * 32;
      for (std::size_t i = begin; i < begin + kRows * 32; ++i) {
        buffer[i] = requantized(buffer[i], own[2 * expert + shard], common[expert]);
      }
    }
  }
  EXPECT_EQ(make(testing::find(prepared, "w13"), 1).bytes, buffer);
}

TEST(TritonFp8Tensor, NotesMisplacedRowsWhereverThereAreSome) {
  const Backend& backend = find_backend("triton_fp8_tensor");
  const auto notes = [&backend](std::int64_t intermediate, const Shard& rank, const char* option) {
    const std::vector<std::string> texts{option};
    const MoeLayer layer = sample_layer(
        {.experts = 1, .hidden = 32, .intermediate = intermediate, .weight_format = "fp8_tensor"});
    return plan_layer(backend, parse_options(backend, texts), layer, rank).recipe.notes;
  };
  const Shard rank{.tp_rank = 5, .tp_size = 8};  // 256 rows, none of them padding
  EXPECT_THAT(notes(1536, rank, "requantize=ct_upstream"),
              ElementsAre(HasSubstr("as if the up half began at row 192 of the rank, it begins at "
                                    "row 256")));
  EXPECT_THAT(notes(150, {}, "requantize=ct_upstream"), ElementsAre(HasSubstr("row 150")));
  EXPECT_TRUE(notes(1024, rank, "requantize=ct_upstream").empty());
  EXPECT_TRUE(notes(1536, rank, "requantize=per_half").empty());
}

TEST(TritonFp8Tensor, RefusesTheCompressedTensorsVariantWithoutAGate) {
  const MoeLayer layer = sample_layer({.gated = false, .weight_format = "fp8_tensor"});
  EXPECT_THAT(error_of([&] { prepare("triton_fp8_tensor", {"requantize=ct_upstream"}, layer); }),
              HasSubstr("not gated"));
}

MoeLayer gpt_oss(std::int64_t hidden = 288, std::int64_t intermediate = 96) {
  return sample_layer({.experts = 3,
                       .hidden = hidden,
                       .intermediate = intermediate,
                       .bias = true,
                       .weight_format = "mxfp4",
                       .interleaved = true});
}

TEST(TritonKernelsMxfp4, KeepsTheWeightsUnderEverySwizzle) {
  const MoeLayer layer = gpt_oss();
  struct Case {
    std::vector<std::string> options;
    std::int64_t rows;  ///< of a half, padded
    std::int64_t hidden;
  };
  for (const Case& test :
       std::vector<Case>{{{"swizzle=hopper"}, 128, 288},
                         {{"swizzle=hopper", "num_warps=4"}, 128, 288},
                         {{"swizzle=hopper", "mma_version=2"}, 128, 288},
                         {{"swizzle=hopper_v35"}, 128, 288},
                         {{"swizzle=blackwell"}, 128, 288},
                         {{"swizzle=blackwell_shuffled"}, 128, 288},
                         {{"swizzle=blackwell_shuffled", "block_n=128"}, 128, 288},
                         {{"swizzle=cdna4"}, 256, 512},
                         {{"swizzle=none"}, 128, 288}}) {
    const PreparedLayer prepared = prepare("triton_kernels_mxfp4", test.options, layer);
    const LayerTensors& loaded = *prepared.source;
    const std::int64_t P = test.rows;
    const std::int64_t H = test.hidden;
    EXPECT_EQ(prepared.recipe.kernel.intermediate, P);
    EXPECT_EQ(prepared.recipe.kernel.hidden, H);
    const auto read = [&](const char* name, int halves, std::int64_t rows, std::int64_t cols,
                          std::int64_t block) {
      return testing::as_kernel_reads(prepared, name, halves, rows, cols, 1, block);
    };
    EXPECT_EQ(read("w13", 2, 2 * P, H, 1),
              padded(testing::logical(loaded, Slot::w13), 3, {2, 96, P, 288, H, 4}))
        << test.options.front();
    EXPECT_EQ(read("w13_scale", 2, 2 * P, H / 32, 32),
              padded(testing::logical(loaded, Slot::w13_scale), 3, {2, 96, P, 9, H / 32, 8}));
    EXPECT_EQ(read("w2", 1, H, P, 1),
              padded(testing::logical(loaded, Slot::w2), 3, {1, 288, H, 96, P, 4}));
    EXPECT_EQ(read("w2_scale", 1, H, P / 32, 32),
              padded(testing::logical(loaded, Slot::w2_scale), 3, {1, 288, H, 3, P / 32, 8}));
    EXPECT_EQ(testing::find(prepared, "w13_bias").dtype, DType::f32);
    EXPECT_EQ(testing::find(prepared, "w13_bias").shape, (Shape{3, 2 * P}));
    EXPECT_EQ(testing::find(prepared, "w2_bias").shape, (Shape{3, H}));
  }
}

TEST(TritonKernelsMxfp4, AlternatesGateAndUpRowsAndBiases) {
  const MoeLayer layer = gpt_oss();
  const PreparedLayer prepared = prepare("triton_kernels_mxfp4", {"swizzle=none"}, layer);
  const Bytes made = make(testing::find(prepared, "w13"), 1).bytes;
  const Bytes loaded = testing::logical(*prepared.source, Slot::w13);
  const std::int64_t row = 288 / 2;
  EXPECT_TRUE(std::equal(made.begin() + 10 * row, made.begin() + 11 * row,
                         loaded.begin() + 5 * row));  // gate 5
  EXPECT_TRUE(std::equal(made.begin() + 11 * row, made.begin() + 12 * row,
                         loaded.begin() + (96 + 5) * row));  // up 5
  const Bytes bias = testing::logical(*prepared.source, Slot::w13_bias);
  const std::vector<float> floats =
      testing::floats(make(testing::find(prepared, "w13_bias"), 1).bytes);
  std::uint16_t up = 0;
  std::memcpy(&up, bias.data() + 2 * (96 + 5), 2);
  EXPECT_EQ(floats[11], decode(Format::bf16, up));
  EXPECT_EQ(floats[2 * 96], 0.0f);
}

TEST(TritonKernelsMxfp4, CutsRanksInBlocksOf32) {
  const MoeLayer layer = gpt_oss(64, 160);  // 5 blocks: 2, 2, 1, none; 40 rows a rank
  for (const std::int64_t rank : {0, 1, 2}) {
    const PreparedLayer prepared =
        prepare("triton_kernels_mxfp4", {}, layer, {.tp_rank = rank, .tp_size = 4});
    EXPECT_EQ(prepared.range.count, rank < 2 ? 64 : 32);
    EXPECT_EQ(prepared.recipe.kernel.intermediate, 64);
    const LayerTensors& loaded = *prepared.source;
    EXPECT_EQ(
        testing::as_kernel_reads(prepared, "w2", 1, 64, 64),
        padded(testing::logical(loaded, Slot::w2), 3, {1, 64, 64, prepared.range.count, 64, 4}));
  }
}

TEST(TritonKernelsMxfp4, RefusesExpertParallelism) {
  EXPECT_THAT(error_of([] {
                prepare("triton_kernels_mxfp4", {}, gpt_oss(), {.ep_rank = 1, .ep_size = 3});
              }),
              HasSubstr("expert parallelism is not supported"));
}

TEST(TritonKernelsMxfp4, PassesOneAlphaAndOneLimit) {
  const PreparedLayer prepared = prepare("triton_kernels_mxfp4", {}, gpt_oss());
  EXPECT_THAT(values_of(prepared, "swiglu_alpha"), ElementsAre(1.702f));
  EXPECT_THAT(values_of(prepared, "swiglu_limit"), ElementsAre(7.0f));
  MoeLayer uneven = gpt_oss();
  uneven.activation.limits = {7.0f, 8.0f, 7.0f};
  EXPECT_THAT(error_of([&] { prepare("triton_kernels_mxfp4", {}, uneven); }),
              HasSubstr("differs from expert to expert"));
}

TEST(TritonKernelsMxfp4, UpcastsToBf16WithoutThePackage) {
  const MoeLayer layer = gpt_oss();
  const PreparedLayer prepared = prepare("triton_kernels_mxfp4", {"swizzle=upcast_bf16"}, layer);
  EXPECT_EQ(testing::find(prepared, "w13").shape, (Shape{3, 256, 288}));
  EXPECT_EQ(testing::find(prepared, "w13").dtype, DType::bf16);
  EXPECT_FALSE(has(prepared, "w13_scale"));
  const Bytes made = testing::as_kernel_reads(prepared, "w13", 2, 256, 288);
  const Bytes codes = testing::logical(*prepared.source, Slot::w13);
  const Bytes scales = testing::logical(*prepared.source, Slot::w13_scale);
  const std::int64_t row = 1 * 192 + 96 + 17;  // expert 1, up row 17
  const std::int64_t stored = 1 * 256 + 128 + 17;
  for (std::int64_t col = 0; col < 288; ++col) {
    const auto code = static_cast<std::uint32_t>(testing::nibble(codes, row * 288 + col));
    const auto byte =
        std::to_integer<std::uint32_t>(scales[static_cast<std::size_t>(row * 9 + col / 32)]);
    const float expected = std::ldexp(decode(Format::e2m1, code), static_cast<int>(byte) - 127);
    std::uint16_t bf16 = 0;
    std::memcpy(&bf16, made.data() + 2 * (stored * 288 + col), 2);
    ASSERT_EQ(decode(Format::bf16, bf16), expected) << col;
  }
}

TEST(TritonKernelsMxfp4, ReadsAZeroScaleByteAsItsDeviceDoes) {
  const Bytes bytes{std::byte{0}, std::byte{127}, std::byte{255}};
  const auto decoder = [](const char* swizzle) {
    return prepare("triton_kernels_mxfp4", {swizzle}, gpt_oss()).recipe.kernel.w13_scale;
  };
  const std::vector<float> hopper = decoder("swizzle=hopper")(bytes);
  EXPECT_THAT(hopper, ElementsAre(0.0f, 1.0f, kNoLimit));
  const std::vector<float> blackwell = decoder("swizzle=blackwell")(bytes);
  EXPECT_EQ(blackwell[0], 0x1p-127f);
  EXPECT_TRUE(std::isnan(blackwell[2]));
}

}  // namespace
}  // namespace moeref
