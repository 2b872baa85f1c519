#pragma once

#include <cstddef>
#include <cstdint>

// The inner loops of the exact GEMM. A sum is proved exact before it is made, or is an estimate
// whose error is bounded for every order: order and fused operations do not show in results.

namespace moeref::simd {

/// Columns of a weight panel: the outputs that one kernel call computes side by side.
inline constexpr std::size_t kPanelColumns = 16;
/// Rows that a call of `dot` takes at most.
inline constexpr std::size_t kMaxRowBlock = 8;
/// Bytes of codes of one column that the panel decoder takes at a time.
inline constexpr std::size_t kCodeUnit = 16;
/// Columns of K that share one factor of the panel decoder are a multiple of this.
inline constexpr std::size_t kFactorUnit = 16;

/// Codes that a panel can be made of; e8m0 and e4m3 are those of narrow scales, too.
enum class PanelCode : std::uint8_t { e2m1, e4m3, e8m0, bf16, f16 };

/// Codes in kCodeUnit bytes.
constexpr std::size_t codes_of_unit(PanelCode type) {
  return type == PanelCode::e2m1                              ? 2 * kCodeUnit
         : type == PanelCode::e4m3 || type == PanelCode::e8m0 ? kCodeUnit
                                                              : kCodeUnit / 2;
}

/// Codes of the kPanelColumns columns of a panel, side by side in memory from the first on.
struct PanelCodes {
  PanelCode type = PanelCode::e2m1;
  const std::byte* columns[kPanelColumns] = {};
  /// [k / factor_block, kPanelColumns]: narrow scales; null = 1, as e8m0 must have.
  const double* factors = nullptr;
  std::size_t factor_block = kFactorUnit;  ///< columns of K, a multiple of kFactorUnit
  std::size_t factor_begin = 0;  ///< columns of the first block that lie before the first code
};

/// The exact value of an output before its rounding: for each column, in this order,
/// (high + low) * column_scales * row_scale * multipliers / divisors + addends.
struct FinishTerms {
  const double* high = nullptr;           ///< [kPanelColumns]
  const double* low = nullptr;            ///< likewise, below high; null = 0
  const double* error = nullptr;          ///< bound of what high + low lack; null = 0
  const double* column_scales = nullptr;  ///< of at most 24 bits; null = 1
  double row_scale = 1.0;                 ///< likewise
  const double* multipliers = nullptr;
  std::size_t multiplier_count = 0;
  const double* divisors = nullptr;
  std::size_t divisor_count = 0;
  const double* addends[2] = {nullptr, nullptr};  ///< each [kPanelColumns] or null
};

/// What some codes without their signs have in common.
struct Magnitudes {
  std::uint32_t smallest = 0;  ///< above `largest`: all are skipped zeros
  std::uint32_t largest = 0;
  std::uint32_t bits = 0;  ///< that any of them has
};

/// Significant bits and exponents of an output type.
struct OutputType {
  int precision = 24;
  int min_exponent = -126;  ///< of the smallest normal number
  int max_exponent = 127;
};

struct GemmKernels {
  /// Rows that `dot` takes best.
  std::size_t row_block;
  /// sums[r * 16 + j] (+)= sum over i < k of a[i * rows + r] * panel[i * 16 + j], rows 1 to
  /// kMaxRowBlock. `adds`: to what is there.
  void (*dot)(const double* a, std::size_t rows, const double* panel, std::size_t k, bool adds,
              double* sums);
  /// panel[i * 16 + j] = code i of column j times its factor, for i < k: whole units of codes.
  /// Codes that are NaN or infinity give anything, in their column alone.
  void (*decode)(const PanelCodes& codes, std::size_t k, double* panel);
  /// Of `count` codes of `bytes` 1 or 2 of each column, under `mask`. `skips_zero`: zero is no
  /// magnitude.
  void (*magnitudes)(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                     const std::byte* const* columns, std::size_t count,
                     Magnitudes (&found)[kPanelColumns]);
  /// found[j]: the sum of the squares of `count` codes of column j that are not e2m1, rounded in an
  /// order of its own; some codes of zero more may be in it.
  void (*squares)(PanelCode type, const std::byte* const* columns, std::size_t count,
                  double* found);
  /// Of `count` finite numbers the lowest set bit (infinity: all are zeros), the largest size, and
  /// the rounded sums of the sizes and of the squares, in one order everywhere.
  void (*window)(const double* values, std::size_t count, double* lowest, double* largest,
                 double* sum, double* squares);
  /// high + low += row_scales * column_scales * sums, each [rows, kPanelColumns]; row_scales *
  /// column_scales of at most 53 bits. Nothing but two additions to low is rounded.
  void (*add_segment)(const double* sums, std::size_t rows, const double* column_scales,
                      const double* row_scales, double* high, double* low);
  /// out[j]: the terms of column j rounded once, as f32. Gives the columns (a bit each) that it
  /// cannot decide; their out is not to be used.
  std::uint32_t (*finish)(const FinishTerms& terms, const OutputType& type, float* out);
};

}  // namespace moeref::simd
