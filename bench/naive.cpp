#include "bench/naive.hpp"

#include "quant/dequantize.hpp"
#include "quant/row_decoder.hpp"

namespace moeref::bench {

void naive_gemm(const float* x, std::int64_t rows, const ScaledMatrix& weight,
                std::vector<float>& scratch, float* y) {
  const std::int64_t depth = weight.cols;
  scratch.resize(static_cast<std::size_t>(weight.rows * depth));
  const RowDecoder decode(weight, /*clears_minus_zero=*/false);
  for (std::int64_t n = 0; n < weight.rows; ++n) {
    float* row = scratch.data() + n * depth;
    decode(n, 1, row);
    if (!weight.scales) continue;
    const std::int64_t block = weight.scales->block_cols;
    for (std::int64_t begin = 0; begin < depth; begin += block) {
      const float scale = scale_at(weight, n, begin) * weight.global_scale;
      const std::int64_t end = begin + block < depth ? begin + block : depth;
      for (std::int64_t k = begin; k < end; ++k) row[k] *= scale;
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t n = 0; n < weight.rows; ++n) {
      const float* w = scratch.data() + n * depth;
      float sum = 0.0f;
      for (std::int64_t k = 0; k < depth; ++k) sum += x[i * depth + k] * w[k];
      y[i * weight.rows + n] = sum;
    }
  }
}

}  // namespace moeref::bench
