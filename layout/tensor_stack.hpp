#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "quant/moe_layer.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// One matrix of one expert inside a file: element (row, col) is number `origin + row * row_stride
/// + col * col_stride` of the buffer, in elements.
struct Plane {
  const std::byte* data = nullptr;
  std::int64_t origin = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
};

/// The same logical matrix of every local expert, as it lies in a file: what a layout reads. Rows
/// of `halves` planes follow each other: gate, then up (one plane if not gated), wherever the file
/// has them. A view.
struct TensorStack {
  std::string name;
  DType dtype = DType::u8;
  int element_bits = 8;  ///< 4: two codes a byte, the even one low
  std::int64_t experts = 0;
  int halves = 1;
  std::int64_t half_rows = 0;
  std::int64_t cols = 0;
  std::int64_t block_rows = 1;  ///< weight rows that one row of this tensor stands for (scales)
  std::int64_t block_cols = 1;
  std::vector<Plane> planes;  ///< [experts * halves]

  std::int64_t rows() const { return halves * half_rows; }
  const Plane& plane(std::int64_t expert, std::int64_t row) const {
    return planes[static_cast<std::size_t>(expert * halves + row / half_rows)];
  }
  /// Bytes of columns [col, ..) of a row if they lie side by side at a byte boundary, or nullptr.
  const std::byte* contiguous(std::int64_t expert, std::int64_t row, std::int64_t col) const;
  /// Copies columns [col, col + count) of a row to `to`, packed from its first bit. FP4: `col` and
  /// `count` are even.
  void read(std::int64_t expert, std::int64_t row, std::int64_t col, std::int64_t count,
            std::byte* to) const;
};

/// Where the two halves of a dense w13 tensor lie along its rows: separate gives the rows as they
/// are, with one half.
/// `tensor`: [experts, rows, cols] (or [rows, cols], [rows]: leading and trailing 1 are added), FP4
/// packed: cols counted in codes after `element_bits` = 4.
/// Error: another rank, an odd number of rows with an order of two halves.
TensorStack dense_stack(const TensorView& tensor, GateOrder order, int element_bits);

/// Whether one scale serves all rows of a matrix that has scales. A matrix without columns has no
/// stride between its rows of scales either.
bool rows_share_scales(const ScaledMatrix& matrix);

/// The matrix that `part` picks of every expert, as stored. Error (names the matrix): experts whose
/// formats differ.
using ExpertPart = ScaledMatrix Expert::*;
TensorStack code_stack(const MoeLayer& layer, std::span<const ExpertPart> halves);
/// Its block scales. Error: a shard that begins inside a block.
TensorStack scale_stack(const MoeLayer& layer, std::span<const ExpertPart> halves);

}  // namespace moeref
