#include "bench/fma_peak.hpp"

#include <benchmark/benchmark.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace moeref::bench {
namespace {

constexpr long kSteps = 4'000'000;
constexpr int kChains = 12;  // hide a latency of 6 cycles of two units

// Each gives the flops that it has done.

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double run_avx512() {
  __m512d chains[kChains];
  for (__m512d& chain : chains) chain = _mm512_set1_pd(1.0);
  const __m512d factor = _mm512_set1_pd(1.0 + 0x1p-40);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = _mm512_fmadd_pd(chains[i], factor, factor);
  }
  for (__m512d& chain : chains) benchmark::DoNotOptimize(chain);
  return 2.0 * kSteps * kChains * 8;
}

__attribute__((target("avx2,fma"))) double run_avx2() {
  __m256d chains[kChains];
  for (__m256d& chain : chains) chain = _mm256_set1_pd(1.0);
  const __m256d factor = _mm256_set1_pd(1.0 + 0x1p-40);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = _mm256_fmadd_pd(chains[i], factor, factor);
  }
  for (__m256d& chain : chains) benchmark::DoNotOptimize(chain);
  return 2.0 * kSteps * kChains * 4;
}

double run_narrow() {
  __m128d chains[kChains];
  for (__m128d& chain : chains) chain = _mm_set1_pd(1.0);
  const __m128d factor = _mm_set1_pd(1.0 + 0x1p-40);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      chains[i] = _mm_add_pd(_mm_mul_pd(chains[i], factor), factor);
    }
  }
  for (__m128d& chain : chains) benchmark::DoNotOptimize(chain);
  return 2.0 * kSteps * kChains * 2;
}
#elif defined(__aarch64__)
double run_narrow() {
  float64x2_t chains[kChains];
  for (float64x2_t& chain : chains) chain = vdupq_n_f64(1.0);
  const float64x2_t factor = vdupq_n_f64(1.0 + 0x1p-40);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = vfmaq_f64(factor, chains[i], factor);
  }
  for (float64x2_t& chain : chains) benchmark::DoNotOptimize(chain);
  return 2.0 * kSteps * kChains * 2;
}
#endif

double run_scalar() {
  double chains[kChains];
  for (double& chain : chains) chain = 1.0;
  double factor = 1.0 + 0x1p-40;
  benchmark::DoNotOptimize(factor);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      chains[i] = chains[i] * factor + factor;
      benchmark::DoNotOptimize(chains[i]);  // not side by side
    }
  }
  return 2.0 * kSteps * kChains;
}

}  // namespace

double fma_flops(std::string_view isa) {
  double (*run)() = run_scalar;
#if defined(__x86_64__)
  if (isa == "sse42") run = run_narrow;
  if (isa == "avx2") run = run_avx2;
  if (isa.starts_with("avx512")) run = run_avx512;
#elif defined(__aarch64__)
  if (isa == "neon") run = run_narrow;
#endif
  const auto begin = std::chrono::steady_clock::now();
  const double flops = run();
  return flops / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace moeref::bench
