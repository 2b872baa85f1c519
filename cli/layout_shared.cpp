#include "cli/logical_weights.hpp"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/layout_formats.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

using Sink = std::function<void(std::span<const std::byte>)>;

bool is_packed(const ScaledMatrix& matrix) { return matrix.codes.format == Format::e2m1; }

std::int64_t stored_cols(const ScaledMatrix& matrix) {
  return is_packed(matrix) ? (matrix.cols + 1) / 2 : matrix.cols;
}

/// Codes row by row, packed without gaps.
void put_codes(const ScaledMatrix& matrix, const Sink& sink) {
  const std::int64_t width = info(stored_dtype(matrix.codes.format)).bits / 8;
  std::vector<std::byte> row(static_cast<std::size_t>(stored_cols(matrix) * width));
  for (std::int64_t r = 0; r < matrix.rows; ++r) {
    std::fill(row.begin(), row.end(), std::byte{0});
    for (std::int64_t c = 0; c < matrix.cols; ++c) {
      const std::uint32_t code = code_at(matrix, r, c);
      if (is_packed(matrix)) {
        row[static_cast<std::size_t>(c / 2)] |= static_cast<std::byte>(code << (4 * (c % 2)));
      } else {
        std::memcpy(row.data() + c * width, &code, static_cast<std::size_t>(width));
      }
    }
    sink(row);
  }
}

/// Blocks that the matrix touches, counted over rows and columns.
struct BlockRange {
  std::int64_t row_begin, row_end, col_begin, col_end;
};

BlockRange blocks_of(const ScaledMatrix& matrix) {
  const ScaleGrid& grid = *matrix.scales;
  return {
      grid.row_begin / grid.block_rows, (grid.row_begin + matrix.rows - 1) / grid.block_rows + 1,
      grid.col_begin / grid.block_cols, (grid.col_begin + matrix.cols - 1) / grid.block_cols + 1};
}

void put_scales(const ScaledMatrix& matrix, const Sink& sink) {
  const ScaleGrid& grid = *matrix.scales;
  const BlockRange blocks = blocks_of(matrix);
  const std::int64_t width = info(grid.format).bits / 8;
  for (std::int64_t r = blocks.row_begin; r < blocks.row_end; ++r) {
    for (std::int64_t c = blocks.col_begin; c < blocks.col_end; ++c) {
      const std::byte* scale = grid.data + (r * grid.row_stride + c * grid.col_stride) * width;
      sink({scale, static_cast<std::size_t>(width)});
    }
  }
}

/// The matrices that make up one tensor: halves[expert] are stacked by rows.
using Stack = std::vector<std::vector<const ScaledMatrix*>>;

void check_alike(const Stack& stack, const std::string& name) {
  const ScaledMatrix& first = *stack.front().front();
  for (const auto& halves : stack) {
    for (const ScaledMatrix* matrix : halves) {
      const bool same_scales = matrix->scales.has_value() == first.scales.has_value() &&
                               (!first.scales || matrix->scales->format == first.scales->format);
      if (matrix->codes.format != first.codes.format || !same_scales ||
          matrix->global_rule != first.global_rule) {
        fail(matrix->name,
             "is stored in another format than {}; {} cannot hold both: leave --weights out",
             first.name, name);
      }
    }
  }
}

void add_stack(CaseWriter& writer, const std::string& name, const Stack& stack) {
  check_alike(stack, name);
  const ScaledMatrix& first = *stack.front().front();
  const auto experts = static_cast<std::int64_t>(stack.size());
  std::int64_t rows = 0;
  std::int64_t scale_rows = 0;
  for (const ScaledMatrix* half : stack.front()) {
    rows += half->rows;
    if (half->scales) scale_rows += blocks_of(*half).row_end - blocks_of(*half).row_begin;
  }
  const auto for_each = [stack](const std::function<void(const ScaledMatrix&)>& visit) {
    for (const auto& halves : stack) {
      for (const ScaledMatrix* half : halves) visit(*half);
    }
  };
  writer.add({name, stored_dtype(first.codes.format), {experts, rows, stored_cols(first)}},
             [for_each](const Sink& sink) {
               for_each([&sink](const ScaledMatrix& matrix) { put_codes(matrix, sink); });
             });
  if (first.scales) {
    const BlockRange blocks = blocks_of(first);
    writer.add({name + "_scale",
                stored_dtype(first.scales->format),
                {experts, scale_rows, blocks.col_end - blocks.col_begin}},
               [for_each](const Sink& sink) {
                 for_each([&sink](const ScaledMatrix& matrix) { put_scales(matrix, sink); });
               });
  }
  if (first.global_rule != GlobalScaleRule::none) {
    const bool divides = first.global_rule == GlobalScaleRule::divide;
    writer.add({name + (divides ? "_global_scale" : "_scale_2"),
                DType::f32,
                {experts, static_cast<std::int64_t>(stack.front().size())}},
               [for_each](const Sink& sink) {
                 for_each([&sink](const ScaledMatrix& matrix) {
                   sink(std::as_bytes(std::span(&matrix.global_scale, 1)));
                 });
               });
  }
}

void add_biases(CaseWriter& writer, const std::string& name, const Stack& stack) {
  std::int64_t width = 0;
  for (const ScaledMatrix* half : stack.front()) {
    if (!*half) return;
    width += half->cols;
  }
  check_alike(stack, name);
  writer.add({name,
              stored_dtype(stack.front().front()->codes.format),
              {static_cast<std::int64_t>(stack.size()), width}},
             [stack](const Sink& sink) {
               for (const auto& halves : stack) {
                 for (const ScaledMatrix* half : halves) put_codes(*half, sink);
               }
             });
}

void add_experts(CaseWriter& writer, const std::string& prefix,
                 const std::vector<const Expert*>& experts) {
  Stack w13;
  Stack w2;
  Stack w13_bias;
  Stack w2_bias;
  for (const Expert* expert : experts) {
    if (expert->gate) {
      w13.push_back({&expert->gate, &expert->up});
      w13_bias.push_back({&expert->gate_bias, &expert->up_bias});
    } else {
      w13.push_back({&expert->up});
      w13_bias.push_back({&expert->up_bias});
    }
    w2.push_back({&expert->down});
    w2_bias.push_back({&expert->down_bias});
  }
  add_stack(writer, prefix + "w13", w13);
  add_stack(writer, prefix + "w2", w2);
  add_biases(writer, prefix + "w13_bias", w13_bias);
  add_biases(writer, prefix + "w2_bias", w2_bias);
}

/// Owns the floats of one tensor until the file is written.
void add_floats(CaseWriter& writer, std::string name, Shape shape,
                const std::vector<float>& values) {
  const auto kept = std::make_shared<const std::vector<float>>(values);
  writer.add({std::move(name), DType::f32, std::move(shape)},
             [kept](const auto& sink) { sink(std::as_bytes(std::span(*kept))); });
}

std::int64_t size_of(const std::vector<float>& values) {
  return static_cast<std::int64_t>(values.size());
}

bool is_default(const ExpertScalars& scalars) {
  const auto all = [](const std::vector<float>& values, float value) {
    return std::all_of(values.begin(), values.end(), [value](float v) { return v == value; });
  };
  return all(scalars.alpha, 1.0f) && all(scalars.beta, 0.0f) && all(scalars.limit, kNoLimit);
}

}  // namespace

void add_shared_weights(CaseWriter& writer, const MoeLayer& layer, const std::string& prefix) {
  if (!layer.shared) return;
  // The stacks hold pointers: they must outlive `write`, so the writer keeps a copy of the layer's
  // views.
  const auto kept = std::make_shared<const MoeLayer>(layer);
  writer.keep(kept);
  add_experts(writer, prefix, {&*kept->shared});
}

void for_each_logical_scalar(const LayerTensors& layer,
                             const std::function<void(const std::string& tensor, const Shape& shape,
                                                      const std::vector<float>& values)>& visit) {
  const ExpertScalars& scalars = layer.scalars;
  const LayerShape& shape = layer.shape;
  const WeightForm& form = find_weight_form(shape.model, shape.weight_format);
  const std::string end = form.has_globals ? "_scale_2" : "_scale";
  if (!scalars.w13_scale.empty() && (form.has_globals || !has_block_scales(form))) {
    visit("w13" + end, {shape.experts, shape.halves()}, scalars.w13_scale);
    visit("w2" + end, {shape.experts}, scalars.w2_scale);
  }
  visit("w13_input_scale", {shape.total_experts, shape.halves()}, scalars.w13_input_scale);
  visit("w2_input_scale", {shape.total_experts}, scalars.w2_input_scale);
  visit("swiglu_alpha", {size_of(scalars.alpha)}, scalars.alpha);
  visit("swiglu_beta", {size_of(scalars.beta)}, scalars.beta);
  visit("swiglu_limit", {size_of(scalars.limit)}, scalars.limit);
}

void add_logical_scalars(CaseWriter& writer, const LayerTensors& layer) {
  const bool plain = is_default(layer.scalars);
  for_each_logical_scalar(
      layer, [&](const std::string& tensor, const Shape& shape, const std::vector<float>& values) {
        if (values.empty() || (plain && tensor.starts_with("swiglu_"))) return;
        add_floats(writer, tensor, shape, values);
      });
}

}  // namespace moeref::cli
