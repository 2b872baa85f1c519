#include "simd/kernels_scalar.hpp"
#include "simd/slices_loops.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr int kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

std::uint8_t weight_of(const std::byte* codes, std::size_t col) {
  const auto byte = std::to_integer<unsigned>(codes[col / 2]);
  return static_cast<std::uint8_t>(kTwiceE2m1[byte >> (col % 2 * 4) & 0xFu] + kWeightOffset);
}

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  for (std::size_t step = 0; step < k / kSliceStep; ++step) {
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      for (std::size_t i = 0; i < kSliceStep; ++i) {
        *weights++ = weight_of(codes.columns[j], slice_column(step, i));
      }
    }
  }
}

/// weight(block, step, j, i): of column slice_column(step, i) of the block and output j.
template <typename Weight>
void dot_row(SliceRow row, std::size_t steps, const double* scales, Weight weight, double* sums) {
  for (std::size_t slices = 1; slices <= kMostSlices; ++slices) {
    for (std::size_t n = 0; n < row.counts[slices - 1]; ++n) {
      const std::size_t block = *row.blocks++;
      const double factor = *row.factors++;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        double total = 0.0;
        double unit = 1.0;
        for (std::size_t s = 0; s < slices; ++s) {
          std::int32_t sum = s % 2 == 0 ? row.starts[s / 2] : 0;
          for (std::size_t step = 0; step < steps; ++step) {
            for (std::size_t i = 0; i < kSliceStep; ++i) {
              sum += row.digits[(s * steps + step) * kSliceStep + i] * weight(block, step, j, i);
            }
          }
          total += unit * sum;
          unit *= 256.0;
        }
        sums[j] += total * scales[block * kPanelColumns + j] * factor;
      }
      row.digits += slices * steps * kSliceStep;
      row.starts += slice_pairs(slices);
    }
  }
}

void dot(const SliceRow& row, std::size_t steps, const SlicePanel* panels, std::size_t count) {
  for (std::size_t p = 0; p < count; ++p) {
    const std::uint8_t* weights = panels[p].weights;
    const auto weight = [=](std::size_t block, std::size_t step, std::size_t j, std::size_t i) {
      return weights[((block * steps + step) * kPanelColumns + j) * kSliceStep + i];
    };
    dot_row(row, steps, panels[p].scales, weight, panels[p].sums);
  }
}

void dot_codes(const SliceRow& row, std::size_t steps, const PanelCodes& codes,
               const double* scales, double* sums) {
  const auto weight = [&](std::size_t block, std::size_t step, std::size_t j, std::size_t i) {
    return weight_of(codes.columns[j], block * steps * kSliceStep + slice_column(step, i));
  };
  dot_row(row, steps, scales, weight, sums);
}

}  // namespace

const SliceKernels slice_kernels{0, slice_cut, decode, dot, dot_codes};

}  // namespace moeref::simd::scalar
