#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>

#include "engine/accumulate/mainloop.hpp"
#include "engine/gemm.hpp"
#include "quant/numerics.hpp"

namespace moeref {

/// What one GEMM of an expert takes beside its operands.
struct GemmArguments {
  float factor = 1.0f;                 ///< SumFactor::expert: the expert's number
  ScaledMatrix bias;                   ///< 1 x N, or absent
  std::span<const float> row_scales;   ///< on the dot products, before the bias; or empty
  std::span<const float> row_weights;  ///< on the result with bias (router weights); or empty
};

/// Some rows of the left operand, decoded once for the GEMMs of an expert as its numerics want.
class LayerGemm {
 public:
  /// `level` reference and backend: exact sums. `whole_scale`: x's scale is one for the tensor,
  /// which SumFactor::expert has inside the expert's number.
  LayerGemm(const GemmNumerics& numerics, NumericsLevel level, const ScaledMatrix& x,
            std::span<const std::int64_t> rows, bool whole_scale);

  /// out[i * stride + n], on the grid of numerics.output: the row i of x with row n of `weight`.
  void run(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
           std::int64_t stride, int threads, GemmStatistics* statistics) const;

 private:
  void run_exact(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                 std::int64_t stride, int threads, GemmStatistics* statistics) const;
  void run_replay(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                  std::int64_t stride, int threads) const;

  const GemmNumerics& numerics_;
  ScaledMatrix x_;
  std::vector<std::int64_t> rows_;
  std::variant<GemmInput, accumulate::MainloopInput> input_;
};

}  // namespace moeref
