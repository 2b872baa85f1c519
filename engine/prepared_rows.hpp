#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/lined_rows.hpp"
#include "engine/operand.hpp"
#include "engine/sliced_rows.hpp"
#include "quant/aligned.hpp"
#include "quant/scaled_matrix.hpp"
#include "simd/kernels.hpp"

namespace moeref {

/// Rows of the left operand of GEMMs, decoded and measured once for all that take some of them.
/// What is made at a first call is not for several threads at once.
class PreparedRows {
 public:
  /// Row i is row `rows[i]` of `matrix`. Error: storage that cannot be (`check_storage`).
  PreparedRows(const ScaledMatrix& matrix, std::span<const std::int64_t> rows, int threads);
  PreparedRows(const PreparedRows&) = delete;
  PreparedRows& operator=(const PreparedRows&) = delete;

  const ScaledMatrix& matrix() const { return matrix_; }
  std::int64_t count() const { return std::ssize(rows_); }
  /// code * narrow scale.
  std::span<const double> values(std::int64_t i) const {
    return std::span(values_).subspan(static_cast<std::size_t>(i * matrix_.cols),
                                      static_cast<std::size_t>(matrix_.cols));
  }
  /// No NaN or infinity in values or scales.
  bool is_finite(std::int64_t i) const { return finite_[static_cast<std::size_t>(i)] != 0; }

  /// What the segments of the rows span.
  struct Measured {
    std::vector<std::int64_t> bounds;  ///< columns where segments begin, then K
    std::vector<Window> windows;       ///< [rows, segments]; empty ones of rows that are not finite
    std::vector<double> scales;        ///< [rows, segments]: the wide scales
  };
  /// Made at the first call for these bounds.
  const Measured& measured(std::span<const std::int64_t> bounds, int threads) const;

  /// The rows in digits, zeros of those that are not finite; made at the first call for a block
  /// size.
  std::span<const SlicedRow> sliced(std::int64_t block_cols, int threads) const;
  /// The same for sums along weight rows.
  std::span<const LinedRow> lined(std::int64_t block_cols, int threads) const;

 private:
  ScaledMatrix matrix_;
  std::vector<std::int64_t> rows_;
  AlignedVector<double> values_;  ///< [rows, cols]
  std::vector<char> finite_;
  mutable std::optional<Measured> measured_;
  mutable std::vector<SlicedRow> sliced_;
  mutable std::vector<LinedRow> lined_;
};

/// The kernels in use. Error: MOEREF_ISA names some that are not available.
const simd::KernelTable& chosen_kernels();

}  // namespace moeref
