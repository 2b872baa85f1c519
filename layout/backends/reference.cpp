#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/weight_form.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::backends {
namespace {

Format scale_format(const LayerShape& shape) {
  if (const std::optional<Format> format = float_format(shape.scale_dtype)) return *format;
  switch (shape.scale_dtype) {
    case DType::f8_e4m3:
      return Format::e4m3;
    case DType::u8:
    case DType::i8:
    case DType::f8_e8m0:
      return has_global_scales(shape.weight_format) ? Format::e4m3 : Format::e8m0;
    default:
      fail(shape.model, "has {} block scales, which no weight format has", name(shape.scale_dtype));
  }
}

std::vector<ScalarRecipe> stored_scalars(const LayerShape& shape, const WeightForm& form) {
  using Stored = std::vector<float> ExpertScalars::*;
  const auto stored = [](std::string name, Stored values, std::string formula, std::int64_t each,
                         bool of_all_experts) {
    return ScalarRecipe{
        .name = std::move(name),
        .formula = std::move(formula),
        .values = [values](const ExpertScalars& scalars,
                           const LayerShape&) { return scalars.*values; },
        .each = each,
        .of_all_experts = of_all_experts,
    };
  };
  const std::int64_t halves = shape.halves();
  std::vector<ScalarRecipe> scalars;
  if (has_global_scales(form.name)) {
    const std::string end = has_block_scales(form) ? "_scale_2" : "_scale";
    scalars.push_back(
        stored("w13" + end, &ExpertScalars::w13_scale, "as stored [e][gate, up]", halves, false));
    scalars.push_back(stored("w2" + end, &ExpertScalars::w2_scale, "as stored [e]", 1, false));
  }
  scalars.push_back(stored("w13_input_scale", &ExpertScalars::w13_input_scale,
                           "as stored, all experts [e][gate, up]", halves, true));
  scalars.push_back(stored("w2_input_scale", &ExpertScalars::w2_input_scale,
                           "as stored, all experts [e]", 1, true));
  for (ScalarRecipe& array : swiglu_arrays()) scalars.push_back(std::move(array));
  return scalars;
}

KernelReading reading(const LayerShape& shape, const WeightForm& form) {
  KernelReading kernel;
  kernel.order = gate_first(shape);
  read_swiglu(kernel, shape);
  kernel.intermediate = shape.intermediate;
  kernel.hidden = shape.hidden;
  kernel.codes = form.codes;
  if (has_block_scales(form)) {
    kernel.block_rows = shape.block_rows;
    kernel.block_cols = shape.block_cols;
    kernel.w13_scale = kernel.w2_scale = decode_as(scale_format(shape));
  }
  if (has_global_scales(form.name)) {
    const std::string end = has_block_scales(form) ? "_scale_2" : "_scale";
    const std::int64_t halves = shape.halves();
    kernel.gate_factor = factor("w13" + end, halves, 0);
    kernel.up_factor = factor("w13" + end, halves, halves - 1);
    kernel.down_factor = factor("w2" + end, 1, 0);
  }
  return kernel;
}

std::vector<std::string_view> every_format() {
  std::vector<std::string_view> names;
  for (const WeightForm& form : weight_forms()) names.push_back(form.name);
  return names;
}

Recipe recipe(const LayerShape& shape, const Options&) {
  const WeightForm& form = find_weight_form(shape.model, shape.weight_format);
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, {}, {}), tensor("w2", Slot::w2, {}, {})};
  if (has_block_scales(form)) {
    recipe.tensors.push_back(tensor("w13_scale", Slot::w13_scale, {}, {}));
    recipe.tensors.push_back(tensor("w2_scale", Slot::w2_scale, {}, {}));
  }
  add_biases(recipe, shape);
  recipe.scalars = stored_scalars(shape, form);
  recipe.kernel = reading(shape, form);
  if (form.globals == GlobalScaleRule::divide) {
    recipe.notes.emplace_back("global scales divide in the file; passed are their f32 reciprocals");
  }
  return recipe;
}

}  // namespace

const Backend reference{
    .name = "reference",
    .family = "plain",
    .summary = "the logical weights as they are: gate rows, then up rows",
    .formats = every_format(),
    .options = {},
    .rules = {},
    .loader = nullptr,
    .recipe = recipe,
    .numerics =
        [](const NumericsRequest&) {
          Numerics numerics;
          numerics.combine.joins_shared = true;
          return numerics;
        },
    .replay = {ReplayEvidence::none, "the exact answer, no kernel's", "every stage once"},
};

}  // namespace moeref::backends
