#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_cutedsl_v1";
constexpr std::int64_t kBlock = 16;

/// Source: sglang@004813e1 moe_runner/flashinfer_cutedsl.py, layers/moe/flashinfer_cutedsl_moe.py
std::vector<ScalarRecipe> scalars() {
  const auto a1 = [](const ExpertScalars& s) { return max_input_scale_13(s, kName); };
  const auto a2 = [](const ExpertScalars& s, const LayerShape& shape) {
    return input_scales_2(s, shape, kName);
  };
  return {
      {.name = "w13_input_scale_quant",
       .formula = "1 / a1, a1 = max(w13_input_scale)",
       .values =
           [a1](const ExpertScalars& s, const LayerShape& shape) {
             return std::vector<float>(static_cast<std::size_t>(shape.experts), 1.0f / a1(s));
           }},
      {.name = "w1_alpha",
       .formula = "a1 * w13_scale_2[e][first]",
       .values = [a1](const ExpertScalars& s,
                      const LayerShape& shape) { return times(a1(s), first_scales(s, shape)); }},
      {.name = "w2_input_scale_quant",
       .formula = "1 / a2[e], a2 = w2_input_scale",
       .values =
           [a2](const ExpertScalars& s, const LayerShape& shape) {
             std::vector<float> quant = a2(s, shape);
             for (float& value : quant) value = 1.0f / value;
             return quant;
           }},
      {.name = "w2_alpha",
       .formula = "a2[e] * w2_scale_2[e]",
       .values =
           [a2](const ExpertScalars& s, const LayerShape& shape) {
             std::vector<float> alpha = a2(s, shape);
             for (std::size_t e = 0; e < alpha.size(); ++e) alpha[e] = alpha[e] * s.w2_scale[e];
             return alpha;
           }},
  };
}

Recipe recipe(const LayerShape& shape, const Options&) {
  refuse_biases(shape, kName);
  const cutlass::Padding padding = cutlass::pad_scale_tiles(shape, cutlass::Halves::as_loaded);
  const Steps swizzle{Tile{tiles::swizzle_128x4()}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, {}),
      tensor("w13_scale", Slot::w13_scale, padding.w13, swizzle),
      tensor("w2", Slot::w2, padding.w2, {}),
      tensor("w2_scale", Slot::w2_scale, padding.w2, swizzle),
  };
  recipe.scalars = scalars();
  // silu of the first half, times the second.
  recipe.kernel = cutlass::reading(shape, padding, Format::e2m1, GateOrder::gate_up);
  cutlass::read_scales(recipe.kernel, 1, kBlock, decode_as(Format::ue4m3));
  recipe.kernel.gate_factor = recipe.kernel.up_factor = factor("w1_alpha");
  recipe.kernel.down_factor = factor("w2_alpha");
  recipe.kernel.input_scale_13 = reciprocal("w13_input_scale_quant");
  recipe.kernel.input_scale_2 = reciprocal("w2_input_scale_quant");
  recipe.notes = {"activation: silu without parameters",
                  "DeepEP low latency dispatch, masked grouped GEMM"};
  if (shape.gated) recipe.notes.emplace_back("gate's global scale also serves up");
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  refuse_replay(request, kName, cutlass::kBlackwellReason);
  Numerics numerics = bf16_stages();
  numerics.gemm1.factor = numerics.gemm2.factor = SumFactor::expert;
  numerics.input = by("flashinfer_nvfp4", {}, "w13_input_scale_quant");
  numerics.intermediate = by("flashinfer_nvfp4", {}, "w2_input_scale_quant");
  return numerics;
}

}  // namespace

const Backend flashinfer_cutedsl_v1{
    .name = kName,
    .family = "FlashInfer CuteDSL",
    .summary = "NVFP4, masked grouped GEMM behind DeepEP, SM100",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {swiglu_option()},
    .rules = {{"hidden", kBlock, "", "whole scale blocks of 16"},
              {"intermediate", 64, "gated", "2 intermediate rows in scale tiles of 128 rows"},
              {"intermediate", kBlock, "not gated",
               "weights and scales are padded alike only from whole scale blocks"}},
    .recipe = recipe,
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "Blackwell's block-scaled kernels were not measured"},
};

}  // namespace moeref::backends
