// The logical tensors of a layer as layouts read them.

#include "layout/layer_tensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "layout/sample_layer.hpp"
#include "layout/shard.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

LayerTensors tensors_of(const MoeLayer& layer) { return layer_tensors(layer, layer); }

std::uint32_t element(const TensorStack& stack, std::int64_t expert, std::int64_t row,
                      std::int64_t col) {
  if (stack.element_bits == 4) {
    std::byte pair{};
    stack.read(expert, row, col / 2 * 2, 2, &pair);
    return std::to_integer<std::uint32_t>(pair) >> (4 * (col % 2)) & 15u;
  }
  std::uint32_t value = 0;
  std::array<std::byte, 4> bytes{};
  stack.read(expert, row, col, 1, bytes.data());
  std::memcpy(&value, bytes.data(), static_cast<std::size_t>(stack.element_bits) / 8);
  return value;
}

/// Gate rows, then up rows.
void expect_codes(const TensorStack& stack, const MoeLayer& layer) {
  for (std::int64_t e = 0; e < layer.local_experts(); ++e) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    for (std::int64_t row = 0; row < stack.rows(); ++row) {
      const bool up = !layer.gated() || row >= layer.intermediate;
      const ScaledMatrix& matrix = up ? expert.up : expert.gate;
      for (std::int64_t col = 0; col < stack.cols; ++col) {
        ASSERT_EQ(element(stack, e, row, col), code_at(matrix, row % layer.intermediate, col))
            << "expert " << e << " row " << row << " column " << col;
      }
    }
  }
}

std::string message(const MoeLayer& layer) {
  return error_of([&] { tensors_of(layer); });
}

class LayerTensorsOfFormat : public ::testing::TestWithParam<std::string> {};

TEST_P(LayerTensorsOfFormat, HoldGateRowsThenUpRows) {
  for (const bool gated : {true, false}) {
    const MoeLayer layer = sample_layer({.experts = 2,
                                         .hidden = 32,
                                         .intermediate = 96,
                                         .gated = gated,
                                         .weight_format = GetParam()});
    const LayerTensors tensors = tensors_of(layer);
    EXPECT_EQ(tensors.at(Slot::w13).rows(), gated ? 192 : 96);
    expect_codes(tensors.at(Slot::w13), layer);
    EXPECT_EQ(element(tensors.at(Slot::w2), 1, 31, 95), code_at(layer.experts[1].down, 31, 95));
    EXPECT_EQ(tensors.shape.halves(), gated ? 2 : 1);
    EXPECT_EQ(tensors.shape.stride, 96);
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayerTensorsOfFormat,
                         ::testing::Values("mxfp4", "nvfp4", "nvfp4_ct", "fp8_tensor",
                                           "fp8_channel", "fp8_block", "mxfp8", "bf16", "f16",
                                           "f32"),
                         [](const auto& tested) { return tested.param; });

TEST(LayerTensors, ReadAlternatingRowsAndBiases) {
  const MoeLayer layer = sample_layer({.experts = 2,
                                       .hidden = 64,
                                       .intermediate = 32,
                                       .bias = true,
                                       .weight_format = "mxfp4",
                                       .interleaved = true});
  const LayerTensors tensors = tensors_of(layer);
  expect_codes(tensors.at(Slot::w13), layer);
  const TensorStack& bias = tensors.at(Slot::w13_bias);
  EXPECT_EQ(bias.rows(), 64);
  EXPECT_EQ(bias.cols, 1);
  EXPECT_EQ(element(bias, 1, 3, 0), code_at(layer.experts[1].gate_bias, 0, 3));
  EXPECT_EQ(element(bias, 1, 35, 0), code_at(layer.experts[1].up_bias, 0, 3));
  EXPECT_EQ(element(tensors.at(Slot::w2_bias), 0, 63, 0),
            code_at(layer.experts[0].down_bias, 0, 63));
  const TensorStack& scale = tensors.at(Slot::w13_scale);
  EXPECT_EQ(scale.cols, 2);
  EXPECT_EQ(decode(Format::e8m0, element(scale, 0, 40, 1)), scale_at(layer.experts[0].up, 8, 32));
}

TEST(LayerTensors, CountScalesInBlocks) {
  const LayerTensors block =
      tensors_of(sample_layer({.hidden = 256, .intermediate = 192, .weight_format = "fp8_block"}));
  EXPECT_EQ(block.at(Slot::w13_scale).half_rows, 2);
  EXPECT_EQ(block.at(Slot::w13_scale).block_rows, 128);
  EXPECT_EQ(block.at(Slot::w2_scale).cols, 2);
  const LayerTensors channel =
      tensors_of(sample_layer({.hidden = 64, .intermediate = 32, .weight_format = "fp8_channel"}));
  EXPECT_EQ(channel.at(Slot::w13_scale).half_rows, 32);
  EXPECT_EQ(channel.at(Slot::w13_scale).cols, 1);
  EXPECT_EQ(channel.at(Slot::w13_scale).block_cols, kWholeAxis);
}

TEST(LayerTensors, GiveATensorScaleAsOneRowAHalf) {
  const MoeLayer layer = sample_layer({.experts = 3, .weight_format = "fp8_tensor"});
  const LayerTensors tensors = tensors_of(layer);
  const TensorStack& scale = tensors.at(Slot::w13_scale);
  EXPECT_EQ(scale.rows(), 2);
  EXPECT_EQ(scale.cols, 1);
  EXPECT_EQ(scale.block_rows, kWholeAxis);
  ASSERT_THAT(tensors.scalars.w13_scale, SizeIs(6));
  EXPECT_EQ(tensors.scalars.w13_scale[5], scale_at(layer.experts[2].up, 0, 0));
  EXPECT_EQ(decode(Format::f32, element(scale, 2, 1, 0)), tensors.scalars.w13_scale[5]);
  EXPECT_EQ(tensors.scalars.w2_scale[1], scale_at(layer.experts[1].down, 0, 0));
}

TEST(LayerTensors, KeepATensorScaleOnAnEmptyRank) {
  const MoeLayer layer = sample_layer({.weight_format = "fp8_tensor"});
  const LayerTensors tensors = layer_tensors(tp_part(layer, layer.intermediate, 0), layer);
  EXPECT_EQ(tensors.at(Slot::w13).rows(), 0);
  EXPECT_EQ(tensors.shape.intermediate, 0);
  EXPECT_EQ(tensors.scalars.w13_scale, tensors_of(layer).scalars.w13_scale);
  EXPECT_EQ(tensors.scalars.w2_scale, tensors_of(layer).scalars.w2_scale);
}

TEST(LayerTensors, TurnDividingScalesIntoFactors) {
  const MoeLayer layer =
      sample_layer({.hidden = 32, .intermediate = 32, .weight_format = "nvfp4_ct"});
  const ExpertScalars scalars = tensors_of(layer).scalars;
  EXPECT_EQ(scalars.w13_scale[1], 1.0f / layer.experts[0].up.global_scale);
  EXPECT_EQ(scalars.w2_scale[1], 1.0f / layer.experts[1].down.global_scale);
  EXPECT_EQ(scalars.w13_input_scale[0], 1.0f / *layer.experts[0].gate_input_scale);
  EXPECT_EQ(scalars.w2_input_scale[1], 1.0f / *layer.experts[1].down_input_scale);
}

TEST(LayerTensors, KeepActivationScalesOfAllExperts) {
  const MoeLayer layer =
      sample_layer({.experts = 4, .hidden = 32, .intermediate = 32, .weight_format = "nvfp4"});
  const MoeLayer part = shard(layer, {.ep_rank = 1, .ep_size = 2});
  const LayerTensors tensors = layer_tensors(part, layer);
  EXPECT_THAT(tensors.scalars.w13_scale, SizeIs(4));
  EXPECT_THAT(tensors.scalars.w13_input_scale, SizeIs(8));
  EXPECT_THAT(tensors.scalars.w2_input_scale, SizeIs(4));
  EXPECT_EQ(tensors.shape.experts, 2);
  EXPECT_EQ(tensors.shape.total_experts, 4);
  EXPECT_EQ(tensors.shape.first_expert, 2);
}

TEST(LayerTensors, HaveNoFactorsWhereTheFormatHasNone) {
  const ExpertScalars scalars = tensors_of(sample_layer({.weight_format = "fp8_block"})).scalars;
  EXPECT_THAT(scalars.w13_scale, IsEmpty());
  EXPECT_THAT(scalars.w2_scale, IsEmpty());
  EXPECT_THAT(scalars.w13_input_scale, IsEmpty());
}

TEST(LayerTensors, ZeroTheDownBiasOfLaterRanks) {
  const MoeLayer layer =
      sample_layer({.hidden = 64, .intermediate = 64, .bias = true, .weight_format = "mxfp4"});
  const LayerTensors later = layer_tensors(tp_part(layer, 32, 32), layer);
  ASSERT_NE(later.find(Slot::w2_bias), nullptr);
  EXPECT_EQ(later.at(Slot::w2_bias).rows(), 64);
  for (std::int64_t row = 0; row < 64; ++row) {
    EXPECT_EQ(element(later.at(Slot::w2_bias), 1, row, 0), 0u);
  }
  EXPECT_EQ(element(later.at(Slot::w13_bias), 0, 32, 0), code_at(layer.experts[0].up_bias, 0, 32));
  const LayerTensors first = layer_tensors(tp_part(layer, 0, 32), layer);
  EXPECT_EQ(element(first.at(Slot::w2_bias), 1, 9, 0), code_at(layer.experts[1].down_bias, 0, 9));
}

TEST(LayerTensors, RepeatActivationParametersForEveryExpert) {
  MoeLayer layer = sample_layer({.experts = 3, .bias = true, .weight_format = "mxfp4"});
  EXPECT_THAT(tensors_of(layer).scalars.alpha, ElementsAre(1.702f, 1.702f, 1.702f));
  layer.activation.limits = {1.0f, 2.0f, 3.0f};
  EXPECT_THAT(tensors_of(layer).scalars.limit, ElementsAre(1.0f, 2.0f, 3.0f));
}

TEST(LayerTensors, UseTheLatentWidth) {
  MoeLayer layer = sample_layer({.hidden = 64, .intermediate = 32, .weight_format = "bf16"});
  layer.latent = 64;
  layer.hidden = 1024;
  EXPECT_EQ(tensors_of(layer).shape.hidden, 64);
}

TEST(LayerTensors, RejectExpertsOfDifferentForm) {
  MoeLayer layer = sample_layer({.hidden = 32, .intermediate = 32, .weight_format = "nvfp4"});
  layer.experts[1].up.codes.format = Format::e4m3;
  layer.experts[1].up.name = "experts.1.up";
  EXPECT_THAT(message(layer), HasSubstr("experts.1.up: is stored in another form than "));
}

TEST(LayerTensors, RejectFactorsOfSomeExpertsOnly) {
  MoeLayer layer = sample_layer({.hidden = 32, .intermediate = 32, .weight_format = "nvfp4"});
  layer.experts[1].up_input_scale.reset();
  EXPECT_THAT(message(layer),
              HasSubstr("a w13 activation scale for 3 of 4 matrices; every expert needs it"));
  layer.experts[1].up.global_rule = GlobalScaleRule::none;
  EXPECT_THAT(message(layer), HasSubstr("a w13 weight scale for 3 of 4 matrices"));
}

TEST(LayerTensors, RejectAShardInsideAScaleBlock) {
  const MoeLayer layer = sample_layer({.intermediate = 192, .weight_format = "fp8_block"});
  EXPECT_THROW(layer_tensors(tp_part(layer, 96, 96), layer), Error);
}

TEST(LayerTensors, NameAMissingTensor) {
  const LayerTensors tensors = tensors_of(sample_layer({.weight_format = "bf16"}));
  EXPECT_EQ(error_of([&] { tensors.at(Slot::w13_scale); }),
            "sample: has no w13_scale; its weights are bf16");
}

}  // namespace
}  // namespace moeref
