#include "layout/sample_layer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "engine/check_layer.hpp"
#include "layout/layer_tensors.hpp"
#include "layout/weight_form.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

std::vector<double> values_of(const ScaledMatrix& matrix) {
  std::vector<double> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, values);
  return values;
}

SampleShape small(std::string_view format) {
  return {.hidden = 64, .intermediate = 96, .weight_format = std::string(format)};
}

TEST(SampleLayer, IsAWholeLayerInEveryFormat) {
  for (const WeightForm& form : weight_forms()) {
    const std::string_view format = form.name;
    for (const bool gated : {true, false}) {
      for (const bool bias : {true, false}) {
        SampleShape shape = small(format);
        shape.gated = gated;
        shape.bias = bias;
        const MoeLayer layer = sample_layer(shape);
        EXPECT_NO_THROW(check_layer(layer)) << format;
        EXPECT_EQ(layer.gated(), gated);
        EXPECT_EQ(layer.weight_format, format);
        EXPECT_NO_THROW(layer_tensors(layer, layer)) << format;
        for (const Expert& expert : layer.experts) {
          for (const double value : values_of(expert.down)) ASSERT_TRUE(std::isfinite(value));
          EXPECT_EQ(static_cast<bool>(expert.down_bias), bias);
        }
      }
    }
  }
}

TEST(SampleLayer, IsTheSameForTheSameSeedOnly) {
  const auto gate_of = [](std::uint64_t seed) {
    SampleShape shape = small("nvfp4");
    shape.seed = seed;
    return values_of(sample_layer(shape).experts[1].gate);
  };
  EXPECT_EQ(gate_of(1), gate_of(1));
  EXPECT_NE(gate_of(1), gate_of(2));
}

TEST(SampleLayer, HasTheSameBytesOnEveryMachine) {
  const MoeLayer layer = sample_layer(small("mxfp4"));
  const Expert& expert = layer.experts[0];
  std::uint64_t hash = 0xCBF2'9CE4'8422'2325u;
  const auto add = [&hash](const std::byte* data, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      hash = (hash ^ std::to_integer<std::uint64_t>(data[i])) * 0x100'0000'01B3u;
    }
  };
  add(expert.gate.codes.data, 96 * 32);
  add(expert.gate.scales->data, 96 * 2);
  EXPECT_EQ(hash, 14022398498614283121u);
}

TEST(SampleLayer, DrawsEveryFiniteCode) {
  SampleShape shape = small("fp8_tensor");
  shape.hidden = 256;
  const MoeLayer layer = sample_layer(shape);
  std::set<std::uint32_t> codes;
  const ScaledMatrix& gate = layer.experts[0].gate;
  for (std::int64_t row = 0; row < gate.rows; ++row) {
    for (std::int64_t col = 0; col < gate.cols; ++col) codes.insert(code_at(gate, row, col));
  }
  EXPECT_EQ(codes.size(), 254u);
  EXPECT_FALSE(codes.contains(0x7F) || codes.contains(0xFF));
}

TEST(SampleLayer, TellsTheFactorsOfGateAndUpApart) {
  for (const std::string_view format : {"nvfp4", "nvfp4_ct", "fp8_tensor"}) {
    const MoeLayer layer = sample_layer(small(format));
    const ExpertScalars scalars = layer_tensors(layer, layer).scalars;
    EXPECT_EQ(std::set<float>(scalars.w13_scale.begin(), scalars.w13_scale.end()).size(), 4u);
    EXPECT_EQ(
        std::set<float>(scalars.w13_input_scale.begin(), scalars.w13_input_scale.end()).size(), 4u);
    EXPECT_EQ(scalars.w2_input_scale.size(), 2u);
    for (const float scale : scalars.w13_scale) {
      EXPECT_GT(scale, 0x1p-13f) << format;
      EXPECT_LT(scale, 1.0f) << format;
    }
  }
}

TEST(SampleLayer, AlternatesGateAndUpRowsOfOneTensor) {
  SampleShape shape = small("mxfp4");
  shape.bias = true;
  shape.interleaved = true;
  const MoeLayer layer = sample_layer(shape);
  EXPECT_NO_THROW(check_layer(layer));
  const Expert& expert = layer.experts[1];
  EXPECT_EQ(layer.gate_order, GateOrder::interleaved);
  EXPECT_EQ(expert.gate.codes.data, expert.up.codes.data);
  EXPECT_EQ(expert.up.codes.origin, 64);
  EXPECT_EQ(expert.up.codes.row_stride, 128);
  EXPECT_EQ(expert.up.scales->data - expert.gate.scales->data, 2);
  EXPECT_EQ(expert.up_bias.codes.origin, 1);
  EXPECT_NE(values_of(expert.gate), values_of(expert.up));
  EXPECT_EQ(layer.activation.alpha, 1.702f);
}

TEST(SampleLayer, StoresTheScalesOfTilesInEveryTypeThatCheckpointsHave) {
  for (const Format format : {Format::f32, Format::bf16, Format::e8m0}) {
    SampleShape shape = small("fp8_block");
    shape.tile_scales = format;
    const MoeLayer layer = sample_layer(shape);
    EXPECT_EQ(layer.experts[0].down.scales->format, format);
    const float scale = scale_at(layer.experts[0].down, 0, 0);
    EXPECT_GE(scale, 0x1p-9f);
    EXPECT_LE(scale, 0x1p-2f);
  }
  SampleShape wrong = small("fp8_block");
  wrong.tile_scales = Format::e5m2;
  EXPECT_THROW(sample_layer(wrong), Error);
}

TEST(SampleLayer, RejectsWhatCannotBeStored) {
  EXPECT_THROW(sample_layer(small("fp6")), Error);
  SampleShape ragged = small("mxfp4");
  ragged.hidden = 72;
  EXPECT_THROW(sample_layer(ragged), Error);
  SampleShape tiles = small("fp8_block");
  tiles.interleaved = true;
  EXPECT_THROW(sample_layer(tiles), Error);
  SampleShape empty = small("bf16");
  empty.experts = 0;
  EXPECT_THROW(sample_layer(empty), Error);
}

}  // namespace
}  // namespace moeref
