#pragma once

#include "simd/lanes16.hpp"

// Batches of f64 numbers, for the files that are compiled once per instruction set.

namespace moeref::simd::MOEREF_ISA {
namespace {

using F64 = xsimd::batch<double, MOEREF_ARCH>;
using U64 = xsimd::batch<std::uint64_t, MOEREF_ARCH>;
constexpr std::size_t kLanes = F64::size;

/// The sum of the lanes, in halves.
inline double sum_lanes(F64 values) {
  double lanes[kLanes];
  values.store_unaligned(lanes);
  for (std::size_t count = kLanes / 2; count > 0; count /= 2) {
    for (std::size_t i = 0; i < count; ++i) lanes[i] += lanes[i + count];
  }
  return lanes[0];
}

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
