// The table of one instruction set: every source of it is compiled with MOEREF_ISA (a name) and
// MOEREF_ARCH (an xsimd architecture). Everything but the tables is in an anonymous namespace: no
// inline function built with wider instructions may reach the program.
#include "simd/kernels.hpp"

namespace moeref::simd::MOEREF_ISA {

#define MOEREF_TEXT_OF(x) #x
#define MOEREF_TEXT(x) MOEREF_TEXT_OF(x)
extern const GemmKernels gemm_kernels;          // gemm_xsimd.cpp
extern const SliceKernels slice_kernels;        // slices_vector.cpp
extern const LineKernels line_kernels;          // lines_vector.cpp
extern const EncodeKernels encode_kernels;      // encode_xsimd.cpp
extern const DecodeKernels decode_kernels;      // decode_xsimd.cpp
extern const MatrixKernels matrix_kernels;      // matrix_xsimd.cpp
extern const ApproxKernels approx_kernels;      // approx_vector.cpp
extern const FunctionKernels function_kernels;  // functions_vector.cpp
extern const KernelTable table;
const KernelTable table{MOEREF_TEXT(MOEREF_ISA), &gemm_kernels,   &slice_kernels,
                        &line_kernels,           &encode_kernels, &decode_kernels,
                        &matrix_kernels,         &approx_kernels, &function_kernels};

}  // namespace moeref::simd::MOEREF_ISA
