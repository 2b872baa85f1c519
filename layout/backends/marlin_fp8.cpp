#include "layout/backends/marlin_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/recode/marlin_scales.hpp"
#include "layout/recode/max_requantize.hpp"
#include "layout/tiles/marlin.hpp"
#include "quant/error.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "marlin_fp8";
constexpr std::int64_t kBlock = 128;
/// The kernel moves the exponent bits of E4M3 into the wider type without the difference of the
/// biases. Source: vLLM marlin dequant.h dequant<nv_bfloat162 / half2, kFE4M3fn, true>
constexpr float kUnbiasedBf16 = 0x1p-120f;
constexpr float kUnbiasedF16 = 0x1p-8f;

bool is_blocked(const LayerShape& shape) { return shape.weight_format == "fp8_block"; }
bool is_per_tensor(const LayerShape& shape) { return shape.weight_format == "fp8_tensor"; }

/// Error: blocks of another size than the steps repeat.
Recode checked_blocks(Recode recode, Slot slot) {
  recode.make = [inner = std::move(recode.make), slot](const LayerTensors& layer) {
    const TensorStack& scales = layer.at(slot);
    if (scales.block_rows != kBlock || scales.block_cols != kBlock) {
      fail(scales.name, "has scale blocks of {} x {}; {} takes {} x {}", scales.block_rows,
           scales.block_cols, kName, kBlock, kBlock);
    }
    return inner(layer);
  };
  return recode;
}

/// One scale for every row: a block's for each of its rows, a tensor's for each of the half's.
Steps one_per_row(const LayerShape& shape, std::int64_t rows, std::int64_t half_rows) {
  if (is_blocked(shape)) return {RepeatRows{.times = kBlock, .rows = rows}};
  if (is_per_tensor(shape)) return {RepeatRows{.times = half_rows}};
  return {};
}

TensorRecipe scales(std::string name, Slot slot, const LayerShape& shape, const Options& options,
                    const Steps& before) {
  const bool is_w13 = slot == Slot::w13_scale;
  const std::int64_t half_rows = is_w13 ? shape.intermediate : shape.hidden;
  const std::int64_t rows = is_w13 ? half_rows * shape.halves() : half_rows;
  const std::int64_t k = is_w13 ? shape.hidden : shape.intermediate;
  const auto bias = options.is("exponent_bias", "in_scales") ? recode::MarlinBias::in_scales
                                                             : recode::MarlinBias::none;
  Recode to_params = recode::marlin_fp8_scales(slot, marlin::params(options), bias);
  if (is_blocked(shape)) to_params = checked_blocks(std::move(to_params), slot);
  return tensor(std::move(name), slot,
                before + Steps{std::move(to_params)} + one_per_row(shape, rows, half_rows),
                {tiles::marlin_scale_order(k, is_blocked(shape) ? kBlock : 0, false),
                 Tile{tiles::marlin_group_major()}});
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const DType params = marlin::params(options);
  const bool requantizes = is_per_tensor(shape) && options.is("w13_scales", "max_requantize");
  const Steps codes_before = requantizes ? Steps{recode::max_requantize_w13()} : Steps{};
  const Steps scales_before = requantizes ? Steps{recode::max_scales_w13()} : Steps{};
  Recipe recipe;
  recipe.tensors = {marlin::codes("w13", Slot::w13, codes_before, 8),
                    scales("w13_scale", Slot::w13_scale, shape, options, scales_before),
                    marlin::codes("w2", Slot::w2, {}, 8),
                    scales("w2_scale", Slot::w2_scale, shape, options, {})};
  for (TensorRecipe& bias : marlin::biases(shape, params, {})) {
    recipe.tensors.push_back(std::move(bias));
  }
  recipe.kernel = marlin::reading(shape, shape.intermediate, Format::e4m3);
  recipe.kernel.block_rows = 1;
  recipe.kernel.block_cols = is_blocked(shape) ? kBlock : kWholeAxis;
  const float unbiased = params == DType::f16 ? kUnbiasedF16 : kUnbiasedBf16;
  const float unit = options.is("exponent_bias", "in_scales") ? unbiased : 1.0f;
  recipe.kernel.w13_scale = recode::decode_marlin_floats(params, unit);
  recipe.kernel.w2_scale = recipe.kernel.w13_scale;
  recipe.notes = {
      "activations stay 16-bit and input scales are not read; FP8 activations with FP8 "
      "weights are an error upstream",
      "with exponent_bias=in_scales, scales of 2^8 and more become infinite"};
  marlin::note_thread_tiles(recipe, shape, shape.intermediate);
  return recipe;
}

}  // namespace

/// Source: vllm@ee52d990 marlin_utils_fp8.py prepare_moe_fp8_layer_for_marlin
const Backend marlin_fp8{
    .name = kName,
    .family = "Marlin",
    .summary = "FP8 weights, 16-bit activations, SM75 to SM90",
    .formats = {"fp8_tensor", "fp8_channel", "fp8_block"},
    .options = {marlin::params_option(),
                {"exponent_bias",
                 {"in_scales", "in_kernel"},
                 "in_scales: scales times 2^120 (bf16), 2^8 (f16); in_kernel: older vLLM"},
                {"w13_scales",
                 {"per_half", "max_requantize"},
                 "per tensor: each half keeps its scale, or both are requantized to the larger"}},
    .rules = {{"hidden", 64, "", "rows of w2: the repack takes tiles of 64"},
              {"intermediate", 32, "gated", "rows of w13: the repack takes tiles of 64"},
              {"intermediate", 64, "not gated", "rows of w13: the repack takes tiles of 64"},
              {"hidden", kBlock, "fp8_block", "the kernel reads whole groups of K"},
              {"intermediate", kBlock, "fp8_block",
               "the kernel reads whole groups of K, and a half of w13 ends at a block"}},
    .recipe = recipe,
    .numerics =
        [](const NumericsRequest& request) { return marlin::numerics(request, "marlin_fp8"); },
    .replay = {ReplayEvidence::none, "K is split by the size of the device, not measured"},
};

}  // namespace moeref::backends
