#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "simd/float_environment.hpp"

namespace moeref {

/// Threads that a request for `threads` gets: 0 = all.
inline int thread_count(int threads) {
#if defined(_OPENMP)
  return threads > 0 ? threads : omp_get_max_threads();
#else
  static_cast<void>(threads);
  return 1;
#endif
}

/// Calls body(i, scratch) once for every i in [0, count), on any thread, with one default-made
/// `Scratch` per thread. The calls must be independent of each other: then the result does not
/// depend on the number of threads. Bad input must be found before; what is thrown nevertheless
/// (out of memory) is thrown again after the loop.
template <typename Scratch, typename Body>
void parallel_for(std::int64_t count, int threads, Body body) {
  if (count <= 0) return;
  const std::int64_t wanted = thread_count(threads);
  const int team = static_cast<int>(count < wanted ? count : wanted);
  std::vector<Scratch> scratch(static_cast<std::size_t>(team));
  std::exception_ptr failure;
#if defined(_OPENMP)
#pragma omp parallel num_threads(team)
#endif
  {
    const simd::DefaultFloatEnvironment environment;
#if defined(_OPENMP)
    Scratch& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic)
#else
    Scratch& mine = scratch[0];
#endif
    for (std::int64_t i = 0; i < count; ++i) {
      try {
        body(i, mine);
      } catch (...) {
#if defined(_OPENMP)
#pragma omp critical(moeref_parallel_for_failure)
#endif
        if (!failure) failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace moeref
