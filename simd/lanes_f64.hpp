#pragma once

#include "simd/lanes16.hpp"

// Batches of f64 numbers, for the files that are compiled once per instruction set.

namespace moeref::simd::MOEREF_ISA {
namespace {

using F64 = xsimd::batch<double, MOEREF_ARCH>;
constexpr std::size_t kLanes = F64::size;

/// a * b + c. xsimd 8.1 has no fused one for AVX-512; where there is one, fused or not is the same
/// for exact sums.
inline F64 multiply_add(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__x86_64__)
  return c + a * b;
#else
  return vfmaq_f64(c, a, b);
#endif
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
