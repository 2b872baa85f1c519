#include <cmath>

#include "simd/kernels_scalar.hpp"
#include "simd/slices_loops.hpp"
#include "simd/values_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  for (std::size_t step = 0; step < k / kSliceStep; ++step) {
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      for (std::size_t i = 0; i < kSliceStep; ++i) {
        *weights++ =
            static_cast<std::uint8_t>(byte_weight(codes.columns[j], slice_column(step, i)));
      }
    }
  }
}

void dot_panel(SliceRow row, std::size_t steps, const SlicePanel& panel) {
  for (std::size_t slices = 1; slices <= kMostSlices; ++slices) {
    for (std::size_t n = 0; n < row.counts[slices - 1]; ++n) {
      const std::size_t block = *row.blocks++;
      const double factor = *row.factors++;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        double total = row.starts[0];
        if (slice_groups(slices) == 2) {
          total += std::ldexp(row.starts[1], 8 * static_cast<int>(slices_of_group(slices, 0)));
        }
        double unit = 1.0;
        for (std::size_t s = 0; s < slices; ++s) {
          std::int32_t sum = 0;
          for (std::size_t step = 0; step < steps; ++step) {
            const std::size_t at = ((block * steps + step) * kPanelColumns + j) * kSliceStep;
            for (std::size_t i = 0; i < kSliceStep; ++i) {
              sum += row.digits[(s * steps + step) * kSliceStep + i] * panel.weights[at + i];
            }
          }
          total += unit * sum;
          unit *= 256.0;
        }
        panel.sums[j] += total * panel.scales[block * kPanelColumns + j] * factor;
      }
      row.digits += slices * steps * kSliceStep;
      row.starts += slice_groups(slices);
    }
  }
}

void dot(const SliceRow& row, std::size_t steps, const SlicePanel* panels, std::size_t count) {
  for (std::size_t p = 0; p < count; ++p) dot_panel(row, steps, panels[p]);
}

}  // namespace

const SliceKernels slice_kernels{0, slice_cut, decode, dot};

}  // namespace moeref::simd::scalar
