#include "cli/logical_weights.hpp"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

using Sink = std::function<void(std::span<const std::byte>)>;

DType stored_dtype(Format format) {
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
      return DType::f8_e4m3;
    case Format::e4m3fnuz:
      return DType::f8_e4m3fnuz;
    case Format::e5m2:
      return DType::f8_e5m2;
    case Format::e5m2fnuz:
      return DType::f8_e5m2fnuz;
    case Format::e8m0:
      return DType::f8_e8m0;
    case Format::e2m1:
      return DType::u8;
    case Format::bf16:
      return DType::bf16;
    case Format::f16:
      return DType::f16;
    case Format::f32:
      return DType::f32;
    case Format::f64:
      return DType::f64;
  }
  return DType::u8;
}

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

}  // namespace

void add_logical_weights(CaseWriter& writer, const MoeLayer& layer) {
  // The stacks hold pointers: they must outlive `write`, so the writer keeps a copy of the layer's
  // views.
  const auto kept = std::make_shared<const MoeLayer>(layer);
  std::vector<const Expert*> experts;
  for (const Expert& expert : kept->experts) experts.push_back(&expert);
  writer.keep(kept);
  add_experts(writer, "weights.", experts);
  if (kept->shared) add_experts(writer, "weights.shared_", {&*kept->shared});
}

}  // namespace moeref::cli
