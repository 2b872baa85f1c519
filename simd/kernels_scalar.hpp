#pragma once

#include "simd/kernels.hpp"

namespace moeref::simd::scalar {

/// Plain loops: the definition that every other table must equal.
extern const KernelTable table;
extern const GemmKernels gemm_kernels;
extern const SliceKernels slice_kernels;  ///< not in the table
extern const LineKernels line_kernels;    ///< not in the table
extern const EncodeKernels encode_kernels;
extern const DecodeKernels decode_kernels;
extern const MatrixKernels matrix_kernels;
extern const ApproxKernels approx_kernels;
extern const FunctionKernels function_kernels;

}  // namespace moeref::simd::scalar
