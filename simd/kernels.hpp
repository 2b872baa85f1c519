#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/approx.hpp"
#include "simd/decode.hpp"
#include "simd/encode.hpp"
#include "simd/matrix.hpp"

namespace moeref::simd {

/// Columns of a weight panel: the outputs that one kernel call computes side by side.
inline constexpr std::size_t kPanelColumns = 16;

/// The vectorised inner loops of one instruction set. Every entry gives the bytes of the scalar
/// one.
struct KernelTable {
  const char* isa;  ///< "scalar", "sse42", "avx2", "avx512", "neon"

  /// out[r * 16 + j] = sum over i < k of a[r * a_stride + i] * panel[i * 16 + j], for r < rows, j
  /// < 16. The caller has proved that every partial sum is exact in f64, so order and fusing cannot
  /// show.
  void (*dot_panel)(const double* a, std::size_t a_stride, std::size_t rows, const double* panel,
                    std::size_t k, double* out);

  const EncodeKernels* encode;
  const DecodeKernels* decode;
  const MatrixKernels* matrix;
  const ApproxKernels* approx;
};

/// The table with this name, or nullptr if this build or this CPU lacks it.
const KernelTable* find_kernels(const char* isa);
/// The names of the tables that work here, "scalar" first, fastest last; ends with nullptr.
const char* const* available_isas();
/// The table in use: the fastest, unless `MOEREF_ISA` or `use_kernels` chose another. nullptr if
/// `MOEREF_ISA` names one that is not available.
const KernelTable* active_kernels();
/// Chooses a table for the whole process; false if it is not available.
bool use_kernels(const char* isa);

}  // namespace moeref::simd
