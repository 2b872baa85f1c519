#include "cli/layout_formats.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "io/quantization_config.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

constexpr std::array<WeightForm, 10> kForms{{
    {weight_formats::kMxfp4, Format::e2m1, true, Format::e8m0, 1, 32, false},
    {weight_formats::kNvfp4, Format::e2m1, true, Format::ue4m3, 1, 16, true},
    {weight_formats::kNvfp4Ct, Format::e2m1, true, Format::ue4m3, 1, 16, true},
    {weight_formats::kFp8Tensor, Format::e4m3, true, Format::f32, kWholeAxis, kWholeAxis, false},
    {weight_formats::kFp8Channel, Format::e4m3, true, Format::f32, 1, kWholeAxis, false},
    {weight_formats::kFp8Block, Format::e4m3, true, Format::f32, 128, 128, false},
    {weight_formats::kMxfp8, Format::e4m3, true, Format::e8m0, 1, 32, false},
    {weight_formats::kBf16, Format::bf16},
    {weight_formats::kF16, Format::f16},
    {weight_formats::kF32, Format::f32},
}};

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

bool has_block_scales(const WeightForm& form) {
  return form.has_scales && form.block_rows != kWholeAxis;
}

const WeightForm& find_weight_form(std::string_view subject, std::string_view name) {
  std::string known;
  for (const WeightForm& form : kForms) {
    if (form.name == name) return form;
    known += (known.empty() ? "" : ", ") + std::string(form.name);
  }
  fail(subject, "'{}' is no weight format; known: {}", name, known);
}

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
