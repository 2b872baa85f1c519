#include "cli/conform/layout_case.hpp"

#include <algorithm>
#include <utility>

#include "quant/error.hpp"

namespace moeref::conform {

Tensor run_steps(const GoldenCase& golden, std::string_view input, int element_bits,
                 const std::vector<Step>& steps, GateOrder order) {
  return run_steps(golden, golden.input(input), element_bits, steps, order);
}

Tensor run_steps(const GoldenCase& golden, const TensorView& view, int element_bits,
                 const std::vector<Step>& steps, GateOrder order) {
  return run_steps(golden, dense_stack(view, order, element_bits), steps);
}

Tensor run_steps(const GoldenCase& golden, const TensorStack& stack, const std::vector<Step>& steps,
                 const LayerTensors* layer) {
  return run_plan(make_plan(golden.subject(stack.name), stack, steps, layer), stack);
}

Tensor run_plan(const Plan& plan, const TensorStack& stack) {
  Tensor made{stack.name, plan.dtype, plan.shape, {}};
  made.bytes.resize(static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes()));
  apply(plan.map, stack, plan.recoders, made.bytes, 1);
  return made;
}

TensorStack transposed(TensorStack stack) {
  std::swap(stack.half_rows, stack.cols);
  for (Plane& plane : stack.planes) std::swap(plane.row_stride, plane.col_stride);
  return stack;
}

int moved_bits(const TensorView& view) { return std::min(info(view.dtype).bits, 32); }

std::vector<std::int32_t> source_map(const IndexMap& map) {
  std::vector<std::int32_t> sources;
  for (std::int64_t expert = 0; expert < map.experts; ++expert) {
    for (std::int64_t place = 0; place < map.out_elements(); ++place) {
      const Origin origin = map.origin(place);
      const std::int64_t element = (expert * map.in_rows + origin.row) * map.in_cols + origin.col;
      sources.push_back(origin.pad ? -1 : static_cast<std::int32_t>(element));
    }
  }
  return sources;
}

Tensor shaped_as(Tensor tensor, const GoldenCase& golden, std::string_view output) {
  const TensorView* stored = golden.find_output(output);
  if (stored != nullptr && stored->bytes.size() == tensor.bytes.size()) {
    tensor.shape = stored->shape;
  }
  return tensor;
}

namespace {

/// Scales may lie flat, [experts, rows * columns]: then with the rows of their weight.
Shape scale_shape(const GoldenCase& golden, Slot scale) {
  const Slot weight = scale == Slot::w13_scale ? Slot::w13 : Slot::w2;
  const Shape& shape = golden.input(name(scale)).shape;
  const TensorView* codes = golden.find_input(name(weight));
  if (shape.size() != 2 || codes == nullptr || codes->shape.size() != 3) return shape;
  const std::int64_t rows = codes->shape[1];
  if (rows == 0 || shape[1] % rows != 0) return shape;
  return {shape[0], rows, shape[1] / rows};
}

}  // namespace

LayerTensors case_layer(const GoldenCase& golden, GateOrder order, std::string weight_format,
                        int code_bits) {
  LayerTensors layer;
  const bool gated = order != GateOrder::none;
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    const TensorView* view = golden.find_input(name(slot));
    if (view == nullptr) continue;
    const bool codes = slot == Slot::w13 || slot == Slot::w2;
    const bool halved = slot == Slot::w13 || slot == Slot::w13_scale || slot == Slot::w13_bias;
    const bool bias = slot == Slot::w13_bias || slot == Slot::w2_bias;
    TensorView shaped = *view;
    if (bias) shaped.shape.push_back(1);
    if (!codes && !bias) shaped.shape = scale_shape(golden, slot);
    layer.stacks[static_cast<std::size_t>(i)] = dense_stack(
        shaped, halved ? order : GateOrder::none, codes ? code_bits : info(view->dtype).bits);
  }
  const TensorStack& w13 = layer.at(Slot::w13);
  const TensorStack& w2 = layer.at(Slot::w2);
  const auto need_experts = [&](Slot slot, const TensorStack& weight) {
    const TensorStack* stack = layer.find(slot);
    if (stack == nullptr || stack->experts == weight.experts) return;
    fail(golden.subject(stack->name), "has {} experts; its weight has {}", stack->experts,
         weight.experts);
  };
  const auto set_blocks = [&](Slot scale, const TensorStack& weight) {
    auto& stack = layer.stacks[static_cast<std::size_t>(scale)];
    if (!stack) return;
    need_experts(scale, weight);
    if (stack->half_rows < 1 || stack->cols < 1 || stack->half_rows > weight.half_rows ||
        stack->cols > weight.cols) {
      fail(golden.subject(stack->name), "has {} rows and {} columns of scales for {} x {} weights",
           stack->rows(), stack->cols, weight.rows(), weight.cols);
    }
    stack->block_rows = ceil_div(weight.half_rows, stack->half_rows);
    stack->block_cols = ceil_div(weight.cols, stack->cols);
  };
  const auto need_bias = [&](Slot bias, const TensorStack& weight) {
    need_experts(bias, weight);
    const TensorStack* stack = layer.find(bias);
    if (stack == nullptr || stack->rows() == weight.rows()) return;
    fail(golden.subject(stack->name), "has {} rows; its weight has {}", stack->rows(),
         weight.rows());
  };
  need_bias(Slot::w13_bias, w13);
  need_bias(Slot::w2_bias, w2);
  set_blocks(Slot::w13_scale, w13);
  set_blocks(Slot::w2_scale, w2);
  LayerShape& shape = layer.shape;
  shape.model = golden.path.filename().string();
  shape.weight_format = std::move(weight_format);
  shape.experts = shape.total_experts = w13.experts;
  shape.hidden = w13.cols;
  shape.intermediate = shape.stride = shape.full_intermediate = w13.half_rows;
  shape.gated = gated;
  shape.bias = layer.find(Slot::w13_bias) != nullptr;
  if (w2.rows() != shape.hidden || w2.cols != shape.intermediate || w2.experts != w13.experts) {
    fail(golden.subject("in.w2"), "is [{}, {}, {}]; w13 needs [{}, {}, {}]", w2.experts, w2.rows(),
         w2.cols, w13.experts, shape.hidden, shape.intermediate);
  }
  return layer;
}

LayerTensors with_unit_factors(LayerTensors layer) {
  const auto experts = static_cast<std::size_t>(layer.shape.experts);
  const std::size_t matrices = experts * static_cast<std::size_t>(layer.shape.halves());
  layer.scalars = {.w13_scale = std::vector<float>(matrices, 1.0f),
                   .w2_scale = std::vector<float>(experts, 1.0f),
                   .w13_input_scale = std::vector<float>(matrices, 1.0f),
                   .w2_input_scale = std::vector<float>(experts, 1.0f),
                   .alpha = std::vector<float>(experts, 1.0f),
                   .beta = std::vector<float>(experts, 0.0f),
                   .limit = std::vector<float>(experts, kNoLimit)};
  return layer;
}

ComputedOutputs run_backend(std::string_view backend, std::span<const std::string> options,
                            LayerTensors layer) {
  const Backend& found = find_backend(backend);
  const PreparedLayer prepared =
      plan_tensors(found, parse_options(found, options), std::move(layer));
  ComputedOutputs outputs;
  for (const PreparedTensor& tensor : prepared.tensors) {
    outputs.emplace(tensor.name, make(tensor, 1));
  }
  return outputs;
}

bool flag_param(const GoldenCase& golden, std::string_view name, bool fallback) {
  const auto found = golden.params.find(name);
  if (found == golden.params.end()) return fallback;
  if (!found->is_boolean()) fail(golden.path.string(), "params.{} must be true or false", name);
  return found->get<bool>();
}

std::int64_t integer_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback) {
  return golden.params.contains(name) ? golden.integer_param(name) : fallback;
}

}  // namespace moeref::conform
