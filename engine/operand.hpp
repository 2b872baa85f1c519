#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/row_decoder.hpp"
#include "quant/scaled_matrix.hpp"
#include "simd/gemm.hpp"

namespace moeref {

/// Where the values of one row of an operand lie inside one segment of K, as powers of two.
struct Window {
  int lowest = 0;      ///< every non-zero value is a multiple of 2^lowest
  int largest = 0;     ///< every |value| <= 2^largest
  int sum = 0;         ///< the sum of all |value| <= 2^sum
  double total = 0.0;  ///< an upper bound of that sum
  double norm = 0.0;   ///< and of the root of the sum of squares
  bool empty = true;   ///< all values are zero; the rest means nothing
};

/// Smallest e with value <= 2^e, for a finite value > 0.
inline int exponent_above(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t fraction = bits & 0xFFFFFFFFFFFFFull;
  const auto field = static_cast<int>((bits >> 52) & 0x7FF);
  if (field == 0) return static_cast<int>(std::bit_width(fraction - 1)) - 1074;  // units of 2^-1074
  return field - 1023 + (fraction != 0 ? 1 : 0);
}
/// Exponent of the lowest set bit of a finite non-zero value.
inline int lowest_exponent(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const auto field = static_cast<int>((bits >> 52) & 0x7FF);
  const std::uint64_t fraction = bits & 0xFFFFFFFFFFFFFull;
  const std::uint64_t significand = field == 0 ? fraction : fraction | (1ull << 52);
  return (field == 0 ? 1 : field) - 1075 + std::countr_zero(significand);
}

/// The window of finite values.
Window window_of(std::span<const double> values, const simd::GemmKernels& kernels);

/// Wide block scales (f32) stay outside the exact sums and multiply them afterwards. Narrow ones
/// (E8M0, E4M3, bf16, f16) are folded into the values, if code and scale together have at most 24
/// significant bits: products of two values then have at most 48 bits and are exact in f64.
bool has_wide_scales(const ScaledMatrix& matrix);

/// The f32 scale of (row, col) that `decode_row` leaves out: 1 unless the matrix has wide scales.
double wide_scale(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col);

/// The columns where a wide scale of any of the operands changes, from 0 to `cols`: the segments
/// inside which a dot product is one exact sum.
std::vector<std::int64_t> segment_bounds(std::span<const ScaledMatrix* const> operands,
                                         std::int64_t cols);

/// Decodes rows of an operand to the exact values code * narrow scale; wide and global scales are
/// left out.
class OperandDecoder {
 public:
  explicit OperandDecoder(const ScaledMatrix& matrix);
  OperandDecoder(const OperandDecoder&) = delete;
  OperandDecoder& operator=(const OperandDecoder&) = delete;

  /// Writes value (first_row + r, c) to out[r * row_stride + c * col_stride]. finite[r] = 0 if a
  /// value or a scale of the row, wide ones included, is NaN or infinite. At most 64 rows at a
  /// time.
  void decode(std::int64_t first_row, std::int64_t rows, double* out, std::int64_t row_stride,
              std::int64_t col_stride, char* finite);

 private:
  bool apply_scales(std::int64_t row, const float* codes, double* out, std::int64_t stride) const;

  ScaledMatrix matrix_;
  RowDecoder decoder_;
  std::vector<float> codes_;
};

/// The factor and the divisor that the global scale of a matrix stands for.
double global_multiplier(const ScaledMatrix& matrix);
double global_divisor(const ScaledMatrix& matrix);

/// A plain row-major f32 matrix as an operand.
ScaledMatrix f32_matrix(std::string name, const float* values, std::int64_t rows,
                        std::int64_t cols);

}  // namespace moeref
