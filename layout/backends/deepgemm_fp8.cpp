#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/deepgemm.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 128;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, "deepgemm_fp8");
  const Steps order =
      options.is("scale_major", "mn") ? Steps{Tile{tiles::deepgemm_mn_major()}} : Steps{};
  const auto scales = [&order](std::string name, Slot slot) {
    return tensor(std::move(name), slot, {recode::scales_to_f32(slot, kBlock)}, order);
  };
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, {}, {}),
      scales("w13_scale", Slot::w13_scale),
      tensor("w2", Slot::w2, {}, {}),
      scales("w2_scale", Slot::w2_scale),
  };
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .codes = Format::e4m3,
      .block_rows = kBlock,
      .block_cols = kBlock,
      .w13_scale = decode_as(Format::f32),
      .w2_scale = decode_as(Format::f32),
  };
  return recipe;
}

}  // namespace

/// Source: sglang@007baab6e1d2 moe_runner/deep_gemm.py; DeepGEMM@54e2261
/// transform_sf_into_required_layout (scales of 128 x 128 on SM90); sglang
/// layers/quantization/fp8.py (sizes)
const Backend deepgemm_fp8{
    .name = "deepgemm_fp8",
    .family = "DeepGEMM",
    .summary = "FP8 weights with f32 scales of 128 x 128 blocks, SM90",
    .formats = {"fp8_block"},
    .options = {{"scale_major", {"k", "mn"}, "scales row-major, or exactly transposed"}},
    .rules = {{"intermediate", kBlock, "", "SGLang create_weights: a block must not cross halves"}},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = deepgemm::kernel_options(),
    .numerics =
        [](const NumericsRequest& request) {
          return deepgemm::numerics(request, "deepgemm_fp8", false);
        },
    .replay = {ReplayEvidence::none, "its activation and reorder kernels were not measured"},
};

}  // namespace moeref::backends
