#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_cutlass_nvfp4";
constexpr std::int64_t kBlock = 16;

/// a1, a2: the largest activation scales of the layer, or 1 if activations get scales per token.
/// Source: sglang modelopt_quant.py ModelOptNvFp4FusedMoEMethod
std::vector<ScalarRecipe> scalars(bool per_token) {
  const auto a1 = [per_token](const ExpertScalars& s) {
    return per_token ? 1.0f : max_input_scale_13(s, kName);
  };
  const auto a2 = [per_token](const ExpertScalars& s) {
    return per_token ? 1.0f : max_input_scale_2(s, kName);
  };
  return {
      one_scalar("w13_input_scale_quant", "1 / a1, a1 = max(w13_input_scale), or 1 per token",
                 [a1](const ExpertScalars& s) { return 1.0f / a1(s); }),
      {.name = "g1_alphas",
       .formula = "a1 * w13_scale_2[e][first]",
       .values = [a1](const ExpertScalars& s,
                      const LayerShape& shape) { return times(a1(s), first_scales(s, shape)); }},
      one_scalar("w2_input_scale_quant", "1 / a2, a2 = max(w2_input_scale), or 1 per token",
                 [a2](const ExpertScalars& s) { return 1.0f / a2(s); }),
      {.name = "g2_alphas",
       .formula = "a2 * w2_scale_2[e]",
       .values = [a2](const ExpertScalars& s,
                      const LayerShape&) { return times(a2(s), s.w2_scale); }},
  };
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const cutlass::Padding padding = cutlass::pad_scale_tiles(shape, cutlass::Halves::swapped);
  const Steps swizzle{Tile{tiles::swizzle_128x4()}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, {}),
      tensor("w13_scale", Slot::w13_scale, padding.w13, swizzle),
      tensor("w2", Slot::w2, padding.w2, {}),
      tensor("w2_scale", Slot::w2_scale, padding.w2, swizzle),
  };
  cutlass::add_biases(recipe, shape, padding);
  recipe.scalars = scalars(options.is("activation_scales", "per_token"));
  if (shape.gated) {
    for (ScalarRecipe& array : swiglu_arrays()) recipe.scalars.push_back(std::move(array));
  }
  recipe.kernel = cutlass::reading(shape, padding, Format::e2m1);
  cutlass::read_scales(recipe.kernel, 1, kBlock, decode_as(Format::ue4m3));
  recipe.kernel.gate_factor = recipe.kernel.up_factor = factor("g1_alphas");
  recipe.kernel.down_factor = factor("g2_alphas");
  recipe.kernel.input_scale_13 = reciprocal("w13_input_scale_quant");
  recipe.kernel.input_scale_2 = reciprocal("w2_input_scale_quant");
  if (shape.gated) {
    recipe.notes = {"gate's global scale also serves up: the kernel takes one for both"};
  }
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  refuse_replay(request, kName, cutlass::kBlackwellReason);
  Numerics numerics = cutlass::numerics(request, kName, Format::bf16);
  const bool per_token = request.options.is("activation_scales", "per_token");
  numerics.input = per_token ? by("flashinfer_nvfp4_token")
                             : by("flashinfer_nvfp4", {}, "w13_input_scale_quant");
  numerics.intermediate =
      per_token ? by("flashinfer_nvfp4_token") : by("flashinfer_nvfp4", {}, "w2_input_scale_quant");
  return numerics;
}

}  // namespace

const Backend flashinfer_cutlass_nvfp4{
    .name = kName,
    .family = "FlashInfer CUTLASS",
    .summary = "NVFP4 weights and activations, SM100 and later",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {{"activation_scales",
                 {"static", "per_token"},
                 "per_token: a1 = a2 = 1, the stored activation scales are not used"}},
    .rules = {{"hidden", 32, "", "FlashInfer binding: 128-bit loads of FP4 weights"},
              {"intermediate", 64, "gated", "2 intermediate rows in scale tiles of 128 rows"},
              {"intermediate", kBlock, "not gated",
               "weights and scales are padded alike only from whole scale blocks"}},
    .recipe = recipe,
    .kernel_options = {cutlass::finalize_option()},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "Blackwell's block-scaled kernels were not measured"},
};

}  // namespace moeref::backends
