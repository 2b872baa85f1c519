#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/approx.hpp"
#include "simd/decode.hpp"
#include "simd/encode.hpp"
#include "simd/functions.hpp"
#include "simd/gemm.hpp"
#include "simd/lines.hpp"
#include "simd/matrix.hpp"
#include "simd/slices.hpp"

namespace moeref::simd {

/// The vectorised inner loops of one instruction set. Every entry gives the bytes of the scalar
/// one.
struct KernelTable {
  const char* isa;  ///< "scalar", "sse42", "avx2", "avx512", "avx512vnni", "neon"

  const GemmKernels* gemm;
  const SliceKernels* slices;  ///< null: none; f64 sums are the definition
  const LineKernels* lines;    ///< null where slices are
  const EncodeKernels* encode;
  const DecodeKernels* decode;
  const MatrixKernels* matrix;
  const ApproxKernels* approx;
  const FunctionKernels* functions;
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
