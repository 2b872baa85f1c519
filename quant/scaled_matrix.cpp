#include "quant/scaled_matrix.hpp"

#include <cmath>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {

void check_storage(const ScaledMatrix& matrix) {
  if (!matrix) fail(matrix.name, "has no codes; load the tensor first");
  if (matrix.rows < 0 || matrix.cols < 0) {
    fail(matrix.name, "is [{}, {}]; sizes cannot be negative", matrix.rows, matrix.cols);
  }
  if (matrix.codes.format == Format::f64) {
    fail(matrix.name, "has f64 codes; convert them to f32 first");
  }
  if (matrix.scales) {
    const ScaleGrid& scales = *matrix.scales;
    if (scales.format == Format::f64 || scales.format == Format::e2m1) {
      fail(matrix.name, "has {} scales; the scale formats are e8m0, e4m3, f32, bf16, f16",
           name(scales.format));
    }
    if (scales.block_rows < 1 || scales.block_cols < 1 || scales.row_begin < 0 ||
        scales.col_begin < 0) {
      fail(matrix.name, "has scale blocks of [{}, {}] from ({}, {}); sizes must be at least 1",
           scales.block_rows, scales.block_cols, scales.row_begin, scales.col_begin);
    }
  }
  if (matrix.global_rule == GlobalScaleRule::none) return;
  if (!std::isfinite(matrix.global_scale) ||
      (matrix.global_rule == GlobalScaleRule::divide && matrix.global_scale == 0.0f)) {
    fail(matrix.name, "has the global scale {}; it must be finite, and not zero where it divides",
         matrix.global_scale);
  }
}

ScaledMatrix row_slice(ScaledMatrix matrix, std::int64_t begin, std::int64_t count) {
  matrix.codes.origin += begin * matrix.codes.row_stride;
  if (matrix.scales) matrix.scales->row_begin += begin;
  matrix.rows = count;
  return matrix;
}

ScaledMatrix col_slice(ScaledMatrix matrix, std::int64_t begin, std::int64_t count) {
  matrix.codes.origin += begin * matrix.codes.col_stride;
  if (matrix.scales) matrix.scales->col_begin += begin;
  matrix.cols = count;
  return matrix;
}

}  // namespace moeref
