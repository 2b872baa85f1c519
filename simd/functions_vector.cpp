// Functions of the exact engine; compiled once per instruction set like kernels_xsimd.cpp.
#include "simd/functions_loops.hpp"

namespace moeref::simd::MOEREF_ISA {

extern const FunctionKernels function_kernels;
const FunctionKernels function_kernels{function_sigmoid};

}  // namespace moeref::simd::MOEREF_ISA
