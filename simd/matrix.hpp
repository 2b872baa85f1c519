#pragma once

#include <cstddef>
#include <cstdint>

namespace moeref::simd {

/// A fused step of a matrix unit that accumulates in f32: the products and c are cut toward zero to
/// `fraction_bits` bits below the largest exponent, summed exactly and rounded once, toward zero.
/// terms * 2^(fraction_bits + 2) is at most 2^31, with e8m13 2^23.
struct FusedStep {
  std::size_t terms = 16;  ///< at most 32
  int fraction_bits = 25;  ///< 13 .. 25
  bool e8m13 = false;      ///< the result keeps 13 fraction bits, else 23
};

/// What a matrix kernel reads of some rows and 16 columns: values, and beside each the power of two
/// that its exponent stands for (0 for a zero). For every pair that is multiplied: both finite, and
/// the exponents add up to kLowestStepExponent .. kLargestStepExponent, or one is zero.
struct StepOperands {
  const float* row_values = nullptr;  ///< [rows, row_stride]
  const float* row_powers = nullptr;
  std::size_t row_stride = 0;
  std::size_t rows = 0;
  const float* column_values = nullptr;  ///< [terms, 16]
  const float* column_powers = nullptr;
};

inline constexpr int kLowestStepExponent = -100;
inline constexpr int kLargestStepExponent = 120;

/// How a finished chain p of 16 columns joins their accumulators; every operation f32, rounded
/// once, fma fused, any NaN as 0x7FFFFFFF.
enum class JoinForm : std::uint8_t {
  add,          ///< acc + p
  fma_product,  ///< fma(p, row * column, acc)
  fma_row,      ///< fma(p * row, column, acc)
  fma_column,   ///< fma(p * column, row, acc)
  scale_first,  ///< p * column
  scale_next,   ///< fma(p, column, acc)
};

struct MatrixKernels {
  /// c[r * 16 + j] := step(row r, column j, c[r * 16 + j]). outside[r] has bit j set where c alone
  /// leaves the range of exponents (a tiny, huge, infinite or NaN one); such a c stays as it is.
  void (*fused_step)(const FusedStep& step, const StepOperands& operands, float* c,
                     std::uint16_t* outside);
  /// acc[j] := the form of p[j], row, columns[j], acc[j]. `flushes`: subnormal operands and results
  /// of multiplications and fma are zeros of their sign. Gives the columns that stay as they are
  /// because a result lay at exactly 2^-126, where rounding before the flush has to be decided
  /// apart.
  unsigned (*join)(JoinForm form, bool flushes, const float* p, float row, const float* columns,
                   float* acc);
  /// out[i] = the power of two of values[i], at least `smallest`, 0 for a zero, infinity for NaN
  /// and infinity; the least that is not 0 (infinity if all are) and the largest of them.
  void (*powers)(const float* values, std::size_t count, float smallest, float* out, float* lowest,
                 float* largest);
};

}  // namespace moeref::simd
