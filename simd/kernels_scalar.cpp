#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

void dot_panel(const double* a, std::size_t a_stride, std::size_t rows, const double* panel,
               std::size_t k, double* out) {
  for (std::size_t row = 0; row < rows; ++row) {
    double sum[kPanelColumns] = {};
    for (std::size_t i = 0; i < k; ++i) {
      const double factor = a[row * a_stride + i];
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        sum[j] += factor * panel[i * kPanelColumns + j];
      }
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) out[row * kPanelColumns + j] = sum[j];
  }
}

}  // namespace

const KernelTable table{"scalar", dot_panel, &encode_kernels, &decode_kernels, &matrix_kernels,
                        &approx_kernels};

}  // namespace moeref::simd::scalar
