#include "simd/isa.hpp"

namespace moeref::simd {

#if defined(__x86_64__)

// __builtin_cpu_supports asks CPUID and XGETBV, so a feature counts only if the system saves its
// registers.
bool cpu_has_sse42() { return __builtin_cpu_supports("sse4.2") != 0; }

bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}

bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512cd") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}

bool cpu_has_avx512vnni() { return cpu_has_avx512() && __builtin_cpu_supports("avx512vnni") != 0; }

#else

bool cpu_has_sse42() { return false; }
bool cpu_has_avx2() { return false; }
bool cpu_has_avx512() { return false; }
bool cpu_has_avx512vnni() { return false; }

#endif

}  // namespace moeref::simd
