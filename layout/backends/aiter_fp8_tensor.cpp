#include "layout/backends/aiter_parts.hpp"
#include "layout/backends/misplaced_rows.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/recode/max_requantize.hpp"

// Source: sglang layers/quantization/fp8.py Fp8MoEMethod.process_weights_after_loading,
// process_weights_hip_scale_padding

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "aiter_fp8_tensor";

/// Each value `times` times.
std::vector<float> expanded(const std::vector<float>& scales, std::int64_t times) {
  std::vector<float> columns;
  for (const float scale : scales) {
    columns.insert(columns.end(), static_cast<std::size_t>(times), 1.0f * scale);
  }
  return columns;
}

std::vector<ScalarRecipe> scalars(std::int64_t w13_rows, std::int64_t w2_rows,
                                  const Fp8Device& device) {
  const std::string twice = device.fnuz ? "2 * " : "";
  return {
      {"w13_scale1", "1 * (" + twice + "max(w13_scale[e][gate], w13_scale[e][up])), for every row",
       true,
       [=](const ExpertScalars& from, const LayerShape& shape) {
         return expanded(device.factors(recode::max_scale(from, shape)), w13_rows);
       },
       nullptr, w13_rows},
      {"w2_scale1", "1 * (" + twice + "w2_scale[e]), for every row", true,
       [=](const ExpertScalars& from, const LayerShape&) {
         return expanded(device.factors(from.w2_scale), w2_rows);
       },
       nullptr, w2_rows},
      {"w13_input_scale", twice + "max over all experts of w13_input_scale", false,
       [=](const ExpertScalars& from, const LayerShape&) {
         return from.w13_input_scale.empty() ? std::vector<float>{}
                                             : device.factors({max_input_scale_13(from, kName)});
       }},
      {"w2_input_scale", twice + "max over all experts of w2_input_scale", false,
       [=](const ExpertScalars& from, const LayerShape&) {
         return from.w2_input_scale.empty() ? std::vector<float>{}
                                            : device.factors({max_input_scale_2(from, kName)});
       }},
  };
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const std::int64_t padded = aiter::padded_fp8(shape);
  const std::int64_t w13_rows = shape.halves() * padded;
  const Fp8Device device = aiter::device(options);
  const bool misplaced = options.is("requantize", "unpadded_offset_upstream");
  const Recode requantize =
      misplaced ? misplaced_requantization(kName, "requantize=unpadded_offset_upstream", shape,
                                           padded, device.fnuz)
                : recode::max_requantize_w13(device.fnuz);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, device.codes() + Steps{requantize, PadHalves{.to = padded}},
             aiter::shuffled(8)),
      tensor("w2", Slot::w2, device.codes() + Steps{PadCols{.to = padded}}, aiter::shuffled(8)),
  };
  recipe.scalars = scalars(w13_rows, shape.hidden, device);
  recipe.kernel.order = gate_first(shape);
  recipe.kernel.intermediate = padded;
  recipe.kernel.hidden = shape.hidden;
  recipe.kernel.codes = device.format();
  recipe.kernel.gate_factor = factor("w13_scale1", w13_rows, 0);
  recipe.kernel.up_factor = factor("w13_scale1", w13_rows, w13_rows - padded);
  recipe.kernel.down_factor = factor("w2_scale1", shape.hidden, 0);
  recipe.notes = {"the kernel scales by rows (per_Token): one scale, written for every row",
                  "SGLang allocates w13_scale1 for unpadded rows; here it has those of w13"};
  if (misplaced) note_misplaced_rows(recipe, shape, padded);
  return recipe;
}

/// The kernel is called with per_Token and without activation scales: rows get their own.
/// Source: sglang quantization/fp8.py maybe_apply_hip_fused_experts
Numerics numerics(const NumericsRequest& request) {
  const std::string elements =
      request.options.is("device", "gfx942") ? "elements=e4m3fnuz" : "elements=e4m3";
  return aiter::numerics(request, "aiter_fp8_tensor", by("aiter_torch_fp8_token", {elements}));
}

}  // namespace

const Backend aiter_fp8_tensor{
    .name = kName,
    .family = "AMD aiter",
    .summary = "FP8 weights with one scale: max-requantized, padded halves, 16 x 16-byte tiles",
    .formats = {"fp8_tensor"},
    .options = {aiter::device_option(),
                {"requantize",
                 {"per_half", "unpadded_offset_upstream"},
                 "upstream counts rows of padded halves without their padding"}},
    .rules = {{"hidden", 32, "", aiter::kColumnsOf32}},
    .loader = aiter::padded_to_128,
    .recipe = recipe,
    .kernel_options = {aiter::weight_option()},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "AMD kernels were not measured",
               "read from the open reference; the kernels are closed"},
};

}  // namespace moeref::backends
