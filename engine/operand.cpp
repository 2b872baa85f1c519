#include "engine/operand.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/dequantize.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

/// First column after `col` where the block of scales changes, at most `cols`.
std::int64_t block_end(const ScaledMatrix& matrix, std::int64_t col) {
  const ScaleGrid& scales = *matrix.scales;
  const std::int64_t inside = (scales.col_begin + col) % scales.block_cols;
  return std::min(matrix.cols, col + (scales.block_cols - inside));
}

}  // namespace

Window window_of(std::span<const double> values, const simd::GemmKernels& kernels) {
  double lowest;
  double largest;
  double sum;
  double squares;
  kernels.window(values.data(), values.size(), &lowest, &largest, &sum, &squares);
  Window window;
  if (largest == 0.0) return window;
  window.empty = false;
  window.lowest = lowest_exponent(lowest);
  window.largest = exponent_above(largest);
  // The rounded sum of n non-negative terms is off by at most a factor 1 +- n 2^-53.
  const double upper = sum * (1.0 + 0x1p-51 * static_cast<double>(values.size() + 2));
  const bool exact = exponent_above(upper) - window.lowest <= 53;  // then so was every partial sum
  window.total = exact ? sum : upper;
  window.sum = exponent_above(window.total);
  // Squares that underflow are as small as the last term.
  window.norm = std::sqrt(squares * (1.0 + 0x1p-30) + 0x1p-1000);
  return window;
}

bool has_wide_scales(const ScaledMatrix& matrix) {
  if (!matrix.scales) return false;
  const int code_bits = info(matrix.codes.format).significand_bits;
  const int scale_bits = info(matrix.scales->format).significand_bits;
  return scale_bits > 1 && code_bits + scale_bits > 24;  // a power of two adds no bits
}

double wide_scale(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  return has_wide_scales(matrix) ? static_cast<double>(scale_at(matrix, row, col)) : 1.0;
}

std::vector<std::int64_t> segment_bounds(std::span<const ScaledMatrix* const> operands,
                                         std::int64_t cols) {
  std::vector<std::int64_t> bounds{0, cols};
  for (const ScaledMatrix* matrix : operands) {
    if (!has_wide_scales(*matrix)) continue;
    for (std::int64_t col = block_end(*matrix, 0); col < cols; col = block_end(*matrix, col)) {
      bounds.push_back(col);
    }
  }
  std::sort(bounds.begin(), bounds.end());
  bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
  return bounds;
}

OperandDecoder::OperandDecoder(const ScaledMatrix& matrix)
    : matrix_(matrix), decoder_(matrix_, /*clears_minus_zero=*/false) {}

void OperandDecoder::decode(std::int64_t first_row, std::int64_t rows, double* out,
                            std::int64_t row_stride, std::int64_t col_stride, char* finite) {
  codes_.resize(static_cast<std::size_t>(rows * matrix_.cols));
  decoder_(first_row, rows, codes_.data());
  for (std::int64_t row = 0; row < rows; ++row) {
    finite[row] = apply_scales(first_row + row, codes_.data() + row * matrix_.cols,
                               out + row * row_stride, col_stride)
                      ? 1
                      : 0;
  }
}

bool OperandDecoder::apply_scales(std::int64_t row, const float* codes, double* out,
                                  std::int64_t stride) const {
  // One test at the end: 0 * x is 0 for finite x and NaN otherwise, and NaN stays.
  double probe = 0.0;
  std::int64_t col = 0;
  while (col < matrix_.cols) {
    const std::int64_t end = matrix_.scales ? block_end(matrix_, col) : matrix_.cols;
    double scale = matrix_.scales ? static_cast<double>(scale_at(matrix_, row, col)) : 1.0;
    probe += 0.0 * scale;
    if (has_wide_scales(matrix_)) scale = 1.0;
    for (; col < end; ++col) {
      const double value = static_cast<double>(codes[col]) * scale;
      out[col * stride] = value;
      probe += 0.0 * value;
    }
  }
  return probe == 0.0;
}

double global_multiplier(const ScaledMatrix& matrix) {
  return matrix.global_rule == GlobalScaleRule::multiply ? static_cast<double>(matrix.global_scale)
                                                         : 1.0;
}

double global_divisor(const ScaledMatrix& matrix) {
  return matrix.global_rule == GlobalScaleRule::divide ? static_cast<double>(matrix.global_scale)
                                                       : 1.0;
}

ScaledMatrix f32_matrix(std::string name, const float* values, std::int64_t rows,
                        std::int64_t cols) {
  ScaledMatrix matrix;
  matrix.name = std::move(name);
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes.data = reinterpret_cast<const std::byte*>(values);
  matrix.codes.format = Format::f32;
  matrix.codes.row_stride = cols;
  return matrix;
}

}  // namespace moeref
