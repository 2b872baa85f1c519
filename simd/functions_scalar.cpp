#include "simd/functions_loops.hpp"
#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {

const FunctionKernels function_kernels{function_sigmoid};

}  // namespace moeref::simd::scalar
