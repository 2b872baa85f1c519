#include <fmt/format.h>

#include "layout/backends/aiter_parts.hpp"
#include "layout/backends/numerics_parts.hpp"

// Source: sglang layers/quantization/fp8.py Fp8MoEMethod.process_weights_after_loading_block_quant,
// fused_moe_triton/layer.py _load_w13, model_loader/weight_utils.py
// narrow_padded_param_and_loaded_weight

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "aiter_fp8_block";
constexpr std::int64_t kBlock = 128;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const std::int64_t padded = aiter::padded_fp8(shape);
  const Steps rows{PadHalves{.to = padded}};
  const Steps cols{PadCols{.to = padded}};
  const Fp8Device device = aiter::device(options);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, device.codes() + rows, aiter::shuffled(8)),
      tensor("w13_scale", Slot::w13_scale, device.scales(Slot::w13_scale, kBlock) + rows, {}),
      tensor("w2", Slot::w2, device.codes() + cols, aiter::shuffled(8)),
      tensor("w2_scale", Slot::w2_scale, device.scales(Slot::w2_scale, kBlock) + cols, {}),
  };
  recipe.kernel = aiter::block_scaled(shape, {padded, shape.hidden, kBlock, kBlock},
                                      device.format(), decode_as(Format::f32));
  recipe.notes = {
      "scales stay in rows and columns: f32, a weight is code * scale",
      "a rank's part begins at r * P, not at r * I / T: the last ranks may hold zeros only"};
  if (padded != shape.intermediate) {
    recipe.notes.push_back(fmt::format("{} of {} rows of a half are padding, weights and scales 0",
                                       padded - shape.intermediate, padded));
  }
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  const std::string elements =
      request.options.is("device", "gfx942") ? "elements=e4m3fnuz" : "elements=e4m3";
  return aiter::numerics(request, "aiter_fp8_block", by("aiter_hip_fp8_group", {elements}));
}

}  // namespace

const Backend aiter_fp8_block{
    .name = kName,
    .family = "AMD aiter",
    .summary = "FP8 weights with 128 x 128 scales: padded halves, 16 x 16-byte tiles",
    .formats = {"fp8_block"},
    .options = {aiter::device_option()},
    .rules = {{"hidden", 32, "", aiter::kColumnsOf32}},
    .loader = aiter::padded_to_128,
    .recipe = recipe,
    .kernel_options = {aiter::weight_option()},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "AMD kernels were not measured",
               "read from the open reference; the kernels are closed"},
};

}  // namespace moeref::backends
