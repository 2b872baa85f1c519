#include "bench/blas.hpp"

#if defined(MOEREF_HAVE_OPENBLAS)

#include <cblas.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "simd/isa.hpp"

namespace moeref::bench {
namespace {

/// Matrices to take in turn: together more than 200 MB.
struct Weights {
  std::vector<std::vector<float>> matrices;
  std::size_t next = 0;
};

/// Those of the last two shapes: an expert has two.
Weights& weights_of(std::int64_t columns, std::int64_t depth) {
  using Shape = std::pair<std::int64_t, std::int64_t>;
  static std::map<Shape, Weights> kept;
  const Shape shape{columns, depth};
  if (const auto found = kept.find(shape); found != kept.end()) return found->second;
  if (kept.size() == 2) kept.clear();
  Weights& weights = kept[shape];
  const auto size = static_cast<std::size_t>(columns * depth);
  std::uint32_t state = 1;
  for (std::size_t bytes = 0; bytes < 200'000'000; bytes += 4 * size) {
    std::vector<float>& matrix = weights.matrices.emplace_back(size);
    for (float& value : matrix) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
    }
  }
  return weights;
}

}  // namespace

bool has_blas() { return true; }

std::string blas_core() { return openblas_get_corename(); }

void choose_blas_core(char** argv) {
  if (!simd::cpu_has_avx512() || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 1);
  execv("/proc/self/exe", argv);
}

double sgemm_seconds(std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads) {
  openblas_set_num_threads(threads);
  Weights& weights = weights_of(columns, depth);
  static std::vector<float> x;
  static std::vector<float> y;
  x.assign(static_cast<std::size_t>(rows * depth), 0.5f);
  y.resize(static_cast<std::size_t>(rows * columns));
  const std::vector<float>& w = weights.matrices[weights.next++ % weights.matrices.size()];
  const auto begin = std::chrono::steady_clock::now();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows),
              static_cast<int>(columns), static_cast<int>(depth), 1.0f, x.data(),
              static_cast<int>(depth), w.data(), static_cast<int>(depth), 0.0f, y.data(),
              static_cast<int>(columns));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void let_blas_sleep() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }

}  // namespace moeref::bench

#else

namespace moeref::bench {

bool has_blas() { return false; }
std::string blas_core() { return "none"; }
void choose_blas_core(char**) {}
double sgemm_seconds(std::int64_t, std::int64_t, std::int64_t, int) { return 0.0; }
void let_blas_sleep() {}

}  // namespace moeref::bench

#endif
