#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/swiglu_numbers.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/deepgemm.hpp"

namespace moeref::backends {
namespace {

Recipe recipe(const LayerShape& shape, const Options&) {
  refuse_biases(shape, "deepgemm_fp4");
  const Steps bytes{Tile{tiles::deepgemm_int8_fp4()}};
  const auto scales = [](std::string name, Slot slot) {
    return tensor(std::move(name), slot, {recode::power_of_two_scales(slot)},
                  {Tile{tiles::deepgemm_pack_ue8m0()}});
  };
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, {}, bytes),
      scales("w13_scale", Slot::w13_scale),
      tensor("w2", Slot::w2, {}, bytes),
      scales("w2_scale", Slot::w2_scale),
  };
  recipe.scalars = {swiglu_limit()};
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .codes = Format::e2m1,
      .block_rows = 1,
      .block_cols = 32,
      .w13_scale = decode_as(Format::e8m0),
      .w2_scale = decode_as(Format::e8m0),
  };
  read_swiglu(recipe.kernel, shape);
  return recipe;
}

}  // namespace

/// Source: sglang@007baab6e1d2 moe_runner/deep_gemm.py; DeepGEMM@54e2261
/// transform_sf_into_required_layout, recipe (1, 32)
const Backend deepgemm_fp4{
    .name = "deepgemm_fp4",
    .family = "DeepGEMM",
    .summary = "MXFP4 weights in int8, packed scales of 1 x 32, FP8 activations, SM100",
    .formats = {"mxfp4"},
    .options = {},
    .rules = {{"hidden", 32, "", "a scale for 32 columns"},
              {"intermediate", 32, "", "a scale for 32 columns"}},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = deepgemm::kernel_options(),
    .numerics =
        [](const NumericsRequest& request) {
          return deepgemm::numerics(request, "deepgemm_fp4", true);
        },
    .replay = {ReplayEvidence::none, "its activation and reorder kernels were not measured"},
};

}  // namespace moeref::backends
