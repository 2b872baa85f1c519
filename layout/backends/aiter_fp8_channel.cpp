#include "layout/backends/aiter_parts.hpp"
#include "layout/backends/numerics_parts.hpp"

// Source: sglang@02d5e1b5edc2 compressed_tensors_w8a8_fp8_moe.py process_weights_after_loading,
// sglang@0fbab45d95da quark/schemes/quark_w8a8_fp8_moe.py

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "aiter_fp8_channel";

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const std::int64_t padded = aiter::padded_fp8(shape);
  const Steps rows{PadHalves{.to = padded}};
  const Steps cols{PadCols{.to = padded}};
  const Fp8Device device = aiter::device(options);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, device.codes() + rows, aiter::shuffled(8)),
      tensor("w13_scale", Slot::w13_scale, device.scales(Slot::w13_scale) + rows, {}),
      tensor("w2", Slot::w2, device.codes() + cols, aiter::shuffled(8)),
      tensor("w2_scale", Slot::w2_scale, device.scales(Slot::w2_scale), {}),
  };
  recipe.kernel = aiter::block_scaled(shape, {padded, shape.hidden, 1, kWholeAxis}, device.format(),
                                      decode_as(Format::f32));
  recipe.notes = {"scales are f32 [experts, rows, 1]; those of w2 are whole on every rank",
                  "SGLang shuffles Quark weights only if the router weight goes on the input"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  const std::string elements =
      request.options.is("device", "gfx942") ? "elements=e4m3fnuz" : "elements=e4m3";
  return aiter::numerics(request, "aiter_fp8_channel", by("aiter_torch_fp8_token", {elements}));
}

}  // namespace

const Backend aiter_fp8_channel{
    .name = kName,
    .family = "AMD aiter",
    .summary = "FP8 weights with a scale per row: padded halves, 16 x 16-byte tiles",
    .formats = {"fp8_channel"},
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
