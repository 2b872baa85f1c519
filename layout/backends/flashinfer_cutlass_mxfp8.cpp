#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 32;
constexpr std::int64_t kTile = 128;

bool is_fp4(const LayerShape& shape) { return shape.weight_format == "mxfp4"; }

/// MXFP4 checkpoints are cut between scale blocks. Source: sglang models/gpt_oss.py
/// _load_mxfp4_experts_weights
Loader loader(const LayerShape& whole, const Options&) {
  return is_fp4(whole) ? Loader{LoaderKind::blocks, kBlock} : Loader{};
}

/// MXFP4: the framework's buffers are multiples of 128 both ways, the rest zero.
cutlass::Padding padding_of(const LayerShape& shape) {
  if (is_fp4(shape)) {
    return cutlass::pad_to(round_up(shape.stride, kTile), round_up(shape.hidden, kTile),
                           cutlass::Halves::swapped);
  }
  return cutlass::pad_to(shape.stride, shape.hidden, cutlass::Halves::swapped);
}

Recipe recipe(const LayerShape& shape, const Options&) {
  const cutlass::Padding padding = padding_of(shape);
  const Steps swizzle{Tile{tiles::swizzle_128x4()}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, {}),
      tensor("w13_scale", Slot::w13_scale, padding.w13, swizzle),
      tensor("w2", Slot::w2, padding.w2, {}),
      tensor("w2_scale", Slot::w2_scale, padding.w2, swizzle),
  };
  cutlass::add_biases(recipe, shape, padding);
  if (shape.gated) recipe.scalars = swiglu_arrays();
  recipe.kernel = cutlass::reading(shape, padding, is_fp4(shape) ? Format::e2m1 : Format::e4m3);
  cutlass::read_scales(recipe.kernel, 1, kBlock, decode_as(Format::e8m0));
  recipe.notes = {"the scales are swizzled over all rows of w13 at once, up rows first"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  refuse_replay(request, "flashinfer_cutlass_mxfp8", cutlass::kBlackwellReason);
  Numerics numerics = cutlass::numerics(request, "flashinfer_cutlass_mxfp8", Format::bf16);
  numerics.input = numerics.intermediate = by("flashinfer_mxfp8");
  return numerics;
}

}  // namespace

/// Source: flashinfer@fb28d7242 flashinfer_cutlass_fused_moe_binding.cu; MXFP4: vllm@001eda31
/// fused_moe/oracle/mxfp4.py
const Backend flashinfer_cutlass_mxfp8{
    .name = "flashinfer_cutlass_mxfp8",
    .family = "FlashInfer CUTLASS",
    .summary = "MXFP8 or MXFP4 weights, MXFP8 activations, SM100 and later",
    .formats = {"mxfp8", "mxfp4"},
    .options = {},
    .rules = {{"hidden", kBlock, "", "whole scale blocks of 32"},
              {"intermediate", kBlock, "", "whole scale blocks of 32"},
              {"intermediate", kTile, "gated and mxfp8",
               "the kernel reads gate's scales from a whole tile of 128 rows on"}},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = {cutlass::finalize_option()},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "Blackwell's block-scaled kernels were not measured"},
};

}  // namespace moeref::backends
