#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>

#include "engine/accumulate/mainloop.hpp"
#include "engine/gemm.hpp"
#include "engine/stage_operand.hpp"
#include "quant/numerics.hpp"

namespace moeref {

/// What one GEMM of an expert takes beside its operands.
struct GemmArguments {
  float factor = 1.0f;                 ///< SumFactor::expert: the expert's number
  ScaledMatrix bias;                   ///< 1 x N, or absent
  std::span<const float> row_scales;   ///< on the dot products, before the bias; or empty
  std::span<const float> row_weights;  ///< on the result with bias (router weights); or empty
};

/// The left operand of one of a layer's GEMMs as its numerics want it.
class LayerOperand {
 public:
  /// `level` reference and backend: exact sums. `is_shared`: several experts take the same rows;
  /// they are prepared once for all, unless they are too many to keep. So are few rows that are
  /// not. `x` and `numerics` must outlive it.
  LayerOperand(const GemmNumerics& numerics, NumericsLevel level, const StageOperand& x,
               bool is_shared, int threads);

  const GemmNumerics& numerics() const { return numerics_; }
  NumericsLevel level() const { return level_; }
  /// Without the scales that the expert's number already holds.
  const ScaledMatrix& matrix() const { return matrix_; }
  std::span<const float> row_scales() const { return row_scales_; }
  GemmInput input(std::span<const std::int64_t> rows, int threads) const;

 private:
  const GemmNumerics& numerics_;
  NumericsLevel level_;
  ScaledMatrix matrix_;
  std::span<const float> row_scales_;
  std::shared_ptr<const PreparedRows> prepared_;  ///< null: for each batch by itself
};

/// Some rows of the left operand, read once for the GEMMs of an expert.
class LayerGemm {
 public:
  LayerGemm(const LayerOperand& operand, std::span<const std::int64_t> rows, int threads);

  /// out[i * stride + n], on the grid of numerics.output: the row i of x with row n of `weight`.
  void run(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
           std::int64_t stride, int threads, GemmStatistics* statistics) const;

 private:
  void run_exact(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                 std::int64_t stride, int threads, GemmStatistics* statistics) const;
  void run_replay(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                  std::int64_t stride, int threads) const;

  const LayerOperand& operand_;
  const GemmNumerics& numerics_;
  std::vector<std::int64_t> rows_;
  std::variant<GemmInput, accumulate::MainloopInput> input_;
};

}  // namespace moeref
