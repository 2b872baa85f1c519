// One source, compiled once per instruction set with MOEREF_ISA (a name) and MOEREF_ARCH (an xsimd
// architecture). Everything but the table is in an anonymous namespace: no inline function built
// with wider instructions may reach the program.
#include <cstddef>

#include <xsimd/xsimd.hpp>

#include "simd/kernels.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

using Batch = xsimd::batch<double, MOEREF_ARCH>;
constexpr std::size_t kLanes = Batch::size;
constexpr std::size_t kBatches = kPanelColumns / kLanes;
// Accumulators that fit the register file beside one broadcast and the panel's row.
constexpr std::size_t kRowBlock = kLanes == 8 ? 8 : (kLanes == 4 ? 2 : 1);

template <std::size_t Rows>
void dot_block(const double* a, std::size_t a_stride, const double* panel, std::size_t k,
               double* out) {
  Batch sum[Rows][kBatches];
  for (std::size_t row = 0; row < Rows; ++row) {
    for (std::size_t b = 0; b < kBatches; ++b) sum[row][b] = Batch(0.0);
  }
  for (std::size_t i = 0; i < k; ++i) {
    Batch weights[kBatches];
    for (std::size_t b = 0; b < kBatches; ++b) {
      weights[b] = Batch::load_unaligned(panel + i * kPanelColumns + b * kLanes);
    }
    for (std::size_t row = 0; row < Rows; ++row) {
      const Batch factor(a[row * a_stride + i]);
      for (std::size_t b = 0; b < kBatches; ++b) sum[row][b] = sum[row][b] + factor * weights[b];
    }
  }
  for (std::size_t row = 0; row < Rows; ++row) {
    for (std::size_t b = 0; b < kBatches; ++b) {
      sum[row][b].store_unaligned(out + row * kPanelColumns + b * kLanes);
    }
  }
}

void dot_panel(const double* a, std::size_t a_stride, std::size_t rows, const double* panel,
               std::size_t k, double* out) {
  std::size_t row = 0;
  for (; row + kRowBlock <= rows; row += kRowBlock) {
    dot_block<kRowBlock>(a + row * a_stride, a_stride, panel, k, out + row * kPanelColumns);
  }
  for (; row < rows; ++row) {
    dot_block<1>(a + row * a_stride, a_stride, panel, k, out + row * kPanelColumns);
  }
}

}  // namespace

#define MOEREF_TEXT_OF(x) #x
#define MOEREF_TEXT(x) MOEREF_TEXT_OF(x)
extern const EncodeKernels encode_kernels;  // encode_xsimd.cpp
extern const DecodeKernels decode_kernels;  // decode_xsimd.cpp
extern const MatrixKernels matrix_kernels;  // matrix_xsimd.cpp
extern const ApproxKernels approx_kernels;  // approx_vector.cpp
extern const KernelTable table;
const KernelTable table{MOEREF_TEXT(MOEREF_ISA), dot_panel, &encode_kernels, &decode_kernels,
                        &matrix_kernels,
                        &approx_kernels};

}  // namespace moeref::simd::MOEREF_ISA
