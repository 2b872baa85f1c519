#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/triton_parts.hpp"

namespace moeref::backends {
namespace {

Recipe recipe(const LayerShape& shape, const Options& options) {
  const Fp8Device device = fp8_device(options);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, device.codes(), stepped_over_columns(options, shape.hidden)),
      tensor("w13_scale", Slot::w13_scale, device.scales(Slot::w13_scale), {}),
      tensor("w2", Slot::w2, device.codes(), stepped_over_columns(options, shape.intermediate)),
      tensor("w2_scale", Slot::w2_scale, device.scales(Slot::w2_scale), {}),
  };
  add_biases(recipe, shape);
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .unread_k = unread_k(options),
      .codes = device.format(),
      .block_rows = 1,
      .block_cols = kWholeAxis,
      .w13_scale = decode_as(Format::f32),
      .w2_scale = decode_as(Format::f32),
  };
  recipe.notes = padding_notes(options);
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  if (fp8_device(request.options).fnuz) {
    fail("triton_fp8_channel",
         "the quantizers of E4M3FNUZ activations (fnuz=on) were not measured; take fnuz=off");
  }
  return triton::numerics(request, "triton_fp8_channel", triton::Scales::channel);
}

}  // namespace

/// Source: sglang@02d5e1b5edc2 compressed_tensors_w8a8_fp8_moe.py; sglang fp8_utils.py
/// normalize_e4m3fn_to_e4m3fnuz
const Backend triton_fp8_channel{
    .name = "triton_fp8_channel",
    .family = "Triton",
    .summary = "FP8 weights with a scale per row, activations quantized per token",
    .formats = {"fp8_channel"},
    .options = {moe_padding_option(), fnuz_option()},
    .rules = {},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = triton::kernel_options(),
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "7 layers on an H200, Triton 3.6, torch 2.11"},
};

}  // namespace moeref::backends
