// Compiled once for every instruction set, as kernels_xsimd.cpp; the compiler vectorises the loops.
#include "simd/approx_loops.hpp"
#include "simd/kernels.hpp"

namespace moeref::simd::MOEREF_ISA {

extern const ApproxKernels approx_kernels;
const ApproxKernels approx_kernels{approx_rcp, approx_ex2, approx_mul_ftz, approx_mul_ftz_by,
                                   approx_add_ftz_to};

}  // namespace moeref::simd::MOEREF_ISA
