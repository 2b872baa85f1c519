#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/packed_rows.hpp"
#include "engine/prepared_rows.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref {

/// The left operand of a GEMM: row i is row `chosen[i]` of `prepared`.
class GemmInput {
 public:
  /// Rows of a matrix, prepared for this input alone.
  GemmInput(const ScaledMatrix& matrix, std::span<const std::int64_t> rows, int threads = 1);
  GemmInput(std::shared_ptr<const PreparedRows> prepared, std::span<const std::int64_t> chosen);

  const ScaledMatrix& matrix() const { return prepared_->matrix(); }
  const PreparedRows& prepared() const { return *prepared_; }
  std::int64_t count() const { return std::ssize(chosen_); }
  std::int64_t chosen(std::int64_t row) const { return chosen_[static_cast<std::size_t>(row)]; }
  std::span<const double> values(std::int64_t row) const { return prepared_->values(chosen(row)); }
  bool is_finite(std::int64_t row) const { return prepared_->is_finite(chosen(row)); }

  /// The rows as f64 sums read them; made at the first call. Not for several threads at once.
  const PackedRows& packed(int threads) const;

 private:
  std::shared_ptr<const PreparedRows> prepared_;
  std::vector<std::int64_t> chosen_;
  mutable std::optional<PackedRows> packed_;
};

/// What the bare dot product becomes before the one rounding.
struct GemmEpilogue {
  float factor = 1.0f;                 ///< on every dot product
  std::span<const float> row_scales;   ///< one per input row on its dot product (router weight on
                                       ///< the input, scale of a token), or empty
  ScaledMatrix bias;                   ///< 1 x N, or absent
  std::span<const float> row_weights;  ///< one per input row on its dot product plus bias, or empty
  const float* residual = nullptr;     ///< [rows, N] added in the same rounding, or null
  std::int64_t residual_stride = 0;
  Format output = Format::f32;  ///< f32, bf16 or f16; the result comes back widened to f32
};

/// How many results each path decided; sums over calls if the caller keeps one. Which estimates are
/// close enough can depend on the instruction set in extreme cases; results do not.
struct GemmStatistics {
  std::int64_t one_sum = 0;    ///< window proof held for the plain f64 sum
  std::int64_t split = 0;      ///< proof held after splitting the activation row
  std::int64_t estimated = 0;  ///< a rounded f64 sum, all that it can be wrong by rounds the same
  std::int64_t wide = 0;       ///< the last resort: by itself, in two f64 numbers or integers
  std::int64_t not_finite = 0;

  GemmStatistics& operator+=(const GemmStatistics& other);
};

/// out[i * out_stride + n] = RN(weight_i * (factor * scale_i * dot(x_i, w_n) + bias_n) +
/// residual_in), one rounding of the exact value, where the operands are the exact values of their
/// codes and all their scales. An exactly zero result is +0. If an operand of a dot is NaN or
/// infinite, the class of the result is that of the IEEE sum: NaN (0x7FC00000), +inf or -inf, in
/// any order.
///
/// Inside a segment of K (one f32 scale) the products are summed in f64, of E2M1 weights in whole
/// numbers block by block and the blocks in f64. The window proof (sum |a| * max |w| <= 2^53 *
/// lowest bit of a * lowest bit of w) makes that sum exact in any order. Where it fails for
/// activations of few bits, whose sums often lie on midpoints, the row is cut by magnitude into
/// parts for which it holds. Else the sum is an estimate with a bound of its error; if the bound
/// leaves a doubt, the output is summed again, exactly. Error: sizes of the operands that disagree;
/// storage that cannot be (`check_storage`).
void gemm(const GemmInput& x, const ScaledMatrix& weight, const GemmEpilogue& epilogue, float* out,
          std::int64_t out_stride, int threads, GemmStatistics* statistics = nullptr);

}  // namespace moeref
