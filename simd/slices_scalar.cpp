#include "simd/kernels_scalar.hpp"
#include "simd/slices.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr int kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  for (std::size_t step = 0; step < k / kSliceStep; ++step) {
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      for (std::size_t i = 0; i < kSliceStep; ++i) {
        const std::size_t col = slice_column(step, i);
        const auto byte = std::to_integer<unsigned>(codes.columns[j][col / 2]);
        const int twice = kTwiceE2m1[byte >> (col % 2 * 4) & 0xFu];
        *weights++ = static_cast<std::uint8_t>(twice + kWeightOffset);
      }
    }
  }
}

void dot(const SliceBlock* blocks, std::size_t count, std::size_t steps, std::size_t rows,
         const std::uint8_t* weights, const double* scales, double* sums) {
  for (std::size_t b = 0; b < count; ++b) {
    const SliceBlock& block = blocks[b];
    const std::uint8_t* block_weights = weights + b * steps * kPanelColumns * kSliceStep;
    for (std::size_t row = 0; row < rows; ++row) {
      if (block.slices[row] == 0) continue;
      const std::int8_t* digits = block.digits + row * kMostSlices * steps * kSliceStep;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        double total = 0.0;
        for (std::size_t s = block.slices[row]; s-- > 0;) {
          std::int32_t sum = block.starts[row * kMostSlices + s];
          for (std::size_t step = 0; step < steps; ++step) {
            for (std::size_t i = 0; i < kSliceStep; ++i) {
              sum += digits[(s * steps + step) * kSliceStep + i] *
                     block_weights[(step * kPanelColumns + j) * kSliceStep + i];
            }
          }
          total = total * 256.0 + sum;
        }
        sums[row * kPanelColumns + j] += total * scales[b * kPanelColumns + j] * block.factors[row];
      }
    }
  }
}

}  // namespace

const SliceKernels slice_kernels{decode, dot};

}  // namespace moeref::simd::scalar
