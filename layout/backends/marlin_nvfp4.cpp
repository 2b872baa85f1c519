#include <fmt/format.h>

#include "layout/backends/marlin_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/recode/marlin_scales.hpp"
#include "layout/tiles/marlin.hpp"
#include "quant/error.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "marlin_nvfp4";
constexpr std::int64_t kBlock = 16;
constexpr std::int64_t kTileRows = 64;
/// The kernel moves the exponent bits of E2M1 into the wider type without the difference of the
/// biases. Source: vLLM marlin dequant.h dequant<nv_bfloat162 / half2, kFE2M1f, true>
constexpr float kUnbiasedBf16 = 0x1p-126f;
constexpr float kUnbiasedF16 = 0x1p-14f;

using recode::MarlinScales;

MarlinScales mode(const Options& options) {
  if (options.is("mode", "sglang")) return MarlinScales::sglang;
  return options.is("mode", "v1") ? MarlinScales::v1 : MarlinScales::vllm;
}

/// What the preparation makes of the sizes.
struct Sizes {
  std::int64_t intermediate;  ///< rows of a half, columns of w2
  std::int64_t w2_rows;
  Steps w13_pad;
  Steps w2_pad;
};

/// vLLM pads the rows of w13 as a whole, so that halves move unless 2 I % 64 == 0, and the rows of
/// w2. Source: vllm@00d52e93 marlin_utils_fp4.py prepare_nvfp4_moe_layer_for_marlin
Sizes whole_upstream(const LayerShape& shape) {
  const std::int64_t rows = round_up(shape.stride * shape.halves(), kTileRows);
  const std::int64_t half = rows / shape.halves();
  const std::int64_t w2_rows = round_up(shape.hidden, kTileRows);
  return {half, w2_rows, {PadRows{.to = rows}}, {PadRows{.to = w2_rows}, PadCols{.to = half}}};
}

/// Rows of a half that keep gate and up apart. Where no framework pads, the rules ask for whole
/// tiles.
std::int64_t padded_rows(const LayerShape& shape, const Options& options) {
  if (options.is("pad", "per_half")) return round_up(shape.stride, kTileRows / shape.halves());
  if (shape.gated || options.is("mode", "v1")) return shape.stride;
  return round_up(shape.stride, options.is("mode", "sglang") ? 128 : kTileRows);
}

Sizes sizes(const LayerShape& shape, const Options& options) {
  if (options.is("pad", "whole_upstream")) {
    if (!options.is("mode", "vllm")) {
      fail(kName, "pad=whole_upstream is what mode=vllm does; choose it");
    }
    return whole_upstream(shape);
  }
  const std::int64_t half = padded_rows(shape, options);
  return {half, shape.hidden, {PadHalves{.to = half}}, {PadCols{.to = half}}};
}

TensorRecipe scales(std::string name, Slot slot, const Steps& pad, std::int64_t k,
                    const Options& options) {
  const MarlinScales made_by = mode(options);
  const Tile order{made_by == MarlinScales::v1 ? tiles::marlin_group_pairs()
                                               : tiles::marlin_group_major()};
  return tensor(std::move(name), slot,
                Steps{recode::marlin_s0e5m3(slot, made_by, marlin::params(options))} + pad,
                {tiles::marlin_scale_order(k, kBlock, false), tiles::marlin_swap_quads(), order});
}

/// The global scale of gate serves both halves. Source: sglang modelopt_quant.py, vllm
/// compressed_tensors_moe.py (a warning if the two differ)
ScalarRecipe global_scale(std::string name, Slot scales, std::vector<float> ExpertScalars::*globals,
                          bool is_w13, const Options& options) {
  const MarlinScales made_by = mode(options);
  const DType params = marlin::params(options);
  const bool rounded = options.is("globals", "rounded");
  const std::string formula =
      fmt::format("{}[e]{}{} * 2^{} / scale factor of {}", name, is_w13 ? "[gate]" : "",
                  rounded ? " in the activations' type" : "", params == DType::f16 ? 7 : 119,
                  moeref::name(scales));
  return {.name = std::move(name),
          .formula = formula,
          .values = nullptr,
          .values_of_layer = [=](const LayerTensors& layer) {
            const float scale_factor =
                recode::marlin_scale_factor(layer.at(scales), made_by, params);
            const std::vector<float>& stored = layer.scalars.*globals;
            if (stored.empty()) fail(layer.shape.model, "has no global scales; NVFP4 needs them");
            const auto step = static_cast<std::size_t>(is_w13 ? layer.shape.halves() : 1);
            std::vector<float> values;
            for (std::size_t i = 0; i < stored.size(); i += step) {
              const float global = rounded ? recode::round_to_params(stored[i], params) : stored[i];
              const float biased = recode::marlin_global_scale(global, scale_factor, params);
              values.push_back(rounded ? recode::round_to_params(biased, params) : biased);
            }
            return values;
          }};
}

KernelReading reading(const LayerShape& shape, const Sizes& padded, DType params) {
  KernelReading reading = marlin::reading(shape, padded.intermediate, Format::e2m1);
  reading.block_rows = 1;
  reading.block_cols = kBlock;
  reading.w13_scale = recode::decode_s0e5m3(params);
  reading.w2_scale = reading.w13_scale;
  // What the kernel multiplies the sums by, with what it leaves in the codes.
  const float unbiased = params == DType::f16 ? kUnbiasedF16 : kUnbiasedBf16;
  reading.gate_factor = factor_times(unbiased, "w13_scale_2");
  reading.up_factor = reading.gate_factor;
  reading.down_factor = factor_times(unbiased, "w2_scale_2");
  return reading;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const Sizes padded = sizes(shape, options);
  const DType params = marlin::params(options);
  Recipe recipe;
  recipe.tensors = {
      marlin::codes("w13", Slot::w13, padded.w13_pad, 4),
      scales("w13_scale", Slot::w13_scale, padded.w13_pad, shape.hidden, options),
      marlin::codes("w2", Slot::w2, padded.w2_pad, 4),
      scales("w2_scale", Slot::w2_scale, padded.w2_pad, padded.intermediate, options)};
  for (TensorRecipe& bias :
       marlin::biases(shape, params, padded.w13_pad, {PadRows{.to = padded.w2_rows}})) {
    recipe.tensors.push_back(std::move(bias));
  }
  recipe.scalars = {
      global_scale("w13_scale_2", Slot::w13_scale, &ExpertScalars::w13_scale, true, options),
      global_scale("w2_scale_2", Slot::w2_scale, &ExpertScalars::w2_scale, false, options)};
  recipe.kernel = reading(shape, padded, params);
  recipe.notes = {"gate's global scale also serves up; if they differ, up is off by their ratio",
                  "block scales are taken as not negative: their sign is dropped or they become 0"};
  if (mode(options) == MarlinScales::vllm && params == DType::bf16) {
    recipe.notes.emplace_back(
        "the factor that lifts the smallest scale may push the largest out of FP16: they become "
        "0xF8, which the kernel reads as 65536");
  }
  marlin::note_thread_tiles(recipe, shape, padded.intermediate);
  return recipe;
}

}  // namespace

/// Source: vllm@00d52e93 marlin_utils_fp4.py prepare_nvfp4_moe_layer_for_marlin; sglang@05c279f2
/// marlin_utils_fp4.py prepare_moe_nvfp4_layer_for_marlin
const Backend marlin_nvfp4{
    .name = kName,
    .family = "Marlin",
    .summary = "NVFP4 weights, 16-bit activations, SM75 to SM90",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {{"mode",
                 {"vllm", "sglang", "v1"},
                 "whose scale factor and padding; v1: pairs of groups, no factor (2025)"},
                marlin::params_option(),
                {"globals",
                 {"f32", "rounded"},
                 "rounded: older versions round the global scale to the activations' type"},
                {"pad",
                 {"framework", "per_half", "whole_upstream"},
                 "framework: as mode does, refused where halves would mix; whole_upstream: mixed"}},
    .rules = {{"hidden", kBlock, "pad=whole_upstream", "the repack takes K in tiles of 16"},
              {"hidden", kTileRows, "pad!=whole_upstream",
               "rows of w2; vLLM pads them but calls the kernel with the model's width "
               "(pad=whole_upstream gives those bytes)"},
              {"intermediate", kBlock, "", "the repack takes K of w2 in tiles of 16"},
              {"intermediate", kTileRows / 2, "gated and pad=framework",
               "vLLM pads gate and up as one and mixes them, SGLang does not pad; pad=per_half "
               "keeps the function, pad=whole_upstream gives vLLM's bytes"},
              {"intermediate", kTileRows, "not gated and pad=framework and mode=v1",
               "kernels of 2025 are not padded; pad=per_half pads"}},
    .recipe = recipe,
    .numerics =
        [](const NumericsRequest& request) { return marlin::numerics(request, "marlin_nvfp4"); },
    .replay = {ReplayEvidence::none, "K is split by the size of the device, not measured",
               "read from the source; the global scale is taken inside the one rounding of a sum"},
};

}  // namespace moeref::backends
