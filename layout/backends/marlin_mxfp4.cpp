#include "layout/backends/marlin_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/recode/marlin_scales.hpp"
#include "layout/tiles/marlin.hpp"
#include "quant/error.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "marlin_mxfp4";
constexpr std::int64_t kBlock = 32;
/// The difference of the exponent biases of E4M3 and E2M1.
constexpr int kE4M3OverE2M1 = 6;
/// The kernel moves the exponent bits of E2M1 into E4M3 without it.
/// Source: vLLM marlin dequant.h dequant<__nv_fp8x4_e4m3, kFE2M1f, true>
constexpr float kUnbiasedE4M3 = 0x1p-6f;

/// GPT-OSS checkpoints are cut in whole scale blocks; for widths that the ranks divide into whole
/// blocks this is the even cut. Source: sglang models/gpt_oss.py _load_mxfp4_experts_weights.
Loader loader(const LayerShape&, const Options&) { return {LoaderKind::blocks, kBlock}; }

/// Rows of a half. Source: sglang@05c279f2 marlin_utils_fp4.py prepare_moe_mxfp4_layer_for_marlin
std::int64_t padded_rows(const LayerShape& shape, const Options& options) {
  if (options.is("pad", "none")) return shape.stride;
  return round_up(shape.stride, shape.hidden % 128 == 0 ? 64 : 128);
}

struct Choice {
  bool fp8_activations;
  bool pairs;  ///< of groups, as kernels of 2025 read
  int added() const { return fp8_activations ? kE4M3OverE2M1 : 0; }
};

Choice choice(const Options& options) {
  const Choice chosen{options.is("activations", "fp8"), options.is("scales", "v1")};
  if (chosen.fp8_activations && chosen.pairs) {
    fail(kName, "scales=v1 has no kernel for FP8 activations; use activations=16bit");
  }
  return chosen;
}

TensorRecipe scales(std::string name, Slot slot, Steps pad, std::int64_t k, const Choice& chosen) {
  Steps kernel{tiles::marlin_scale_order(k, kBlock, chosen.fp8_activations)};
  if (!chosen.fp8_activations) kernel.push_back(tiles::marlin_swap_quads());
  kernel.push_back(Tile{chosen.pairs ? tiles::marlin_group_pairs() : tiles::marlin_group_major()});
  return tensor(std::move(name), slot,
                Steps{recode::marlin_e8m0(slot, DType::bf16, chosen.added())} + pad, kernel);
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  marlin::need_bf16(kName, options);
  const Choice chosen = choice(options);
  const std::int64_t rows = padded_rows(shape, options);
  const bool fp8 = chosen.fp8_activations;
  // Upstream pads before it adds: the pads of scales hold the sum.
  const auto scale_fill = static_cast<std::byte>(chosen.added());
  const Steps w13_pad{PadHalves{.to = rows}};
  const Steps w2_pad{PadCols{.to = rows}};
  Recipe recipe;
  recipe.tensors = {
      marlin::codes("w13", Slot::w13, w13_pad, 4, fp8),
      scales("w13_scale", Slot::w13_scale, {PadHalves{.to = rows, .fill = scale_fill}},
             shape.hidden, chosen),
      marlin::codes("w2", Slot::w2, w2_pad, 4, fp8),
      scales("w2_scale", Slot::w2_scale, {PadCols{.to = rows, .fill = scale_fill}}, rows, chosen)};
  for (TensorRecipe& bias : marlin::biases(shape, DType::bf16, w13_pad)) {
    recipe.tensors.push_back(std::move(bias));
  }
  recipe.kernel = marlin::reading(shape, rows, Format::e2m1);
  recipe.kernel.block_rows = 1;
  recipe.kernel.block_cols = kBlock;
  recipe.kernel.w13_scale = recode::decode_marlin_e8m0(fp8 ? kUnbiasedE4M3 : 1.0f);
  recipe.kernel.w2_scale = recipe.kernel.w13_scale;
  recipe.notes = {"rows of w13 are gate, then up, also where the file alternates them (GPT-OSS)",
                  "the kernel reads scale byte 0x00 as 0 and 0xFF as infinity"};
  marlin::note_thread_tiles(recipe, shape, rows);
  return recipe;
}

}  // namespace

/// Source: sglang@05c279f2 marlin_utils_fp4.py prepare_moe_mxfp4_layer_for_marlin,
/// deinterleave_moe_mxfp4_w13_for_marlin; vllm@00d52e93 marlin_utils_fp4.py
/// prepare_moe_mxfp4_layer_for_marlin
const Backend marlin_mxfp4{
    .name = kName,
    .family = "Marlin",
    .summary = "MXFP4 weights, BF16 or FP8 activations, SM80 to SM90",
    .formats = {"mxfp4"},
    .options = {marlin::params_option(),
                {"pad",
                 {"sglang", "none"},
                 "sglang: each half to 64 rows (128 unless hidden % 128 == 0); none: vLLM"},
                {"activations",
                 {"16bit", "fp8"},
                 "fp8: other tiles, scale exponents plus 6 (vLLM)"},
                {"scales", {"current", "v1"}, "v1: pairs of groups, kernels of 2025"}},
    .rules = {{"hidden", 64, "", "rows of w2: the repack takes tiles of 64"},
              {"intermediate", kBlock, "", "columns of w2 have scale blocks of 32"},
              {"intermediate", 64, "not gated and pad=none and activations=16bit",
               "rows of w13: the repack takes tiles of 64; use pad=sglang"},
              {"intermediate", 2 * kBlock, "pad=none and scales=v1",
               "scales=v1 pairs the scale groups of K; use pad=sglang"}},
    .loader = loader,
    .recipe = recipe,
    .numerics =
        [](const NumericsRequest& request) { return marlin::numerics(request, "marlin_mxfp4"); },
    .replay = {ReplayEvidence::none, "K is split by the size of the device, not measured"},
};

}  // namespace moeref::backends
