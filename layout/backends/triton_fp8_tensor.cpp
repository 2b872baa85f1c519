#include <algorithm>

#include "layout/backends/misplaced_rows.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/triton_parts.hpp"
#include "layout/recode/max_requantize.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "triton_fp8_tensor";

bool is_ct(const Options& options) { return options.is("requantize", "ct_upstream"); }

Step requantization(const LayerShape& shape, const Options& options, std::int64_t half_rows) {
  const bool fnuz = fp8_device(options).fnuz;
  if (!is_ct(options)) return recode::max_requantize_w13(fnuz);
  return misplaced_requantization(kName, "requantize=ct_upstream", shape, half_rows, fnuz);
}

/// compressed-tensors allocates by aiter's rule on every platform.
Loader loader(const LayerShape&, const Options& options) {
  return is_ct(options) ? Loader{LoaderKind::padded, 128} : Loader{};
}

ScalarRecipe input_scale(std::string name, std::vector<float> ExpertScalars::*stored,
                         const Fp8Device& device) {
  return {.name = std::move(name),
          .formula = device.fnuz ? "2 * max over all experts" : "max over all experts",
          .per_expert = false,
          .values = [stored, device](const ExpertScalars& scalars, const LayerShape&) {
            const std::vector<float>& all = scalars.*stored;
            if (all.empty()) return std::vector<float>{};
            return device.factors({*std::max_element(all.begin(), all.end())});
          }};
}

std::vector<ScalarRecipe> scalars(const Fp8Device& device) {
  const std::string twice = device.fnuz ? "2 * " : "";
  const auto w13 = [device](const ExpertScalars& scalars, const LayerShape& shape) {
    return device.factors(recode::max_scale(scalars, shape));
  };
  const auto w2 = [device](const ExpertScalars& scalars, const LayerShape&) {
    return device.factors(scalars.w2_scale);
  };
  return {{"w13_scale", twice + "max(w13_scale[e][gate], w13_scale[e][up])", true, w13},
          {"w2_scale", twice + "w2_scale[e]", true, w2},
          input_scale("w13_input_scale", &ExpertScalars::w13_input_scale, device),
          input_scale("w2_input_scale", &ExpertScalars::w2_input_scale, device)};
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const std::int64_t rows = is_ct(options) ? round_up(shape.stride, 128) : shape.intermediate;
  const bool pads = rows != shape.intermediate;
  const Steps half_rows = pads ? Steps{PadHalves{.to = rows}} : Steps{};
  const Steps w2_cols = pads ? Steps{PadCols{.to = rows}} : Steps{};
  const Fp8Device device = fp8_device(options);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13,
             device.codes() + Steps{requantization(shape, options, rows)} + half_rows,
             stepped_over_columns(options, shape.hidden)),
      tensor("w2", Slot::w2, device.codes() + w2_cols, stepped_over_columns(options, rows)),
  };
  add_biases(recipe, shape, {}, half_rows);
  recipe.scalars = scalars(device);
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = rows,
      .hidden = shape.hidden,
      .unread_k = unread_k(options),
      .codes = device.format(),
      .gate_factor = factor("w13_scale"),
      .up_factor = factor("w13_scale"),
      .down_factor = factor("w2_scale"),
  };
  recipe.notes = padding_notes(options);
  if (is_ct(options)) note_misplaced_rows(recipe, shape, rows);
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  if (fp8_device(request.options).fnuz) {
    fail(kName,
         "the quantizers of E4M3FNUZ activations (fnuz=on) were not measured; take fnuz=off");
  }
  return triton::numerics(request, kName, triton::Scales::tensor);
}

}  // namespace

/// Source: sglang layers/quantization/fp8.py Fp8MoEMethod.process_weights_after_loading,
/// sglang@02d5e1b5edc2 compressed_tensors_w8a8_fp8_moe.py process_weights_after_loading; sglang
/// fp8_utils.py normalize_e4m3fn_to_e4m3fnuz
const Backend triton_fp8_tensor{
    .name = kName,
    .family = "Triton",
    .summary = "FP8 weights, gate and up requantized to the larger of their two scales",
    .formats = {"fp8_tensor"},
    .options = {moe_padding_option(),
                fnuz_option(),
                {"requantize",
                 {"per_half", "ct_upstream"},
                 "ct_upstream: halves 128-aligned, but requantized at the unaligned offset"}},
    .rules = {},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = triton::kernel_options(),
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "9 layers on an H200, Triton 3.6, torch 2.11"},
};

}  // namespace moeref::backends
