#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "quant/quantize.hpp"
#include "quant/scaled_matrix.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// Rows of numbers in the type in which they lie between two stages: f32, bf16 or f16. Made of
/// zeros.
class Rows {
 public:
  Rows() = default;
  Rows(std::string name, Format format, std::int64_t rows, std::int64_t cols);
  /// rows * cols numbers of `format` as they lie.
  Rows(std::string name, Format format, std::int64_t rows, std::int64_t cols,
       std::vector<std::byte> bytes);

  /// Stores numbers, which are on the grid of the format, in row `row` from column `first_col` on,
  /// `stride` columns apart. Any NaN keeps its upper bits.
  void put(std::int64_t row, std::int64_t first_col, std::span<const float> values,
           std::int64_t stride = 1);
  /// The numbers of a row from column `first_col` on.
  void get(std::int64_t row, std::int64_t first_col, std::span<float> values,
           std::int64_t stride = 1) const;

  const std::string& name() const { return name_; }
  Format format() const { return format_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  /// Views; valid as long as the rows.
  ScaledMatrix matrix() const;
  ValueMatrix values() const;
  /// A copy under a name with a shape of as many elements.
  Tensor tensor(std::string name, Shape shape) const;

 private:
  std::string name_;
  Format format_ = Format::f32;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::vector<std::byte> bytes_;
};

/// Numbers on the grid of f32, bf16 or f16 as a tensor of that type. NaN as Rows::put.
Tensor stored_tensor(std::string name, Format format, Shape shape, std::span<const float> values);

}  // namespace moeref
