#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>

#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "tests/layout/usual_numerics.hpp"

// The rounding points of every backend, cell by cell.

namespace moeref {
namespace {

using testing::of;
using testing::usual;

/// "sglang_fp8_static math=precise @a1", "@1/a2" with the reciprocal of the scale.
std::string text_of(const ActivationQuantizer& use) {
  if (!use) return "none";
  std::string text(use.quantizer);
  for (const std::string& option : use.options) text += " " + option;
  if (!use.scale.empty()) text += (use.inverts_scale ? " @1/" : " @") + std::string(use.scale);
  return text;
}

const char* text_of(WeightPoint point) {
  switch (point) {
    case WeightPoint::combine:
      return "combine";
    case WeightPoint::input:
      return "input";
    case WeightPoint::gemm1:
      return "gemm1";
    case WeightPoint::gemm2:
      break;
  }
  return "gemm2";
}

const char* text_of(CombineForm form) {
  switch (form) {
    case CombineForm::exact:
      return "exact";
    case CombineForm::weighted_fma:
      return "fma";
    case CombineForm::sum:
      return "sum";
    case CombineForm::folded_sum:
      return "folded";
    case CombineForm::running:
      return "running";
    case CombineForm::atomic_add:
      break;
  }
  return "atomic";
}

const char* text_of(ScalingPoint point) {
  switch (point) {
    case ScalingPoint::in_sum:
      return "in sum";
    case ScalingPoint::after_sum:
      return "after sum";
    case ScalingPoint::with_shared:
      break;
  }
  return "with shared";
}

/// One row of the tables of rounding points, for a gated layer without parameters.
struct Row {
  const char* backend;
  const char* input;         ///< quantizer of the hidden states
  const char* gemm1;         ///< type that GEMM1 leaves
  const char* act;           ///< type that the activation leaves
  const char* intermediate;  ///< quantizer before GEMM2
  const char* gemm2;
  const char* weight;   ///< where the router weight enters
  const char* weights;  ///< its type
  const char* combine;
  const char* scaling;  ///< of the routed scaling factor
};

constexpr const char* kFast = "sglang_fp8_group version=v0 math=fast";
constexpr Row kRows[] = {
    {"reference", "none", "f32", "f32", "none", "f32", "combine", "f32", "exact", "in sum"},
    // FlashInfer CUTLASS: gemm1_out bf16, f32 activation, unfused finalize; the framework scales
    // the output in bf16.
    {"flashinfer_cutlass_fp8", "sglang_fp8_static math=precise @fc1_input_dequant", "bf16", "f32",
     "flashinfer_fp8_static_moe @fc2_quant", "bf16", "combine", "f32", "fma", "after sum"},
    {"flashinfer_cutlass_nvfp4", "flashinfer_nvfp4 @w13_input_scale_quant", "bf16", "bf16",
     "flashinfer_nvfp4 @w2_input_scale_quant", "bf16", "combine", "f32", "fma", "after sum"},
    {"flashinfer_cutlass_mxfp8", "flashinfer_mxfp8", "bf16", "bf16", "flashinfer_mxfp8", "bf16",
     "combine", "f32", "fma", "after sum"},
    {"flashinfer_cutlass_fp8_block", "flashinfer_fp8_group_sm90", "bf16", "bf16",
     "flashinfer_fp8_group_sm90", "bf16", "combine", "f32", "fma", "after sum"},
    {"flashinfer_cutlass_bf16", "none", "bf16", "bf16", "none", "bf16", "combine", "f32", "fma",
     "after sum"},
    // TRTLLM-Gen: activation fused into GEMM1, nothing stored between; packed routing rounds the
    // router weights to bf16.
    {"flashinfer_trtllm_fp8", "sglang_fp8_static @w13_input_scale", "f32", "f32",
     "flashinfer_fp8_static_moe @1/w2_input_scale", "bf16", "combine", "bf16", "fma", "after sum"},
    {"flashinfer_trtllm_fp8_block", "sglang_fp8_group", "f32", "f32", "trtllm_fp8_group", "bf16",
     "combine", "f32", "fma", "in sum"},
    {"flashinfer_trtllm_mxfp8", "flashinfer_mxfp8", "f32", "bf16", "flashinfer_mxfp8", "bf16",
     "combine", "f32", "fma", "in sum"},
    {"flashinfer_trtllm_nvfp4", "flashinfer_nvfp4 @w13_input_scale_quant", "f32", "bf16",
     "flashinfer_nvfp4 @w2_input_scale_quant", "bf16", "combine", "f32", "fma", "in sum"},
    {"flashinfer_trtllm_mxfp4", "flashinfer_mxfp8", "f32", "bf16", "flashinfer_mxfp8", "bf16",
     "combine", "bf16", "fma", "in sum"},
    {"flashinfer_trtllm_mxfp4_dsv4", "flashinfer_mxfp8", "f32", "bf16", "flashinfer_mxfp8", "bf16",
     "combine", "f32", "fma", "with shared"},
    {"flashinfer_trtllm_bf16", "none", "f32", "bf16", "none", "bf16", "combine", "f32", "fma",
     "in sum"},
    // CuteDSL: v1 writes GEMM1 and the activation, v2 neither.
    {"flashinfer_cutedsl_v1", "flashinfer_nvfp4 @w13_input_scale_quant", "bf16", "bf16",
     "flashinfer_nvfp4 @w2_input_scale_quant", "bf16", "combine", "f32", "fma", "in sum"},
    {"flashinfer_cutedsl_v2", "flashinfer_nvfp4 @input_scale", "f32", "f32",
     "cutedsl_nvfp4_moe @fc2_input_scale", "bf16", "combine", "f32", "fma", "in sum"},
    {"flashinfer_sm90_mxfp4", "none", "bf16", "bf16", "none", "bf16", "combine", "f32", "fma",
     "after sum"},
    {"flashinfer_sm90_mxfp4_dsv4", "none", "bf16", "bf16", "none", "bf16", "combine", "f32", "fma",
     "with shared"},
    // Marlin: bf16 weights on bf16 rows; DeepSeek-V4's factor enters with the shared expert.
    {"marlin_mxfp4", "none", "bf16", "bf16", "none", "bf16", "gemm2", "bf16", "sum", "with shared"},
    {"marlin_nvfp4", "none", "bf16", "bf16", "none", "bf16", "gemm2", "bf16", "sum", "with shared"},
    {"marlin_fp8", "none", "bf16", "bf16", "none", "bf16", "gemm2", "bf16", "sum", "with shared"},
    {"marlin_mxfp8", "none", "bf16", "bf16", "none", "bf16", "gemm2", "bf16", "sum", "with shared"},
    // Triton: every stage bf16, the router weight in GEMM2's epilogue.
    {"triton_fp8_tensor", "sglang_fp8_static math=fast @w13_input_scale", "bf16", "bf16",
     "sglang_fp8_static math=fast @w2_input_scale", "bf16", "gemm2", "f32", "sum", "in sum"},
    {"triton_fp8_channel", "sglang_fp8_token math=fast kernel=small_batch", "bf16", "bf16",
     "sglang_fp8_token math=fast kernel=small_batch", "bf16", "gemm2", "f32", "sum", "in sum"},
    {"triton_fp8_block", kFast, "bf16", "bf16", kFast, "bf16", "gemm2", "f32", "sum", "in sum"},
    {"triton_bf16", "none", "bf16", "bf16", "none", "bf16", "gemm2", "f32", "sum", "in sum"},
    {"triton_kernels_mxfp4", "none", "f32", "bf16", "none", "bf16", "gemm2", "f32", "sum",
     "in sum"},
    // DeepGEMM with the masked layout: silu and the product in bf16, then a running bf16 sum.
    {"deepgemm_fp8", "sglang_fp8_group", "bf16", "bf16", "sglang_triton_fp8_group form=div", "bf16",
     "combine", "bf16", "running", "after sum"},
    {"deepgemm_fp8_ue8m0", "sglang_fp8_group scale=ue8m0", "bf16", "bf16",
     "sglang_fp8_group scale=ue8m0", "bf16", "combine", "bf16", "running", "after sum"},
    {"deepgemm_fp4", "sglang_fp8_group scale=ue8m0", "bf16", "bf16", "sglang_fp8_group scale=ue8m0",
     "bf16", "combine", "bf16", "running", "after sum"},
    // aiter's open reference: bf16 after stage 1 and at the end, f32 else; the default device has
    // E4M3FNUZ.
    {"aiter_fp8_tensor", "aiter_torch_fp8_token elements=e4m3fnuz", "f32", "bf16",
     "aiter_torch_fp8_token elements=e4m3fnuz", "f32", "combine", "f32", "fma", "in sum"},
    {"aiter_fp8_channel", "aiter_torch_fp8_token elements=e4m3fnuz", "f32", "bf16",
     "aiter_torch_fp8_token elements=e4m3fnuz", "f32", "combine", "f32", "fma", "in sum"},
    {"aiter_fp8_block", "aiter_hip_fp8_group elements=e4m3fnuz", "f32", "bf16",
     "aiter_hip_fp8_group elements=e4m3fnuz", "f32", "combine", "f32", "fma", "in sum"},
    {"aiter_mxfp4", "aiter_triton_mxfp4", "f32", "bf16", "aiter_triton_mxfp4", "f32", "combine",
     "f32", "fma", "in sum"},
    {"aiter_a16w4", "none", "f32", "bf16", "none", "f32", "combine", "f32", "fma", "in sum"},
};

TEST(BackendNumerics, HaveTheCellsOfTheTables) {
  std::set<std::string_view> seen;
  for (const Row& row : kRows) {
    const Backend& backend = find_backend(row.backend);
    seen.insert(backend.name);
    SCOPED_TRACE(row.backend);
    const Numerics numerics = numerics_for(backend, usual(backend));
    EXPECT_EQ(text_of(numerics.input), row.input);
    EXPECT_EQ(info(numerics.gemm1.output).name, row.gemm1);
    EXPECT_EQ(info(numerics.activation.output).name, row.act);
    EXPECT_EQ(text_of(numerics.intermediate), row.intermediate);
    EXPECT_EQ(info(numerics.gemm2.output).name, row.gemm2);
    EXPECT_STREQ(text_of(numerics.router_weight), row.weight);
    EXPECT_EQ(info(numerics.weights).name, row.weights);
    EXPECT_STREQ(text_of(numerics.combine.form), row.combine);
    EXPECT_STREQ(text_of(numerics.combine.scaling), row.scaling);
    const bool reference = backend.name == "reference";
    EXPECT_EQ(numerics.activations, reference ? Format::f32 : Format::bf16);
    EXPECT_EQ(numerics.combine.joins_shared, reference);
    // All names are those of quantizers that take the options.
    for (const ActivationQuantizer* use :
         {&numerics.input, &numerics.intermediate, &numerics.gemm1_output}) {
      if (!*use) continue;
      const Quantizer& found = find_quantizer(use->quantizer);
      EXPECT_TRUE(found.activations) << found.name;
      parse_options(found.name, found.options, use->options);
    }
  }
  for (const Backend* backend : all_backends()) {
    EXPECT_TRUE(seen.contains(backend->name)) << backend->name << " is in no row";
  }
}

TEST(BackendNumerics, HaveTheRestOfTheTables) {
  // 4.1: bias of GEMM1 in the activation in f32, of GEMM2 per slot before the weight.
  for (const std::string_view backend :
       {"flashinfer_cutlass_fp8", "flashinfer_cutlass_nvfp4", "flashinfer_cutlass_mxfp8",
        "flashinfer_cutlass_fp8_block", "flashinfer_cutlass_bf16", "flashinfer_sm90_mxfp4",
        "flashinfer_sm90_mxfp4_dsv4"}) {
    const Numerics numerics = of(backend);
    EXPECT_TRUE(numerics.activation.adds_bias) << backend;
    EXPECT_EQ(numerics.gemm1.bias, GemmBias::none) << backend;
    EXPECT_EQ(numerics.gemm2.bias, GemmBias::none) << backend;
    EXPECT_TRUE(numerics.combine.adds_bias) << backend;
    EXPECT_EQ(numerics.activation.clamp_nan, ClampNan::dropped) << backend;
    EXPECT_EQ(numerics.rows, RowOrder::by_expert) << backend;
  }
  // The one number of an expert holds activation and weight scale.
  for (const std::string_view backend :
       {"flashinfer_cutlass_fp8", "flashinfer_cutlass_nvfp4", "flashinfer_trtllm_fp8",
        "flashinfer_trtllm_nvfp4", "flashinfer_cutedsl_v1", "flashinfer_cutedsl_v2"}) {
    EXPECT_EQ(of(backend).gemm1.factor, SumFactor::expert) << backend;
    EXPECT_EQ(of(backend).gemm2.factor, SumFactor::expert) << backend;
  }
  for (const std::string_view backend : {"triton_fp8_tensor", "triton_fp8_channel"}) {
    EXPECT_EQ(of(backend).gemm1.factor, SumFactor::row_times_column) << backend;
  }
  // 4.2: GEMM1 of the 128 block form stores codes that the activation reads back.
  EXPECT_EQ(text_of(of("flashinfer_trtllm_fp8_block").gemm1_output), "trtllm_fp8_group");
  // 4.5, 4.6: two roundings of the activation.
  EXPECT_TRUE(of("deepgemm_fp8").activation.rounds_silu);
  EXPECT_FALSE(of("marlin_mxfp4").activation.rounds_silu);  // only with a limit
  NumericsRequest limited = usual(find_backend("marlin_mxfp4"));
  limited.activation.limit = 10.0f;
  EXPECT_TRUE(numerics_for(find_backend("marlin_mxfp4"), limited).activation.rounds_silu);
  // The run-time compiled kernel of DeepSeek-V4's clamp quantizes from f32.
  const Numerics dsv4 = numerics_for(find_backend("deepgemm_fp8"), [] {
    NumericsRequest request = usual(find_backend("deepgemm_fp8"));
    request.activation.limit = 10.0f;
    return request;
  }());
  EXPECT_FALSE(dsv4.activation.rounds_silu);
  EXPECT_EQ(dsv4.activation.output, Format::f32);
  // 4.6: the weight multiplies the rounded row.
  EXPECT_TRUE(of("marlin_fp8").gemm2.rounds_before_weight);
  EXPECT_FALSE(of("triton_bf16").gemm2.rounds_before_weight);
}

TEST(BackendNumerics, RefuseSizesThatTheirKernelsDoNotTake) {
  for (const char* name : {"deepgemm_fp8", "deepgemm_fp8_ue8m0", "deepgemm_fp4"}) {
    const Backend& backend = find_backend(name);
    for (std::int64_t LayerShape::*const size : {&LayerShape::hidden, &LayerShape::intermediate}) {
      NumericsRequest request = usual(backend);
      request.shape.*size = 160;
      try {
        numerics_for(backend, request);
        ADD_FAILURE() << name << " takes 160";
      } catch (const Error& refused) {
        EXPECT_THAT(refused.what(),
                    ::testing::AllOf(::testing::HasSubstr(name), ::testing::HasSubstr("is 160")));
      }
    }
  }
}

TEST(BackendNumerics, WeighTheInputWhereAsked) {
  for (const std::string_view name : {"triton_fp8_tensor", "triton_fp8_block", "triton_bf16"}) {
    NumericsRequest request = usual(find_backend(name));
    request.weighs_input = true;
    EXPECT_EQ(numerics_for(find_backend(name), request).router_weight, WeightPoint::gemm1) << name;
  }
}

TEST(BackendNumerics, QuantizeActivationsWithoutCalibratedScales) {
  NumericsRequest request = usual(find_backend("triton_fp8_tensor"));
  request.static_scales = false;
  const Numerics numerics = numerics_for(find_backend("triton_fp8_tensor"), request);
  EXPECT_EQ(text_of(numerics.input), "sglang_fp8_tensor math=fast");
  EXPECT_EQ(text_of(numerics.intermediate), "sglang_fp8_tensor math=fast");
}

}  // namespace
}  // namespace moeref
