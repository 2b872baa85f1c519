#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "quant/error.hpp"

namespace moeref::backends {
namespace {

Recipe recipe(const LayerShape& shape, const Options& options) {
  const Steps rows = options.is("rows", "interleaved") ? Steps{InterleaveHalves{1}} : Steps{};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, {}, rows),
      tensor("w2", Slot::w2, {}, {}),
  };
  add_biases(recipe, shape, rows);
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .codes = shape.weight_format == "f16" ? Format::f16 : Format::bf16,
  };
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  if (request.shape.weight_format == "f16") {
    fail("triton_bf16",
         "multiplies f16 weights with f16 hidden states, whose rounding points nobody has "
         "described; "
         "take bf16 weights or --numerics reference");
  }
  return triton::numerics(request, "triton_bf16", triton::Scales::none);
}

}  // namespace

/// Source: sglang layers/moe/fused_moe_triton/layer.py _load_w13, _load_w2; interleaved:
/// triton@002402cf5a3e triton_kernels/swiglu_details/_swiglu.py
const Backend triton_bf16{
    .name = "triton_bf16",
    .family = "Triton",
    .summary = "unquantized weights: gate rows, then up rows, as loaded",
    .formats = {"bf16", "f16"},
    .options = {{"rows",
                 {"halves", "interleaved"},
                 "interleaved: GPT-OSS, whose activation reads gate and up in turn"}},
    .rules = {},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = triton::kernel_options(),
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "20 layers on an H200, Triton 3.6, torch 2.11"},
};

}  // namespace moeref::backends
