#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/scalars.hpp"

namespace moeref::backends {
namespace {

Recipe recipe(const LayerShape& shape, const Options&) {
  const cutlass::Padding padding =
      cutlass::pad_to(shape.stride, shape.hidden, cutlass::Halves::swapped);
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, padding.w13, {}),
                    tensor("w2", Slot::w2, padding.w2, {})};
  cutlass::add_biases(recipe, shape, padding);
  if (shape.gated) recipe.scalars = swiglu_arrays();
  recipe.kernel = cutlass::reading(shape, padding, Format::bf16);
  return recipe;
}

}  // namespace

/// Source: flashinfer@fb28d7242 cutlass_fused_moe_kernels.cuh doGatedActivationKernel
const Backend flashinfer_cutlass_bf16{
    .name = "flashinfer_cutlass_bf16",
    .family = "FlashInfer CUTLASS",
    .summary = "bf16 weights and activations: only the halves change places",
    .formats = {"bf16"},
    .options = {},
    .rules = {{"hidden", 8, "", "FlashInfer binding: 128-bit loads of bf16 weights"},
              {"intermediate", 8, "", "FlashInfer binding: 128-bit loads of bf16 weights"}},
    .recipe = recipe,
    .kernel_options = {cutlass::finalize_option()},
    .numerics =
        [](const NumericsRequest& request) {
          return cutlass::numerics(request, "flashinfer_cutlass_bf16", Format::bf16);
        },
    .replay = {ReplayEvidence::measured, "12 layers on an H200, FlashInfer fb28d7242"},
};

}  // namespace moeref::backends
