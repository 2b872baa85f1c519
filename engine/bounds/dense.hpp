#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/bounds/bounded.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref::bounds {

/// A row-major matrix of Bounded, one array a field.
struct BoundedMatrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> value;
  std::vector<double> stored;
  std::vector<double> own;

  BoundedMatrix() = default;
  BoundedMatrix(std::int64_t row_count, std::int64_t col_count);
  Bounded at(std::int64_t row, std::int64_t col) const;
  void set(std::int64_t row, std::int64_t col, const Bounded& element);
};

/// Exact numbers [rows, cols].
BoundedMatrix exact_matrix(std::span<const float> values, std::int64_t rows, std::int64_t cols);
/// The rows with these numbers, in this order.
BoundedMatrix gather_rows(const BoundedMatrix& matrix, std::span<const std::int64_t> rows);

/// input * weight^T (+ bias) (+ residual): [n, weight.rows]. The stored evaluation dequantizes the
/// weight in its own precision (the roundings that takes are counted), multiplies, and adds in any
/// order. `bias` may be absent; `residual` [n, weight.rows] is one more term of each sum. Error:
/// widths that differ.
BoundedMatrix linear(const Arithmetic& arithmetic, const ScaledMatrix& weight,
                     const ScaledMatrix& bias, const BoundedMatrix& input, int threads = 1,
                     const BoundedMatrix* residual = nullptr);

/// input * weight^T for a weight whose elements have errors of their own: [input.rows,
/// weight.rows], products and sums in any order. Error: widths that differ.
BoundedMatrix linear(const Arithmetic& arithmetic, const BoundedMatrix& weight,
                     const BoundedMatrix& input);

/// Roundings between the codes of a matrix and its values in an arithmetic with `precision_bits`
/// significant bits (24 or 53): none where the product of code and block scale always fits.
int dequantization_roundings(const ScaledMatrix& matrix, int precision_bits);

}  // namespace moeref::bounds
