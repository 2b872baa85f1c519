#include "simd/approx_loops.hpp"
#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {

const ApproxKernels approx_kernels{approx_rcp, approx_ex2, approx_mul_ftz, approx_mul_ftz_by,
                                   approx_add_ftz_to};

}  // namespace moeref::simd::scalar
