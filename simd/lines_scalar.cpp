#include <cmath>

#include "simd/kernels_scalar.hpp"
#include "simd/values_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

double dot_line(const LineChunk* chunks, const LineWeights& weights, std::size_t column) {
  const std::size_t cols = weights.block_cols;
  const std::size_t slice = kLineBlocks * cols;  // digits
  double sum = 0.0;
  for (std::size_t begin = 0; begin < weights.cols; begin += cols) {
    const std::size_t block = begin / cols;
    const LineChunk& chunk = chunks[block / kLineBlocks];
    const std::size_t b = block % kLineBlocks;
    double total = chunk.starts[b];
    if (slice_groups(chunk.slices) == 2) {
      total += std::ldexp(chunk.starts[kLineBlocks + b],
                          8 * static_cast<int>(slices_of_group(chunk.slices, 0)));
    }
    double unit = 1.0;
    for (std::size_t s = 0; s < chunk.slices; ++s) {
      std::int32_t products = 0;
      for (std::size_t i = 0; i < cols; ++i) {
        // Columns that there are not have digits of zero.
        const int weight =
            begin + i < weights.cols ? byte_weight(weights.codes[column], begin + i) : 0;
        products += chunk.digits[s * slice + line_digit(b, i, cols)] * weight;
      }
      total += unit * products;
      unit *= 256.0;
    }
    const double scale = value_of(weights.scale_type, weights.scales[column], block);
    sum += total * (scale * chunk.factors[b]);
  }
  return sum;
}

void dot(const LineChunk* chunks, const LineWeights& weights, double* sums) {
  for (std::size_t j = 0; j < kPanelColumns; ++j) sums[j] = dot_line(chunks, weights, j);
}

}  // namespace

const LineKernels line_kernels{dot};

}  // namespace moeref::simd::scalar
