#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {

const KernelTable table{"scalar",        &gemm_kernels,   nullptr,
                        nullptr,         &encode_kernels, &decode_kernels,
                        &matrix_kernels, &approx_kernels, &function_kernels};

}  // namespace moeref::simd::scalar
