#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/recode/float_cast.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 128;

Recipe recipe(const LayerShape& shape, const Options& options) {
  const cutlass::Padding padding =
      cutlass::pad_to(shape.stride, shape.hidden, cutlass::Halves::swapped);
  const bool is_f32 = shape.scale_dtype == DType::f32;
  const Steps clamped = clamped_scales(options);
  const auto scales = [&](Slot slot) {
    const Steps widened = is_f32 ? Steps{} : Steps{recode::cast_floats(slot, DType::f32)};
    return widened + clamped;
  };
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, padding.w13, {}),
      tensor("w13_scale", Slot::w13_scale, scales(Slot::w13_scale) + padding.w13, {}),
      tensor("w2", Slot::w2, padding.w2, {}),
      tensor("w2_scale", Slot::w2_scale, scales(Slot::w2_scale) + padding.w2, {}),
  };
  cutlass::add_biases(recipe, shape, padding);
  if (shape.gated) recipe.scalars = swiglu_arrays();
  recipe.kernel = cutlass::reading(shape, padding, Format::e4m3);
  cutlass::read_scales(recipe.kernel, kBlock, kBlock, decode_as(Format::f32));
  recipe.notes = {"a weight is its code times its scale, whatever the checkpoint calls it (_inv)",
                  "the kernel quantizes the bf16 activations itself"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = cutlass::numerics(request, "flashinfer_cutlass_fp8_block", Format::e4m3);
  numerics.input = numerics.intermediate = by("flashinfer_fp8_group_sm90");
  for (GemmNumerics* gemm : {&numerics.gemm1, &numerics.gemm2}) {
    gemm->factor = SumFactor::scales;
    gemm->flushes = false;
    gemm->mainloop.chain = 128;
    gemm->mainloop.promotion = Promotion::fma_product;
    gemm->mainloop.flushes = request.kernel.is("gemm", "builtin");
  }
  return numerics;
}

}  // namespace

/// Source: vllm@00af4049 flashinfer_utils.py swap_w13_to_w31; flashinfer@fb28d7242
/// csrc/fused_moe/cutlass_backend, DeepSeek FP8 block scales.
const Backend flashinfer_cutlass_fp8_block{
    .name = "flashinfer_cutlass_fp8_block",
    .family = "FlashInfer CUTLASS",
    .summary = "FP8 weights with f32 scales of 128 x 128, bf16 activations, SM90",
    .formats = {"fp8_block"},
    .options = {clamp_scales_option()},
    .rules = {{"hidden", kBlock, "", "whole scale blocks of 128"},
              {"intermediate", kBlock, "", "scale blocks of 128 rows must not cross the halves"}},
    .recipe = recipe,
    .kernel_options =
        {{"gemm",
          {"deepgemm", "builtin"},
          "DeepGEMM compiled at run time, or the kernel of TRTLLM_DG_ENABLED=0, which flushes"}},
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "6 layers on an H200, FlashInfer fb28d7242"},
};

}  // namespace moeref::backends
