// Scalars, options, recodings and errors of the TRTLLM-Gen backends; NVFP4 has its own file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/audit.hpp"
#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "tests/layout/trtllm_formulas.hpp"
#include "tests/layout/trtllm_support.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TrtllmMxfp4Dsv4, PadsWithThePaddedLoaderOnly) {
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 192, .weight_format = "mxfp4", .limit = 7.0f});
  const auto rows_of_w13 = [&](const char* option) {
    return find(plan("flashinfer_trtllm_mxfp4_dsv4", {option}, layer), "w13")->shape[1];
  };
  EXPECT_EQ(rows_of_w13("loader=padded"), 2 * 256);
  EXPECT_EQ(rows_of_w13("loader=unpadded"), 2 * 192);
  const MoeLayer half_tile =
      sample_layer({.hidden = 128, .intermediate = 96, .weight_format = "mxfp4", .limit = 7.0f});
  EXPECT_THAT(message("flashinfer_trtllm_mxfp4_dsv4", {"loader=unpadded"}, half_tile),
              HasSubstr("loader=padded"));
}

TEST(TrtllmMxfp8, NeedsWholeScaleTiles) {
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 64, .weight_format = "mxfp8"});
  EXPECT_THAT(message("flashinfer_trtllm_mxfp8", {"loader=unpadded", "align=1"}, layer),
              AllOf(HasSubstr("padded intermediate is 64, it must be a multiple of 128"),
                    HasSubstr("4 columns")));
}

TEST(TrtllmFp8, MultipliesFromLeftToRight) {
  for (const bool gated : {true, false}) {
    const MoeLayer layer =
        sample_layer({.experts = 3, .gated = gated, .weight_format = "fp8_tensor", .seed = 13});
    const PreparedLayer prepared = plan("flashinfer_trtllm_fp8", {}, layer);
    const auto [a1, a2] = largest_input_scales(layer);
    const ScalarValues scalars = scalar_values(prepared);
    const KernelReading& kernel = prepared.recipe.kernel;
    for (std::size_t e = 0; e < 3; ++e) {
      const Expert& expert = layer.experts[e];
      const float up = scale_at(expert.up, 0, 0);
      const float largest = gated ? std::fmax(up, scale_at(expert.gate, 0, 0)) : up;
      const float gate = largest * a1;
      EXPECT_EQ(values(prepared, "output1_scale_gate")[e], gate);
      EXPECT_EQ(values(prepared, "output1_scale")[e], gated ? gate * (1.0f / a2) : 1.0f / a2);
      EXPECT_EQ(values(prepared, "output2_scale")[e], a2 * scale_at(expert.down, 0, 0));
      const auto index = static_cast<std::int64_t>(e);
      EXPECT_FLOAT_EQ(kernel.up_factor(scalars, index) / kernel.input_scale_13(scalars, index),
                      largest);
      EXPECT_FLOAT_EQ(kernel.down_factor(scalars, index) / kernel.input_scale_2(scalars, index),
                      scale_at(expert.down, 0, 0));
    }
  }
}

TEST(TrtllmFp8, WantsOneScaleWithoutRequantization) {
  const MoeLayer layer = sample_layer({.weight_format = "fp8_tensor"});
  EXPECT_THAT(message("flashinfer_trtllm_fp8", {"requantize=off"}, layer),
              AllOf(HasSubstr("expert 0 has the scales"), HasSubstr("choose requantize=max")));
  EXPECT_EQ(message("flashinfer_trtllm_fp8", {}, layer), "no error");
}

TEST(TrtllmFp8, ChangesCodesOnlyByRequantization) {
  const MoeLayer layer =
      sample_layer({.hidden = 64, .intermediate = 128, .weight_format = "fp8_tensor"});
  const PreparedLayer prepared = plan("flashinfer_trtllm_fp8", {}, layer);
  const Tensor w13 = make(*find(prepared, "w13"), 1);
  const Expert& expert = layer.experts[0];
  std::int64_t changed = 0;
  for (std::int64_t i = 0; i < 256; ++i) {
    const std::int64_t row = alternating(shuffled(i, 32), 256);
    const ScaledMatrix& matrix = row < 128 ? expert.up : expert.gate;
    for (std::int64_t k = 0; k < 64; ++k) {
      changed += stored(w13, i * 64 + k, 8) != code_at(matrix, row % 128, k) ? 1 : 0;
    }
  }
  EXPECT_GT(changed, 0);
  EXPECT_EQ(find(prepared, "w13")->plan.recoders.size(), 1u);
  EXPECT_TRUE(find(prepared, "w2")->plan.recoders.empty());
}

TEST(TrtllmFp8Block, NeedsWholeBlocks) {
  const MoeLayer layer = sample_layer({.intermediate = 192, .weight_format = "fp8_block"});
  EXPECT_THAT(message("flashinfer_trtllm_fp8_block", {"loader=unpadded"}, layer),
              HasSubstr("intermediate is 192, it must be a multiple of 128: FlashInfer checks "
                        "intermediate_size % 128 == 0"));
  EXPECT_EQ(message("flashinfer_trtllm_fp8_block", {}, layer), "no error");
}

TEST(TrtllmFp8Block, ClampsTinyScalesOnly) {
  MoeLayer layer = sample_layer({.experts = 1, .intermediate = 128, .weight_format = "fp8_block"});
  const std::vector<float> scales{0.0f, -1.0f, 1e-10f, std::numeric_limits<float>::quiet_NaN()};
  ScaleGrid& grid = *layer.experts[0].up.scales;
  grid.data = reinterpret_cast<const std::byte*>(scales.data());
  layer.experts[0].down.scales->data = grid.data;
  const PreparedLayer prepared = plan("flashinfer_trtllm_fp8_block", {"clamp_scales=on"}, layer);
  const std::vector<float> made = floats(make(*find(prepared, "w13_scale"), 1));
  EXPECT_EQ(made[0], 1e-10f);
  EXPECT_EQ(made[1], 1e-10f);
  const std::vector<float> plain =
      floats(make(*find(plan("flashinfer_trtllm_fp8_block", {}, layer), "w13_scale"), 1));
  EXPECT_EQ(plain[0], 0.0f);
  EXPECT_EQ(plain[1], -1.0f);
  grid.data += 2 * sizeof(float);
  const std::vector<float> kept = floats(
      make(*find(plan("flashinfer_trtllm_fp8_block", {"clamp_scales=on"}, layer), "w13_scale"), 1));
  EXPECT_EQ(kept[0], 1e-10f);
  EXPECT_TRUE(std::isnan(kept[1]));
}

TEST(TrtllmMxfp4, WidensAndMovesBiases) {
  const MoeLayer layer = sample_layer({.hidden = 96,
                                       .intermediate = 64,
                                       .bias = true,
                                       .weight_format = "mxfp4",
                                       .interleaved = true});
  const PreparedLayer prepared = plan("flashinfer_trtllm_mxfp4", {}, layer);
  EXPECT_EQ(find(prepared, "w13_bias")->shape, (Shape{2, 512}));
  EXPECT_EQ(find(prepared, "w2_bias")->shape, (Shape{2, 256}));
  const std::vector<float> w13 = floats(make(*find(prepared, "w13_bias"), 1));
  const std::vector<float> w2 = floats(make(*find(prepared, "w2_bias"), 1));
  const Expert& expert = layer.experts[1];
  for (std::int64_t i = 0; i < 512; ++i) {
    // Row 2j is up j, row 2j + 1 gate j.
    const std::int64_t row = shuffled(i, 32);
    const ScaledMatrix& bias = row % 2 == 0 ? expert.up_bias : expert.gate_bias;
    const double expected = row / 2 < 64 ? element_at(bias, 0, row / 2) : 0.0;
    EXPECT_EQ(w13[static_cast<std::size_t>(512 + i)], static_cast<float>(expected));
  }
  for (std::int64_t i = 0; i < 256; ++i) {
    const std::int64_t row = shuffled(i, 32);
    const double expected = row < 96 ? element_at(expert.down_bias, 0, row) : 0.0;
    EXPECT_EQ(w2[static_cast<std::size_t>(256 + i)], static_cast<float>(expected));
  }
}

TEST(TrtllmMxfp4, PassesSwigluArraysOfLocalOrOfAllExperts) {
  MoeLayer layer = sample_layer(
      {.experts = 4, .hidden = 128, .intermediate = 128, .bias = true, .weight_format = "mxfp4"});
  const Shard rank{.ep_rank = 1, .ep_size = 2};
  const PreparedLayer local = plan("flashinfer_trtllm_mxfp4", {}, layer, rank);
  EXPECT_EQ(values(local, "swiglu_alpha"), (std::vector<float>{1.702f, 1.702f}));
  EXPECT_EQ(values(local, "swiglu_beta"), (std::vector<float>{1.0f, 1.0f}));
  EXPECT_EQ(values(local, "swiglu_limit"), (std::vector<float>{7.0f, 7.0f}));
  const PreparedLayer global = plan("flashinfer_trtllm_mxfp4", {"arrays=global"}, layer, rank);
  EXPECT_EQ(values(global, "swiglu_limit"), (std::vector<float>{7.0f, 7.0f, 7.0f, 7.0f}));
  layer.activation.limits = {1.0f, 2.0f, 3.0f, 4.0f};
  EXPECT_EQ(values(plan("flashinfer_trtllm_mxfp4", {}, layer, rank), "swiglu_limit"),
            (std::vector<float>{3.0f, 4.0f}));
  EXPECT_THAT(message("flashinfer_trtllm_mxfp4", {"arrays=global"}, layer, rank),
              AllOf(HasSubstr("swiglu_limit: differs"), HasSubstr("choose arrays=local")));
}

TEST(TrtllmMxfp4Dsv4, NeedsALimit) {
  const SampleShape shape{.hidden = 128, .intermediate = 128, .weight_format = "mxfp4"};
  EXPECT_THAT(message("flashinfer_trtllm_mxfp4_dsv4", {}, sample_layer(shape)),
              HasSubstr("has no swiglu_limit"));
  SampleShape limited = shape;
  limited.limit = 10.0f;
  const PreparedLayer prepared = plan("flashinfer_trtllm_mxfp4_dsv4", {}, sample_layer(limited));
  EXPECT_EQ(values(prepared, "swiglu_limit"), (std::vector<float>{10.0f, 10.0f}));
  EXPECT_EQ(find(prepared, "swiglu_alpha"), nullptr);
  for (const char* name : {"output1_scale", "output1_scale_gate", "output2_scale"}) {
    EXPECT_EQ(values(prepared, name), (std::vector<float>{1.0f, 1.0f}));
  }
}

TEST(TrtllmMxfp4Dsv4, RejectsExpertsWithoutGate) {
  EXPECT_THAT(message("flashinfer_trtllm_mxfp4_dsv4", {},
                      sample_layer({.hidden = 128, .gated = false, .weight_format = "mxfp4"})),
              HasSubstr("takes gated experts only"));
}

TEST(TrtllmMxfp4Dsv4, CastsFloatScalesToE8M0) {
  MoeLayer layer = sample_layer(
      {.experts = 1, .hidden = 128, .intermediate = 128, .weight_format = "mxfp4", .limit = 10.0f});
  // 1.5 is half-way between two powers of two and goes up, 1.25 goes down.
  const std::vector<float> scales = [] {
    std::vector<float> made(128 * 4, 0.5f);
    made[0] = 1.5f;
    made[1] = 1.25f;
    return made;
  }();
  for (ScaledMatrix* matrix :
       {&layer.experts[0].gate, &layer.experts[0].up, &layer.experts[0].down}) {
    matrix->scales->data = reinterpret_cast<const std::byte*>(scales.data());
    matrix->scales->format = Format::f32;
  }
  const PreparedLayer prepared = plan("flashinfer_trtllm_mxfp4_dsv4", {}, layer);
  const Tensor scale = make(*find(prepared, "w2_scale"), 1);
  EXPECT_EQ(scale.dtype, DType::u8);
  EXPECT_EQ(stored(scale, place_128x4(0, 0, 4), 8), 128u);
  EXPECT_EQ(stored(scale, place_128x4(0, 1, 4), 8), 127u);
  EXPECT_EQ(stored(scale, place_128x4(5, 3, 4), 8), 126u);
}

TEST(TrtllmBf16, NeedsWholeBlocksOfK) {
  EXPECT_THAT(
      message("flashinfer_trtllm_bf16", {}, sample_layer({.hidden = 96, .weight_format = "bf16"})),
      HasSubstr("hidden is 96, it must be a multiple of 64"));
}

AuditReport audited(std::string_view name, const std::vector<std::string>& options,
                    const SampleShape& shape, const Shard& rank = {}) {
  const Backend& backend = find_backend(name);
  return audit(backend, parse_options(backend, options), sample_layer(shape), rank, 1);
}

TEST(TrtllmBackends, KeepTheFunction) {
  for (const Backend* backend : all_backends()) {
    if (backend->family != "FlashInfer TRTLLM-Gen") continue;
    for (const std::string_view format : backend->formats) {
      for (const bool gated : {true, false}) {
        if (!gated && backend->name == "flashinfer_trtllm_mxfp4_dsv4") continue;
        SampleShape shape{.hidden = 128,
                          .intermediate = 160,
                          .gated = gated,
                          .weight_format = std::string(format)};
        if (gated && backend->name == "flashinfer_trtllm_mxfp4_dsv4") shape.limit = 0.5f;
        // One global scale of gate and up: the kernel has one limit for both.
        if (gated && format == "nvfp4") shape.bias = shape.interleaved = true;
        if (backend->name == "flashinfer_trtllm_mxfp4") shape.bias = shape.interleaved = gated;
        for (const Shard& rank : {Shard{}, Shard{1, 2, 1, 2}}) {
          const AuditReport report = audited(backend->name, {}, shape, rank);
          EXPECT_TRUE(report.survives)
              << backend->name << " " << format << ": " << report.first_difference;
          EXPECT_GT(report.outputs, 0);
        }
      }
    }
  }
}

TEST(TrtllmBackends, LoseTheFunctionWithUpstreamsDefects) {
  const SampleShape nvfp4{.hidden = 128, .intermediate = 80, .weight_format = "nvfp4"};
  const std::vector<std::string> whole{"loader=unpadded", "pad=whole_upstream", "align=64"};
  EXPECT_FALSE(audited("flashinfer_trtllm_nvfp4", whole, nvfp4).survives);
  SampleShape plain = nvfp4;
  plain.gated = false;
  EXPECT_TRUE(audited("flashinfer_trtllm_nvfp4", {"loader=unpadded", "pad=whole_upstream"}, plain)
                  .survives);
  const SampleShape fp8{.hidden = 64, .intermediate = 72, .weight_format = "fp8_tensor"};
  EXPECT_FALSE(
      audited("flashinfer_trtllm_fp8", {"loader=unpadded", "pad=whole_upstream"}, fp8).survives);
  const SampleShape v4{
      .hidden = 128, .intermediate = 128, .weight_format = "mxfp4", .limit = 10.0f};
  EXPECT_FALSE(audited("flashinfer_trtllm_mxfp4_dsv4", {"reorder=off_upstream"}, v4).survives);
}

TEST(TrtllmBackends, RefuseBiasesThatTheyDoNotAdd) {
  for (const auto& [name, format] : {std::pair{"flashinfer_trtllm_bf16", "bf16"},
                                     std::pair{"flashinfer_trtllm_fp8", "fp8_tensor"},
                                     std::pair{"flashinfer_trtllm_fp8_block", "fp8_block"},
                                     std::pair{"flashinfer_trtllm_mxfp8", "mxfp8"},
                                     std::pair{"flashinfer_trtllm_mxfp4_dsv4", "mxfp4"}}) {
    EXPECT_THAT(message(name, {}, sample_layer({.bias = true, .weight_format = format})),
                HasSubstr("adds no bias"));
  }
}

}  // namespace
}  // namespace moeref
