#include <algorithm>

#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_cutedsl_v2";
constexpr std::int64_t kBlock = 16;
constexpr std::int64_t kInterleave = 64;
constexpr float kSmallestQuant = 1e-12f;

/// The multiplier that quantizes GEMM1's input.
float quant_13(const ExpertScalars& scalars) { return 1.0f / max_input_scale_13(scalars, kName); }

/// The least multiplier of the local experts for GEMM2's input.
float quant_2(const ExpertScalars& scalars, const LayerShape& shape) {
  std::vector<float> quant = input_scales_2(scalars, shape, kName);
  for (float& value : quant) value = 1.0f / value;
  return *std::min_element(quant.begin(), quant.end());
}

/// Divisions, not the products of v1. Source: sglang@004813e1 moe_runner/flashinfer_cutedsl.py
std::vector<ScalarRecipe> scalars() {
  return {
      one_scalar("input_scale", "1 / max(w13_input_scale)", quant_13),
      {.name = "w1_alpha",
       .formula = "w13_scale_2[e][first] / max(input_scale, 1e-12)",
       .values =
           [](const ExpertScalars& s, const LayerShape& shape) {
             return over(first_scales(s, shape), std::max(quant_13(s), kSmallestQuant));
           }},
      {.name = "fc2_input_scale",
       .formula = "min over local experts of 1 / w2_input_scale[e]",
       .per_expert = false,
       .values = [](const ExpertScalars& s,
                    const LayerShape& shape) { return std::vector<float>{quant_2(s, shape)}; }},
      {.name = "w2_alpha",
       .formula = "w2_scale_2[e] / max(fc2_input_scale, 1e-12)",
       .values =
           [](const ExpertScalars& s, const LayerShape& shape) {
             return over(s.w2_scale, std::max(quant_2(s, shape), kSmallestQuant));
           }},
  };
}

Recipe recipe(const LayerShape& shape, const Options&) {
  refuse_biases(shape, kName);
  const cutlass::Padding padding =
      shape.gated ? cutlass::pad_to(shape.stride, shape.hidden, cutlass::Halves::swapped)
                  : cutlass::pad_scale_tiles(shape, cutlass::Halves::swapped);
  const Steps interleave{InterleaveHalves{kInterleave}};
  const Steps swizzle{Tile{tiles::swizzle_128x4_mma_view()}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, interleave),
      tensor("w13_scale", Slot::w13_scale, padding.w13, interleave + swizzle),
      tensor("w2", Slot::w2, padding.w2, {}),
      tensor("w2_scale", Slot::w2_scale, padding.w2, swizzle),
  };
  recipe.scalars = scalars();
  recipe.kernel = cutlass::reading(shape, padding, Format::e2m1);
  cutlass::read_scales(recipe.kernel, 1, kBlock, decode_as(Format::ue4m3));
  recipe.kernel.gate_factor = recipe.kernel.up_factor = factor("w1_alpha");
  recipe.kernel.down_factor = factor("w2_alpha");
  recipe.kernel.input_scale_13 = reciprocal("input_scale");
  recipe.kernel.input_scale_2 = reciprocal("fc2_input_scale");
  recipe.notes = {"activation: silu without parameters"};
  if (shape.gated) recipe.notes.emplace_back("gate's global scale also serves up");
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  refuse_replay(request, kName, cutlass::kBlackwellReason);
  Numerics numerics = bf16_stages();
  numerics.gemm1.factor = numerics.gemm2.factor = SumFactor::expert;
  numerics.gemm1.output = Format::f32;
  numerics.activation.output = Format::f32;
  numerics.input = by("flashinfer_nvfp4", {}, "input_scale");
  numerics.intermediate = by("cutedsl_nvfp4_moe", {}, "fc2_input_scale");
  if (request.kernel.is("finalize", "fused")) {
    numerics.router_weight = WeightPoint::gemm2;
    numerics.combine.form = CombineForm::atomic_add;
    numerics.combine.scaling = ScalingPoint::after_sum;
  }
  return numerics;
}

}  // namespace

const Backend flashinfer_cutedsl_v2{
    .name = kName,
    .family = "FlashInfer CuteDSL",
    .summary = "NVFP4, standard dispatch (CuteDslMoEWrapper), SM100",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {swiglu_option()},
    .rules = {{"hidden", kBlock, "", "whole scale blocks of 16"},
              {"intermediate", kInterleave, "gated", "up and gate alternate in blocks of 64 rows"},
              {"intermediate", kBlock, "not gated",
               "weights and scales are padded alike only from whole scale blocks"}},
    .recipe = recipe,
    .kernel_options = {cutlass::finalize_option()},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "Blackwell's block-scaled kernels were not measured"},
};

}  // namespace moeref::backends
