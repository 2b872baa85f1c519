#include "cli/layout_formats.hpp"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

/// The matrices of one projection pair: w13 or w2.
struct Matrix {
  std::string_view name;
  int halves;
  std::int64_t half_rows;
  std::int64_t cols;
};

TensorStack empty_stack(std::string name, Format format, std::int64_t experts,
                        const Matrix& matrix) {
  TensorStack stack;
  stack.name = std::move(name);
  stack.dtype = stored_dtype(format);
  stack.element_bits = format == Format::e2m1 ? 4 : info(stack.dtype).bits;
  stack.experts = experts;
  stack.halves = matrix.halves;
  stack.half_rows = matrix.half_rows;
  stack.cols = matrix.cols;
  stack.planes.assign(static_cast<std::size_t>(experts * matrix.halves),
                      Plane{nullptr, 0, matrix.cols, 1});
  return stack;
}

TensorStack empty_scales(const WeightForm& form, std::int64_t experts, const Matrix& matrix) {
  TensorStack stack =
      empty_stack(fmt::format("{}_scale", matrix.name), form.scales, experts,
                  {matrix.name, matrix.halves, block_count(matrix.half_rows, form.block_rows),
                   block_count(matrix.cols, form.block_cols)});
  stack.block_rows = form.block_rows;
  stack.block_cols = form.block_cols;
  return stack;
}

}  // namespace

std::int64_t block_count(std::int64_t weight_size, std::int64_t block) {
  return block == kWholeAxis ? 1 : ceil_div(weight_size, block);
}

LayerTensors empty_layer(const LayerShape& shape) {
  const WeightForm& form = find_weight_form(shape.model, shape.weight_format);
  LayerTensors layer;
  layer.shape = shape;
  const auto put = [&layer](Slot slot, TensorStack stack) {
    layer.stacks[static_cast<std::size_t>(slot)] = std::move(stack);
  };
  const Matrix w13{"w13", shape.halves(), shape.intermediate, shape.hidden};
  const Matrix w2{"w2", 1, shape.hidden, shape.intermediate};
  const auto add = [&](const Matrix& matrix, Slot codes, Slot scales, Slot bias) {
    put(codes, empty_stack(std::string(matrix.name), form.codes, shape.experts, matrix));
    if (form.has_scales) put(scales, empty_scales(form, shape.experts, matrix));
    if (shape.bias) {
      put(bias, empty_stack(fmt::format("{}_bias", matrix.name), Format::bf16, shape.experts,
                            {matrix.name, matrix.halves, matrix.half_rows, 1}));
    }
  };
  add(w13, Slot::w13, Slot::w13_scale, Slot::w13_bias);
  add(w2, Slot::w2, Slot::w2_scale, Slot::w2_bias);
  describe_scales(layer);
  return layer;
}

}  // namespace moeref::cli
