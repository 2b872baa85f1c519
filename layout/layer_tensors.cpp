#include "layout/layer_tensors.hpp"

#include <algorithm>
#include <span>

#include "layout/weight_form.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

constexpr std::array<std::string_view, kSlotCount> kSlotNames{"w13", "w13_scale", "w13_bias",
                                                              "w2",  "w2_scale",  "w2_bias"};

using Parts = std::vector<ExpertPart>;

/// Block scales; an axis without a stride has one scale for all of it.
TensorStack block_scales(const MoeLayer& layer, const Parts& halves) {
  TensorStack stack = scale_stack(layer, halves);
  const ScaledMatrix& first = layer.experts.front().*halves.front();
  const ScaleGrid& grid = *first.scales;
  if (rows_share_scales(first)) stack.block_rows = kWholeAxis;
  if (grid.col_stride == 0) stack.block_cols = kWholeAxis;
  return stack;
}

/// A bias as a column: [rows, 1].
TensorStack bias_stack(const MoeLayer& layer, const Parts& halves) {
  TensorStack stack = code_stack(layer, halves);
  stack.half_rows = stack.cols;
  stack.cols = 1;
  for (Plane& plane : stack.planes) plane = {plane.data, plane.origin, plane.col_stride, 1};
  return stack;
}

/// The bias of a tensor-parallel rank that must not add it again: zeros.
TensorStack zero_bias(const MoeLayer& layer, const MoeLayer& whole) {
  static constexpr std::array<std::byte, 8> kZero{};
  TensorStack stack = bias_stack(whole, {&Expert::down_bias});
  stack.experts = layer.local_experts();
  stack.planes.assign(static_cast<std::size_t>(stack.experts), {kZero.data(), 0, 0, 1});
  return stack;
}

/// Null: no weight format.
const WeightForm* form_of(std::string_view name) {
  const std::span<const WeightForm> forms = weight_forms();
  const auto found = std::find_if(forms.begin(), forms.end(),
                                  [name](const WeightForm& form) { return form.name == name; });
  return found == forms.end() ? nullptr : &*found;
}

bool has_tensor_scale(std::string_view weight_format) {
  const WeightForm* form = form_of(weight_format);
  return form != nullptr && form->block_rows == kWholeAxis;
}

/// The factor of a whole matrix, as one that multiplies.
float factor_of(const ScaledMatrix& matrix, bool tensor_scale) {
  if (tensor_scale) {
    ScaledMatrix any = matrix;  // a rank's part may be empty
    any.rows = any.cols = 1;
    return scale_at(any, 0, 0);
  }
  return matrix.global_rule == GlobalScaleRule::divide ? 1.0f / matrix.global_scale
                                                       : matrix.global_scale;
}

bool has_factor(const ScaledMatrix& matrix, bool tensor_scale) {
  return (tensor_scale && matrix.scales) || matrix.global_rule != GlobalScaleRule::none;
}

void add_factors(ExpertScalars& scalars, const MoeLayer& layer, const Parts& w13) {
  const bool tensor_scale = has_tensor_scale(layer.weight_format);
  for (const Expert& expert : layer.experts) {
    for (const ExpertPart part : w13) {
      if (has_factor(expert.*part, tensor_scale)) {
        scalars.w13_scale.push_back(factor_of(expert.*part, tensor_scale));
      }
    }
    if (has_factor(expert.down, tensor_scale)) {
      scalars.w2_scale.push_back(factor_of(expert.down, tensor_scale));
    }
  }
}

void add_input_scales(ExpertScalars& scalars, const MoeLayer& whole) {
  // compressed-tensors stores the scale that activations are multiplied by.
  const bool divides =
      !whole.experts.empty() && whole.experts.front().down.global_rule == GlobalScaleRule::divide;
  const auto scale = [divides](float stored) { return divides ? 1.0f / stored : stored; };
  for (const Expert& expert : whole.experts) {
    if (expert.gate_input_scale) scalars.w13_input_scale.push_back(scale(*expert.gate_input_scale));
    if (expert.up_input_scale) scalars.w13_input_scale.push_back(scale(*expert.up_input_scale));
    if (expert.down_input_scale) scalars.w2_input_scale.push_back(scale(*expert.down_input_scale));
  }
}

/// Factors are stored for all matrices of a kind or for none.
void check_count(const std::vector<float>& factors, std::int64_t matrices, const MoeLayer& layer,
                 std::string_view what) {
  const auto count = static_cast<std::int64_t>(factors.size());
  if (count == 0 || count == matrices) return;
  fail(layer.model_type, "layer {} has {} for {} of {} matrices; every expert needs it",
       layer.layer, what, count, matrices);
}

std::vector<float> per_expert(const std::vector<float>& values, float all, std::int64_t experts) {
  return values.empty() ? std::vector<float>(static_cast<std::size_t>(experts), all) : values;
}

}  // namespace

std::string_view name(Slot slot) { return kSlotNames[static_cast<std::size_t>(slot)]; }

bool has_global_scales(std::string_view weight_format) {
  const WeightForm* form = form_of(weight_format);
  return form != nullptr && (form->has_globals || has_tensor_scale(weight_format));
}

const TensorStack& LayerTensors::at(Slot slot) const {
  const TensorStack* stack = find(slot);
  if (stack == nullptr) {
    fail(shape.model, "has no {}; its weights are {}", name(slot), shape.weight_format);
  }
  return *stack;
}

void describe_scales(LayerTensors& tensors) {
  const TensorStack* scales = tensors.find(Slot::w13_scale);
  if (scales == nullptr) return;
  tensors.shape.block_rows = scales->block_rows;
  tensors.shape.block_cols = scales->block_cols;
  tensors.shape.scale_dtype = scales->dtype;
}

LayerTensors layer_tensors(const MoeLayer& layer, const MoeLayer& whole) {
  LayerTensors tensors;
  const Parts w13 = layer.gated() ? Parts{&Expert::gate, &Expert::up} : Parts{&Expert::up};
  const Parts w13_bias =
      layer.gated() ? Parts{&Expert::gate_bias, &Expert::up_bias} : Parts{&Expert::up_bias};
  const Parts w2{&Expert::down};
  const Parts w2_bias{&Expert::down_bias};
  const Expert& first = layer.experts.front();
  const auto put = [&tensors](Slot slot, TensorStack stack) {
    tensors.stacks[static_cast<std::size_t>(slot)] = std::move(stack);
  };
  put(Slot::w13, code_stack(layer, w13));
  put(Slot::w2, code_stack(layer, w2));
  if (first.up.scales) put(Slot::w13_scale, block_scales(layer, w13));
  if (first.down.scales) put(Slot::w2_scale, block_scales(layer, w2));
  if (first.up_bias) put(Slot::w13_bias, bias_stack(layer, w13_bias));
  if (first.down_bias) {
    put(Slot::w2_bias, bias_stack(layer, w2_bias));
  } else if (whole.experts.front().down_bias) {
    put(Slot::w2_bias, zero_bias(layer, whole));
  }

  LayerShape& shape = tensors.shape;
  shape.model = layer.model_type;
  shape.weight_format = layer.weight_format;
  shape.experts = layer.local_experts();
  shape.total_experts = layer.expert_count();
  shape.first_expert = layer.first_expert;
  shape.hidden = layer.expert_width();
  shape.intermediate = layer.intermediate;
  shape.stride = layer.intermediate;
  shape.full_intermediate = whole.intermediate;
  shape.gated = layer.gated();
  shape.bias = static_cast<bool>(whole.experts.front().up_bias);

  describe_scales(tensors);

  ExpertScalars& scalars = tensors.scalars;
  add_factors(scalars, layer, w13);
  add_input_scales(scalars, whole);
  const std::int64_t halves = shape.halves();
  check_count(scalars.w13_scale, shape.experts * halves, layer, "a w13 weight scale");
  check_count(scalars.w2_scale, shape.experts, layer, "a w2 weight scale");
  check_count(scalars.w13_input_scale, whole.local_experts() * halves, whole,
              "a w13 activation scale");
  check_count(scalars.w2_input_scale, whole.local_experts(), whole, "a w2 activation scale");
  const Activation& activation = layer.activation;
  scalars.alpha = per_expert(activation.alphas, activation.alpha, shape.experts);
  scalars.beta = per_expert(activation.betas, activation.beta, shape.experts);
  scalars.limit = per_expert(activation.limits, activation.limit, shape.experts);
  return tensors;
}

}  // namespace moeref
