#include "layout/backends/marlin_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/recode/marlin_scales.hpp"
#include "layout/tiles/marlin.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "marlin_mxfp8";
constexpr std::int64_t kBlock = 32;

TensorRecipe scales(std::string name, Slot slot, std::int64_t k) {
  return tensor(std::move(name), slot, {recode::marlin_e8m0(slot, DType::bf16, 0)},
                {tiles::marlin_scale_order(k, kBlock, false), tiles::marlin_swap_quads(),
                 Tile{tiles::marlin_group_major()}});
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  marlin::need_bf16(kName, options);
  Recipe recipe;
  recipe.tensors = {
      marlin::codes("w13", Slot::w13, {}, 8), scales("w13_scale", Slot::w13_scale, shape.hidden),
      marlin::codes("w2", Slot::w2, {}, 8), scales("w2_scale", Slot::w2_scale, shape.intermediate)};
  for (TensorRecipe& bias : marlin::biases(shape, DType::bf16, {})) {
    recipe.tensors.push_back(std::move(bias));
  }
  recipe.kernel = marlin::reading(shape, shape.intermediate, Format::e4m3);
  recipe.kernel.block_rows = 1;
  recipe.kernel.block_cols = kBlock;
  // Beside E8M0 scales the kernel multiplies the codes by the difference of the biases itself.
  recipe.kernel.w13_scale = recode::decode_marlin_e8m0(1.0f);
  recipe.kernel.w2_scale = recode::decode_marlin_e8m0(1.0f);
  recipe.notes = {"the kernel reads scale byte 0x00 as 0 and 0xFF as infinity"};
  marlin::note_thread_tiles(recipe, shape, shape.intermediate);
  return recipe;
}

}  // namespace

/// Source: vLLM marlin_utils_fp8.py prepare_mxfp8_moe_layer_for_marlin (a later revision);
/// marlin_template.h dequant_skip_flop
const Backend marlin_mxfp8{
    .name = kName,
    .family = "Marlin",
    .summary = "MXFP8 weights, BF16 activations, SM80 to SM90",
    .formats = {"mxfp8"},
    .options = {marlin::params_option()},
    .rules = {{"hidden", 64, "", "rows of w2: the repack takes tiles of 64"},
              {"intermediate", 32, "gated", "rows of w13: the repack takes tiles of 64"},
              {"intermediate", 64, "not gated", "rows of w13: the repack takes tiles of 64"}},
    .recipe = recipe,
    .numerics =
        [](const NumericsRequest& request) { return marlin::numerics(request, "marlin_mxfp8"); },
    .replay = {ReplayEvidence::none, "K is split by the size of the device, not measured"},
};

}  // namespace moeref::backends
