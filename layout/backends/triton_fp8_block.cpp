#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/triton_parts.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 128;

Recipe recipe(const LayerShape& shape, const Options& options) {
  const Fp8Device device = fp8_device(options);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, device.codes(), {}),
      tensor("w13_scale", Slot::w13_scale, device.scales(Slot::w13_scale, kBlock), {}),
      tensor("w2", Slot::w2, device.codes(), {}),
      tensor("w2_scale", Slot::w2_scale, device.scales(Slot::w2_scale, kBlock), {}),
  };
  add_biases(recipe, shape);
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .codes = device.format(),
      .block_rows = kBlock,
      .block_cols = kBlock,
      .w13_scale = decode_as(Format::f32),
      .w2_scale = decode_as(Format::f32),
  };
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  if (fp8_device(request.options).fnuz) {
    fail("triton_fp8_block",
         "the quantizers of E4M3FNUZ activations (fnuz=on) were not measured; take fnuz=off");
  }
  return triton::numerics(request, "triton_fp8_block", triton::Scales::block);
}

}  // namespace

/// Source: sglang layers/quantization/fp8.py; sglang fp8_utils.py normalize_e4m3fn_to_e4m3fnuz
const Backend triton_fp8_block{
    .name = "triton_fp8_block",
    .family = "Triton",
    .summary = "FP8 weights with f32 scales of 128 x 128 blocks, activations 1 x 128",
    .formats = {"fp8_block"},
    .options = {fnuz_option()},
    .rules = {{"intermediate", kBlock, "", "SGLang create_weights: a block must not cross halves"}},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = triton::kernel_options(),
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "22 layers on an H200, Triton 3.6, torch 2.11"},
};

}  // namespace moeref::backends
