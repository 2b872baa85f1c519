#include "layout/tensor_stack.hpp"

#include <algorithm>
#include <cstring>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

std::uint32_t nibble(const std::byte* data, std::int64_t index) {
  return std::to_integer<std::uint32_t>(data[index / 2]) >> (4 * (index % 2)) & 15u;
}

/// What the planes of a stack must share.
template <typename Same>
void check_alike(const MoeLayer& layer, std::span<const ExpertPart> halves, Same same) {
  const ScaledMatrix& first = layer.experts.front().*halves.front();
  for (const Expert& expert : layer.experts) {
    for (const ExpertPart part : halves) {
      const ScaledMatrix& matrix = expert.*part;
      if (!same(first, matrix)) {
        fail(matrix.name, "is stored in another form than {}; a backend takes one form for all",
             first.name);
      }
    }
  }
}

bool same_codes(const ScaledMatrix& left, const ScaledMatrix& right) {
  return left.codes.format == right.codes.format && left.codes.nibbles == right.codes.nibbles &&
         left.rows == right.rows && left.cols == right.cols;
}

bool same_scales(const ScaledMatrix& left, const ScaledMatrix& right) {
  return left.scales.has_value() == right.scales.has_value() &&
         (!left.scales || (left.scales->format == right.scales->format &&
                           left.scales->block_rows == right.scales->block_rows &&
                           left.scales->block_cols == right.scales->block_cols));
}

}  // namespace

const std::byte* TensorStack::contiguous(std::int64_t expert, std::int64_t row,
                                         std::int64_t col) const {
  const Plane& from = plane(expert, row);
  const std::int64_t bit =
      (from.origin + row % half_rows * from.row_stride + col * from.col_stride) * element_bits;
  return from.col_stride == 1 && bit % 8 == 0 ? from.data + bit / 8 : nullptr;
}

void TensorStack::read(std::int64_t expert, std::int64_t row, std::int64_t col, std::int64_t count,
                       std::byte* to) const {
  if (count == 0) return;
  if (const std::byte* side_by_side = contiguous(expert, row, col)) {
    std::memcpy(to, side_by_side, static_cast<std::size_t>(count * element_bits / 8));
    return;
  }
  const Plane& from = plane(expert, row);
  const std::int64_t first = from.origin + row % half_rows * from.row_stride;
  if (element_bits == 4) {
    for (std::int64_t c = 0; c < count; c += 2) {
      const std::uint32_t low = nibble(from.data, first + (col + c) * from.col_stride);
      const std::uint32_t high = nibble(from.data, first + (col + c + 1) * from.col_stride);
      to[c / 2] = static_cast<std::byte>(low | high << 4);
    }
    return;
  }
  const std::int64_t width = element_bits / 8;
  for (std::int64_t c = 0; c < count; ++c) {
    std::memcpy(to + c * width, from.data + (first + (col + c) * from.col_stride) * width,
                static_cast<std::size_t>(width));
  }
}

TensorStack dense_stack(const TensorView& tensor, GateOrder order, int element_bits) {
  Shape shape = tensor.shape;
  if (shape.size() == 2) shape.insert(shape.begin(), 1);
  if (shape.size() == 1) shape = {1, shape[0], 1};
  if (shape.size() != 3) {
    fail(tensor.name, "has shape {}; needed is [experts, rows, columns]", to_string(tensor.shape));
  }
  const int stored_bits = info(tensor.dtype).bits;
  TensorStack stack;
  stack.name = tensor.name;
  stack.dtype = tensor.dtype;
  stack.element_bits = element_bits;
  stack.experts = shape[0];
  stack.cols = shape[2] * stored_bits / element_bits;
  const bool halved = order != GateOrder::separate && order != GateOrder::none;
  if (halved && shape[1] % 2 != 0) {
    fail(tensor.name, "has {} rows; gate and up need an even number", shape[1]);
  }
  stack.halves = halved ? 2 : 1;
  stack.half_rows = shape[1] / stack.halves;
  for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
    const std::int64_t begin = expert * shape[1] * stack.cols;
    for (int half = 0; half < stack.halves; ++half) {
      Plane plane{tensor.bytes.data(), begin, stack.cols, 1};
      if (order == GateOrder::interleaved) {
        plane.origin += half * stack.cols;
        plane.row_stride = 2 * stack.cols;
      } else {
        const int position = order == GateOrder::up_gate ? 1 - half : half;
        plane.origin += position * stack.half_rows * stack.cols;
      }
      stack.planes.push_back(plane);
    }
  }
  return stack;
}

TensorStack code_stack(const MoeLayer& layer, std::span<const ExpertPart> halves) {
  check_alike(layer, halves, same_codes);
  const ScaledMatrix& first = layer.experts.front().*halves.front();
  if (first.codes.nibbles != NibbleOrder::low_first) {
    fail(first.name, "has the even FP4 code in the high nibble; backends want it in the low one");
  }
  TensorStack stack;
  stack.name = first.name;
  stack.dtype = stored_dtype(first.codes.format);
  stack.element_bits = info(first.codes.format).bits;
  stack.experts = layer.local_experts();
  stack.halves = static_cast<int>(halves.size());
  stack.half_rows = first.rows;
  stack.cols = first.cols;
  for (const Expert& expert : layer.experts) {
    for (const ExpertPart part : halves) {
      const CodeGrid& codes = (expert.*part).codes;
      stack.planes.push_back({codes.data, codes.origin, codes.row_stride, codes.col_stride});
    }
  }
  return stack;
}

bool rows_share_scales(const ScaledMatrix& matrix) {
  const ScaleGrid& grid = *matrix.scales;
  return grid.row_stride == 0 && (matrix.cols > 0 || grid.block_rows >= matrix.rows);
}

TensorStack scale_stack(const MoeLayer& layer, std::span<const ExpertPart> halves) {
  check_alike(layer, halves, same_scales);
  const ScaledMatrix& first = layer.experts.front().*halves.front();
  const ScaleGrid& grid = *first.scales;
  // One scale for all rows or columns: the block is as large as the matrix.
  const bool one_row = rows_share_scales(first);
  const bool one_col = grid.col_stride == 0;
  const std::int64_t block_rows = one_row ? std::max<std::int64_t>(first.rows, 1) : grid.block_rows;
  const std::int64_t block_cols = one_col ? std::max<std::int64_t>(first.cols, 1) : grid.block_cols;
  TensorStack stack;
  stack.name = first.name + " (scales)";
  stack.dtype = stored_dtype(grid.format);
  stack.element_bits = info(grid.format).bits;
  stack.experts = layer.local_experts();
  stack.halves = static_cast<int>(halves.size());
  stack.half_rows = one_row ? 1 : ceil_div(first.rows, block_rows);
  stack.cols = one_col ? 1 : ceil_div(first.cols, block_cols);
  stack.block_rows = block_rows;
  stack.block_cols = block_cols;
  for (const Expert& expert : layer.experts) {
    for (const ExpertPart part : halves) {
      const ScaledMatrix& matrix = expert.*part;
      const ScaleGrid& scales = *matrix.scales;
      // A rank past the end has nothing to cut.
      const bool cuts_rows = !one_row && matrix.rows > 0 && scales.row_begin % block_rows != 0;
      const bool cuts_cols = !one_col && matrix.cols > 0 && scales.col_begin % block_cols != 0;
      if (cuts_rows || cuts_cols) {
        fail(matrix.name,
             "the shard begins at row {}, column {}, inside a {} x {} scale block; choose --tp so "
             "that it begins at a block",
             scales.row_begin, scales.col_begin, scales.block_rows, scales.block_cols);
      }
      stack.planes.push_back({scales.data,
                              scales.row_begin / scales.block_rows * scales.row_stride +
                                  scales.col_begin / scales.block_cols * scales.col_stride,
                              scales.row_stride, scales.col_stride});
    }
  }
  return stack;
}

}  // namespace moeref
