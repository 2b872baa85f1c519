#include "simd/gemm_loops.hpp"
#include "simd/kernels_scalar.hpp"
#include "simd/values_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr std::size_t kRowBlock = 4;

void dot(const double* a, std::size_t rows, const double* panel, std::size_t k, bool adds,
         double* sums) {
  for (std::size_t row = 0; row < rows; ++row) {
    double* out = sums + row * kPanelColumns;
    double sum[kPanelColumns] = {};
    for (std::size_t i = 0; i < k; ++i) {
      const double factor = a[i * rows + row];
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        sum[j] += factor * panel[i * kPanelColumns + j];
      }
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) out[j] = adds ? out[j] + sum[j] : sum[j];
  }
}

void decode(const PanelCodes& codes, std::size_t k, double* panel) {
  for (std::size_t i = 0; i < k; ++i) {
    const double* factors =
        codes.factors == nullptr
            ? nullptr
            : codes.factors + (codes.factor_begin + i) / codes.factor_block * kPanelColumns;
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const double value = value_of(codes.type, codes.columns[j], i);
      panel[i * kPanelColumns + j] = factors == nullptr ? value : value * factors[j];
    }
  }
}

void magnitudes(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                const std::byte* const* columns, std::size_t count,
                Magnitudes (&found)[kPanelColumns]) {
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    Magnitudes& sizes = found[j];
    sizes = {~0u, 0, 0};
    for (std::size_t i = 0; i < count; ++i) {
      std::uint16_t code = 0;
      std::memcpy(&code, columns[j] + bytes * i, bytes);
      const std::uint32_t size = code & mask;
      if (size != 0 || !skips_zero) sizes.smallest = size < sizes.smallest ? size : sizes.smallest;
      sizes.largest = size > sizes.largest ? size : sizes.largest;
      sizes.bits |= size;
    }
  }
}

void squares(PanelCode type, const std::byte* const* columns, std::size_t count, double* found) {
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    found[j] = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
      const double value = value_of(type, columns[j], i);
      found[j] += value * value;
    }
  }
}

}  // namespace

const GemmKernels gemm_kernels{kRowBlock, dot,         decode,           magnitudes,
                               squares,   gemm_window, gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::scalar
