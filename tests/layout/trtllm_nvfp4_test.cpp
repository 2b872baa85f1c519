// Factors, biases, paddings and errors of flashinfer_trtllm_nvfp4.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "tests/layout/trtllm_formulas.hpp"
#include "tests/layout/trtllm_support.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

TEST(TrtllmNvfp4, FoldsScalesFromLeftToRight) {
  for (const bool gated : {true, false}) {
    const MoeLayer layer =
        sample_layer({.experts = 3, .gated = gated, .weight_format = "nvfp4", .seed = 3});
    const PreparedLayer prepared = plan("flashinfer_trtllm_nvfp4", {}, layer);
    const auto [a1, a2] = largest_input_scales(layer);
    const float quant = 1.0f / a2;
    for (std::size_t e = 0; e < 3; ++e) {
      const Expert& expert = layer.experts[e];
      const float up = a1 * expert.up.global_scale;
      const float gate = gated ? a1 * expert.gate.global_scale : up;
      EXPECT_EQ(values(prepared, "g1_alphas")[e], gate);
      EXPECT_EQ(values(prepared, "g1_alphas_up")[e], up);
      EXPECT_EQ(values(prepared, "g1_scale_c")[e], gated ? quant * up : quant);
      EXPECT_EQ(values(prepared, "g2_alphas")[e], a2 * expert.down.global_scale);
    }
    EXPECT_EQ(values(prepared, "w13_input_scale_quant"), std::vector<float>{1.0f / a1});
    EXPECT_EQ(values(prepared, "w2_input_scale_quant"), std::vector<float>{quant});
    EXPECT_EQ(find(prepared, "gemm1_clamp_limit"), nullptr);
    EXPECT_EQ(find(prepared, "gemm1_alpha"), nullptr);
  }
}

TEST(TrtllmNvfp4, TakesTheLargestActivationScaleOverAllRanks) {
  const MoeLayer layer = sample_layer({.experts = 4, .weight_format = "nvfp4", .seed = 5});
  const auto [a1, a2] = largest_input_scales(layer);
  for (const std::int64_t rank : {0, 1}) {
    const PreparedLayer prepared =
        plan("flashinfer_trtllm_nvfp4", {}, layer, {.ep_rank = rank, .ep_size = 2});
    EXPECT_EQ(values(prepared, "w13_input_scale_quant"), std::vector<float>{1.0f / a1});
    const Expert& first = layer.experts[static_cast<std::size_t>(2 * rank)];
    EXPECT_EQ(values(prepared, "g1_alphas")[0], a1 * first.gate.global_scale);
    EXPECT_EQ(values(prepared, "g2_alphas").size(), 2u);
  }
}

TEST(TrtllmNvfp4, NeedsNoActivationScalesPerToken) {
  MoeLayer layer = sample_layer({.weight_format = "nvfp4"});
  for (Expert& expert : layer.experts) {
    expert.gate_input_scale.reset();
    expert.up_input_scale.reset();
    expert.down_input_scale.reset();
  }
  EXPECT_THAT(message("flashinfer_trtllm_nvfp4", {}, layer),
              HasSubstr("static activation scales are needed"));
  const PreparedLayer prepared = plan("flashinfer_trtllm_nvfp4", {"activation=per_token"}, layer);
  EXPECT_EQ(values(prepared, "g1_alphas")[1], layer.experts[1].gate.global_scale);
  EXPECT_EQ(values(prepared, "w2_input_scale_quant"), std::vector<float>{1.0f});
}

TEST(TrtllmNvfp4, DividesTheLimitByGatesAlpha) {
  const MoeLayer layer = sample_layer({.weight_format = "nvfp4", .limit = 7.0f});
  EXPECT_THAT(message("flashinfer_trtllm_nvfp4", {}, layer),
              AllOf(HasSubstr("the limit is divided by that of gate"),
                    HasSubstr("swiglu=gate_limit_upstream")));
  const PreparedLayer prepared =
      plan("flashinfer_trtllm_nvfp4", {"swiglu=gate_limit_upstream"}, layer);
  const std::vector<float> alphas = values(prepared, "g1_alphas");
  EXPECT_EQ(values(prepared, "gemm1_clamp_limit"),
            (std::vector<float>{7.0f / alphas[0], 7.0f / alphas[1]}));
}

TEST(TrtllmNvfp4, TakesAnExpertOfZeros) {
  MoeLayer layer = sample_layer({.weight_format = "nvfp4"});
  layer.experts[1].gate.global_scale = 0.0f;  // no limit: nothing is divided by it
  EXPECT_EQ(message("flashinfer_trtllm_nvfp4", {}, layer), "no error");
}

TEST(TrtllmNvfp4, DividesBiasesByTheFactorsOfTheirAccumulators) {
  const MoeLayer layer = sample_layer(
      {.hidden = 128, .intermediate = 64, .bias = true, .weight_format = "nvfp4", .seed = 9});
  const PreparedLayer prepared =
      plan("flashinfer_trtllm_nvfp4", {"loader=unpadded", "swiglu=gate_limit_upstream"}, layer);
  const std::vector<float> gate = values(prepared, "g1_alphas");
  const std::vector<float> up = values(prepared, "g1_alphas_up");
  const std::vector<float> down = values(prepared, "g2_alphas");
  ASSERT_NE(find(prepared, "w13_bias"), nullptr);
  EXPECT_EQ(find(prepared, "w13_bias")->shape, (Shape{2, 128}));
  EXPECT_EQ(find(prepared, "w2_bias")->dtype, DType::f32);
  const std::vector<float> w13 = floats(make(*find(prepared, "w13_bias"), 1));
  const std::vector<float> w2 = floats(make(*find(prepared, "w2_bias"), 1));
  for (std::size_t e = 0; e < 2; ++e) {
    const Expert& expert = layer.experts[e];
    for (std::int64_t i = 0; i < 128; ++i) {
      const std::int64_t row = alternating(shuffled(i, 32), 128);
      const bool is_up = row < 64;
      const auto bias =
          static_cast<float>(element_at(is_up ? expert.up_bias : expert.gate_bias, 0, row % 64));
      EXPECT_EQ(w13[e * 128 + static_cast<std::size_t>(i)], bias / (is_up ? up[e] : gate[e]));
      EXPECT_EQ(w2[e * 128 + static_cast<std::size_t>(i)],
                static_cast<float>(element_at(expert.down_bias, 0, shuffled(i, 32))) / down[e]);
    }
  }
  EXPECT_THAT(values(prepared, "gemm1_alpha"), Each(1.702f));
  EXPECT_THAT(values(prepared, "gemm1_beta"), Each(1.0f));
  EXPECT_TRUE(prepared.recipe.kernel.bias_before_factor);
}

TEST(TrtllmNvfp4, ReadsTheFactorsOfTheWeights) {
  const MoeLayer layer = sample_layer({.experts = 3, .weight_format = "nvfp4", .seed = 11});
  const PreparedLayer prepared = plan("flashinfer_trtllm_nvfp4", {}, layer);
  const KernelReading& kernel = prepared.recipe.kernel;
  const ScalarValues scalars = scalar_values(prepared);
  for (std::int64_t e = 0; e < 3; ++e) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
    const float a1 = kernel.input_scale_13(scalars, e);
    EXPECT_FLOAT_EQ(kernel.gate_factor(scalars, e) / a1, expert.gate.global_scale);
    EXPECT_FLOAT_EQ(kernel.up_factor(scalars, e) / a1, expert.up.global_scale);
    EXPECT_FLOAT_EQ(kernel.down_factor(scalars, e) / kernel.input_scale_2(scalars, e),
                    expert.down.global_scale);
  }
}

TEST(TrtllmNvfp4, MovesTheBoundaryOfTheHalvesAsUpstream) {
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 80, .weight_format = "nvfp4"});
  const PreparedLayer prepared =
      plan("flashinfer_trtllm_nvfp4", {"loader=unpadded", "pad=whole_upstream", "align=64"}, layer);
  const Tensor w13 = make(*find(prepared, "w13"), 1);
  for (std::int64_t i = 0; i < 256; ++i) {
    const std::int64_t row = alternating(shuffled(i, 32), 256);  // of up, gate and 96 zero rows
    for (const std::int64_t k : {0, 1, 77, 127}) {
      const Expert& expert = layer.experts[0];
      const std::uint32_t expected = row < 80    ? code_at(expert.up, row, k)
                                     : row < 160 ? code_at(expert.gate, row - 80, k)
                                                 : 0u;
      ASSERT_EQ(stored(w13, i * 128 + k, 4), expected) << "row " << i;
    }
  }
  EXPECT_EQ(prepared.recipe.kernel.intermediate, 128);
}

TEST(TrtllmNvfp4, FailsWhereTheHelpersAlignmentDoes) {
  const auto failure = [](std::int64_t rows, const std::vector<std::string>& options) {
    return message("flashinfer_trtllm_nvfp4", options,
                   sample_layer({.hidden = 128, .intermediate = rows, .weight_format = "nvfp4"}));
  };
  EXPECT_THAT(failure(48, {"loader=unpadded", "align=1"}),
              HasSubstr("flashinfer_trtllm_nvfp4: padded intermediate is 48, it must be a "
                        "multiple of 64 when gated"));
  EXPECT_THAT(failure(80, {"loader=unpadded", "pad=whole_upstream"}),
              HasSubstr("padded intermediate is 80, it must be a multiple of 64"));
  EXPECT_EQ(failure(80, {"loader=unpadded"}), "no error");
  EXPECT_THAT(message("flashinfer_trtllm_nvfp4", {},
                      sample_layer({.hidden = 96, .weight_format = "nvfp4"})),
              HasSubstr("hidden is 96, it must be a multiple of 128"));
}

}  // namespace
}  // namespace moeref
