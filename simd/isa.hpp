#pragma once

#include <cstddef>

namespace moeref::simd {

/// The CPU as the operating system lets us use it: features and saved register state.
bool cpu_has_sse42();
bool cpu_has_avx2();    ///< AVX2 and FMA3
bool cpu_has_avx512();  ///< F, CD, DQ, BW, VL
bool cpu_has_avx512vnni();

}  // namespace moeref::simd
