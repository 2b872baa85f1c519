// FlashInfer's CUTLASS, CuteDSL and Hopper mixed-input backends: scalars, rules, and whether the
// kernels compute the layer's function.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "engine/audit.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/layout/cutlass_samples.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(CutlassFp8, FoldsScalesInTheStatedOrder) {
  for (const bool gated : {true, false}) {
    const MoeLayer layer = sample_layer(sample("fp8_tensor", 16, 24, gated));
    const PreparedLayer prepared = plan("flashinfer_cutlass_fp8", {}, layer);
    const auto [a1, a2] = largest_input_scales(layer);
    for (std::size_t e = 0; e < 2; ++e) {
      const Expert& expert = layer.experts[e];
      const float scale = gated ? std::fmax(scale_at(expert.gate, 0, 0), scale_at(expert.up, 0, 0))
                                : scale_at(expert.up, 0, 0);
      EXPECT_EQ(values(prepared, "fc1_dequant")[e], scale * a1);
      EXPECT_EQ(values(prepared, "fc2_dequant")[e], a2 * scale_at(expert.down, 0, 0));
    }
    EXPECT_THAT(values(prepared, "fc2_quant"), ElementsAre(1.0f / a2));
    EXPECT_THAT(values(prepared, "fc1_input_dequant"), ElementsAre(a1));
    EXPECT_TRUE(find(prepared, "fc2_quant")->shape.empty());
    // 24 rows of each half up to 32.
    EXPECT_THAT(find(prepared, "w13")->shape, ElementsAre(2, gated ? 64 : 32, 16));
    EXPECT_THAT(find(prepared, "w2")->shape, ElementsAre(2, 16, 32));
  }
}

TEST(CutlassNvfp4, UsesTheScaleOfGateAlone) {
  SampleShape shape = sample("nvfp4", 32, 64);
  shape.experts = 4;
  const MoeLayer layer = sample_layer(shape);
  const auto [a1, a2] = largest_input_scales(layer);
  for (const std::int64_t rank : {0, 1}) {
    const PreparedLayer prepared =
        plan("flashinfer_cutlass_nvfp4", {}, layer, {.ep_rank = rank, .ep_size = 2});
    for (std::size_t e = 0; e < 2; ++e) {
      const Expert& expert = layer.experts[static_cast<std::size_t>(2 * rank) + e];
      EXPECT_EQ(values(prepared, "g1_alphas")[e], a1 * expert.gate.global_scale);
      EXPECT_EQ(values(prepared, "g2_alphas")[e], a2 * expert.down.global_scale);
    }
    EXPECT_THAT(values(prepared, "w13_input_scale_quant"), ElementsAre(1.0f / a1));
    EXPECT_THAT(values(prepared, "w2_input_scale_quant"), ElementsAre(1.0f / a2));
  }
  const PreparedLayer per_token =
      plan("flashinfer_cutlass_nvfp4", {"activation_scales=per_token"}, layer);
  EXPECT_EQ(values(per_token, "g1_alphas")[0], layer.experts[0].gate.global_scale);
  EXPECT_THAT(values(per_token, "w2_input_scale_quant"), ElementsAre(1.0f));
}

TEST(CuteDsl, V1MultipliesAndV2Divides) {
  SampleShape shape = sample("nvfp4", 32, 64);
  shape.experts = 4;
  const MoeLayer layer = sample_layer(shape);
  const float a1 = largest_input_scales(layer).first;
  const Shard rank{.ep_rank = 1, .ep_size = 2};
  const PreparedLayer v1 = plan("flashinfer_cutedsl_v1", {}, layer, rank);
  const PreparedLayer v2 = plan("flashinfer_cutedsl_v2", {}, layer, rank);
  const float quant = 1.0f / a1;
  const float down_quant = std::fmin(1.0f / *layer.experts[2].down_input_scale,
                                     1.0f / *layer.experts[3].down_input_scale);
  EXPECT_THAT(values(v1, "w13_input_scale_quant"), ElementsAre(quant, quant));
  EXPECT_THAT(values(v2, "input_scale"), ElementsAre(quant));
  EXPECT_THAT(values(v2, "fc2_input_scale"), ElementsAre(down_quant));
  for (std::size_t e = 0; e < 2; ++e) {
    const Expert& expert = layer.experts[2 + e];
    const float a2 = *expert.down_input_scale;
    EXPECT_EQ(values(v1, "w1_alpha")[e], a1 * expert.gate.global_scale);
    EXPECT_EQ(values(v1, "w2_input_scale_quant")[e], 1.0f / a2);
    EXPECT_EQ(values(v1, "w2_alpha")[e], a2 * expert.down.global_scale);
    EXPECT_EQ(values(v2, "w1_alpha")[e], expert.gate.global_scale / quant);
    EXPECT_EQ(values(v2, "w2_alpha")[e], expert.down.global_scale / down_quant);
  }
}

TEST(CuteDsl, V2DividesByAtLeastATrillionth) {
  MoeLayer layer = sample_layer(sample("nvfp4", 32, 64));
  for (Expert& expert : layer.experts) {
    expert.gate_input_scale = expert.up_input_scale = expert.down_input_scale = 1.0e13f;
  }
  const PreparedLayer v2 = plan("flashinfer_cutedsl_v2", {}, layer);
  EXPECT_EQ(values(v2, "w1_alpha")[0], layer.experts[0].gate.global_scale / 1e-12f);
  EXPECT_EQ(values(v2, "w2_alpha")[1], layer.experts[1].down.global_scale / 1e-12f);
}

TEST(Sm90, PassesTheActivationsParametersOfLocalExperts) {
  SampleShape shape = gpt_oss(96, 96);
  shape.experts = 4;
  const PreparedLayer oss =
      plan("flashinfer_sm90_mxfp4", {}, sample_layer(shape), {.ep_rank = 1, .ep_size = 2});
  EXPECT_THAT(values(oss, "swiglu_alpha"), ElementsAre(1.702f, 1.702f));
  EXPECT_THAT(values(oss, "swiglu_beta"), ElementsAre(1.0f, 1.0f));
  EXPECT_THAT(values(oss, "swiglu_limit"), ElementsAre(7.0f, 7.0f));
  SampleShape v4 = sample("mxfp4", 128, 128);
  EXPECT_EQ(find(plan("flashinfer_sm90_mxfp4_dsv4", {}, sample_layer(v4)), "swiglu_limit"),
            nullptr);
  v4.limit = 10.0f;
  const PreparedLayer limited = plan("flashinfer_sm90_mxfp4_dsv4", {}, sample_layer(v4));
  EXPECT_THAT(values(limited, "swiglu_alpha"), Each(1.0f));
  EXPECT_THAT(values(limited, "swiglu_beta"), Each(0.0f));
  EXPECT_THAT(values(limited, "swiglu_limit"), Each(10.0f));
}

TEST(Sm90, HummingPadsOffsetsWithOne) {
  const PreparedLayer prepared =
      plan("flashinfer_sm90_mxfp4", {"variant=humming"}, sample_layer(gpt_oss(96, 96)));
  const PreparedTensor& scale = *find(prepared, "w2_scale");
  for (std::int64_t place = 0; place < scale.plan.map.out_elements(); ++place) {
    const Origin origin = scale.plan.map.origin(place);
    if (origin.pad) {
      ASSERT_EQ(origin.fill, std::byte{1});
    }
  }
  EXPECT_EQ(values(prepared, "w2_residual").size(), 2u);
  EXPECT_EQ(values(prepared, "w13_residual").size(), 2u);
}

struct Audited {
  std::string backend;
  Texts options;
  SampleShape shape;
  Shard rank = {};
};

AuditReport audited(const Audited& one) {
  const Backend& backend = find_backend(one.backend);
  return audit(backend, parse_options(backend, one.options), sample_layer(one.shape), one.rank, 1);
}

SampleShape with_experts(SampleShape shape, std::int64_t experts) {
  shape.experts = experts;
  return shape;
}

TEST(CutlassBackends, KeepTheFunctionOfTheLayer) {
  const Shard second_of_two{.tp_rank = 1, .tp_size = 2};
  const Shard last_of_eight{.tp_rank = 7, .tp_size = 8};
  const Shard expert_rank{.ep_rank = 3, .ep_size = 4};
  const std::vector<Audited> all{
      {"flashinfer_cutlass_bf16", {}, sample("bf16", 24, 48)},
      {"flashinfer_cutlass_bf16", {}, sample("bf16", 8, 16, false), second_of_two},
      {"flashinfer_cutlass_fp8", {}, sample("fp8_tensor", 32, 17)},
      {"flashinfer_cutlass_fp8", {"requantize=cpu"}, sample("fp8_tensor", 16, 40), last_of_eight},
      {"flashinfer_cutlass_fp8", {"order=gate_up_upstream"}, sample("fp8_tensor", 16, 9, false)},
      {"flashinfer_cutlass_fp8", {}, with_experts(sample("fp8_tensor", 16, 16), 4), expert_rank},
      {"flashinfer_cutlass_fp8_block", {}, sample("fp8_block", 128, 256), second_of_two},
      {"flashinfer_cutlass_nvfp4", {}, sample("nvfp4", 96, 128), second_of_two},
      {"flashinfer_cutlass_nvfp4", {}, sample("nvfp4_ct", 32, 48, false)},
      {"flashinfer_cutlass_nvfp4", {"activation_scales=per_token"}, sample("nvfp4", 32, 64)},
      {"flashinfer_cutlass_mxfp8", {}, sample("mxfp8", 96, 128)},
      {"flashinfer_cutlass_mxfp8", {}, sample("mxfp8", 32, 64, false), second_of_two},
      {"flashinfer_cutlass_mxfp8", {}, gpt_oss(160, 96), second_of_two},
      {"flashinfer_cutedsl_v1", {}, with_experts(sample("nvfp4", 48, 64), 7)},
      {"flashinfer_cutedsl_v1", {}, sample("nvfp4", 64, 96, false), second_of_two},
      {"flashinfer_cutedsl_v2", {}, sample("nvfp4", 160, 192)},
      {"flashinfer_cutedsl_v2", {}, with_experts(sample("nvfp4", 32, 64), 4), expert_rank},
      {"flashinfer_cutedsl_v2", {}, sample("nvfp4", 32, 64, false)},
      {"flashinfer_sm90_mxfp4", {}, gpt_oss(96, 160)},
      {"flashinfer_sm90_mxfp4", {"layout=v1"}, gpt_oss(160, 96), second_of_two},
      {"flashinfer_sm90_mxfp4", {"layout=raw"}, gpt_oss(96, 64), last_of_eight},
      {"flashinfer_sm90_mxfp4", {"variant=humming"}, gpt_oss(96, 96)},
      {"flashinfer_sm90_mxfp4", {"variant=humming", "max_range=2"}, sample("mxfp4", 128, 128)},
      {"flashinfer_sm90_mxfp4", {}, sample("mxfp4", 128, 64, false)},
      {"flashinfer_sm90_mxfp4_dsv4", {}, sample("mxfp4", 128, 256), second_of_two},
      {"flashinfer_sm90_mxfp4_dsv4", {"layout=v1"}, sample("mxfp4", 256, 128)},
      {"flashinfer_sm90_mxfp4_dsv4", {"variant=humming"}, sample("mxfp4", 128, 128)},
  };
  for (const Audited& one : all) {
    const AuditReport report = audited(one);
    EXPECT_TRUE(report.survives) << one.backend << ' ' << ::testing::PrintToString(one.options)
                                 << ' ' << report.first_difference << report.note;
  }
}

TEST(CutlassFp8, TakesGateForUpAsSglangLoadsIt) {
  const AuditReport report =
      audited({"flashinfer_cutlass_fp8", {"order=gate_up_upstream"}, sample("fp8_tensor", 32, 32)});
  EXPECT_FALSE(report.survives);
  EXPECT_GT(report.differing, 0);
}

LayerShape shape_of(std::string format, std::int64_t hidden, std::int64_t intermediate,
                    bool gated = true, bool bias = false) {
  return {.model = "sample",
          .weight_format = std::move(format),
          .experts = 2,
          .total_experts = 2,
          .hidden = hidden,
          .intermediate = intermediate,
          .stride = intermediate,
          .full_intermediate = intermediate,
          .gated = gated,
          .bias = bias};
}

std::string message(std::string_view name, const Texts& options, const LayerShape& shape) {
  return error_of([&] {
    const Backend& backend = find_backend(name);
    make_recipe(backend, shape, parse_options(backend, options));
  });
}

TEST(CutlassBackends, NameTheRuleThatAShapeBreaks) {
  EXPECT_THAT(message("flashinfer_cutlass_fp8", {}, shape_of("fp8_tensor", 24, 16)),
              AllOf(HasSubstr("hidden is 24, it must be a multiple of 16"), HasSubstr("128-bit")));
  EXPECT_THAT(message("flashinfer_cutlass_fp8", {}, shape_of("fp8_block", 128, 128)),
              HasSubstr("takes fp8_tensor weights"));
  EXPECT_THAT(message("flashinfer_cutlass_fp8_block", {}, shape_of("fp8_block", 128, 192)),
              HasSubstr("intermediate is 192, it must be a multiple of 128"));
  EXPECT_THAT(message("flashinfer_cutlass_bf16", {}, shape_of("bf16", 12, 8)),
              HasSubstr("hidden is 12, it must be a multiple of 8"));
  EXPECT_THAT(message("flashinfer_cutlass_nvfp4", {}, shape_of("nvfp4", 48, 64)),
              HasSubstr("hidden is 48, it must be a multiple of 32"));
  EXPECT_THAT(message("flashinfer_cutlass_nvfp4", {}, shape_of("nvfp4", 96, 48)),
              HasSubstr("intermediate is 48, it must be a multiple of 64 when gated"));
  EXPECT_THAT(message("flashinfer_cutlass_nvfp4", {}, shape_of("nvfp4", 96, 961, false)),
              HasSubstr("intermediate is 961, it must be a multiple of 16 when not gated"));
  EXPECT_THAT(message("flashinfer_cutlass_mxfp8", {}, shape_of("mxfp8", 128, 64)),
              HasSubstr("intermediate is 64, it must be a multiple of 128 when gated and mxfp8"));
  EXPECT_EQ(message("flashinfer_cutlass_mxfp8", {}, shape_of("mxfp8", 128, 64, false)), "no error");
  EXPECT_THAT(message("flashinfer_cutedsl_v2", {}, shape_of("nvfp4", 64, 96)),
              HasSubstr("intermediate is 96, it must be a multiple of 64"));
  EXPECT_THAT(message("flashinfer_cutedsl_v1", {}, shape_of("nvfp4", 64, 32)),
              HasSubstr("intermediate is 32, it must be a multiple of 64 when gated"));
  EXPECT_THAT(message("flashinfer_sm90_mxfp4_dsv4", {}, shape_of("mxfp4", 192, 128)),
              HasSubstr("hidden is 192, it must be a multiple of 128"));
  EXPECT_THAT(message("flashinfer_sm90_mxfp4_dsv4", {}, shape_of("mxfp4", 128, 96)),
              HasSubstr("intermediate is 96, it must be a multiple of 128"));
  EXPECT_THAT(message("flashinfer_sm90_mxfp4_dsv4", {}, shape_of("mxfp4", 128, 128, true, true)),
              HasSubstr("use flashinfer_sm90_mxfp4"));
  for (const char* backend : {"flashinfer_cutedsl_v1", "flashinfer_cutedsl_v2"}) {
    EXPECT_THAT(message(backend, {}, shape_of("nvfp4", 64, 64, true, true)),
                HasSubstr("adds no bias, sample has some"));
  }
}

TEST(Sm90, RejectsOptionsThatDoNotGoTogether) {
  const LayerShape shape = shape_of("mxfp4", 128, 128);
  EXPECT_THAT(message("flashinfer_sm90_mxfp4", {"variant=humming", "layout=v1"}, shape),
              HasSubstr("layout=v2 only"));
  EXPECT_THAT(message("flashinfer_sm90_mxfp4", {"variant=humming", "max_range=12"}, shape),
              HasSubstr("max_range=12 is above 11"));
  EXPECT_THAT(message("flashinfer_sm90_mxfp4", {"layout=v3"}, shape),
              HasSubstr("choose v2, v1, raw"));
}

TEST(CutlassBackends, NeedStaticActivationScales) {
  MoeLayer fp8 = sample_layer(sample("fp8_tensor", 16, 16));
  MoeLayer nvfp4 = sample_layer(sample("nvfp4", 32, 64));
  for (MoeLayer* layer : {&fp8, &nvfp4}) {
    for (Expert& expert : layer->experts) {
      expert.gate_input_scale.reset();
      expert.up_input_scale.reset();
      expert.down_input_scale.reset();
    }
  }
  const auto needs = [](std::string_view backend, const MoeLayer& layer) {
    return error_of([&] { plan(backend, {}, layer); });
  };
  EXPECT_THAT(needs("flashinfer_cutlass_fp8", fp8),
              HasSubstr("flashinfer_cutlass_fp8: static activation scales are needed"));
  for (const char* backend :
       {"flashinfer_cutlass_nvfp4", "flashinfer_cutedsl_v1", "flashinfer_cutedsl_v2"}) {
    EXPECT_THAT(needs(backend, nvfp4), HasSubstr("static activation scales are needed"));
  }
  EXPECT_NO_THROW(plan("flashinfer_cutlass_nvfp4", {"activation_scales=per_token"}, nvfp4));
}

}  // namespace
}  // namespace moeref
