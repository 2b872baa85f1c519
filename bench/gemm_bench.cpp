// The exact GEMM on one thread beside OpenBLAS's sgemm on weights that are f32 already, and beside
// the loop that GPU tests use as their reference (dequantize to f32, then plain f32 loops).
// Preparing the activations is part of the time; weights are others each time. Counters, of
// medians: GFLOP/s of 2 M N K, the share of the f64 kernel's peak, how many times as fast as sgemm
// and as the loop, the share of the read bandwidth that the weight bytes take, the share of outputs
// that needed the last resort.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/bench_context.hpp"
#include "bench/blas.hpp"
#include "bench/naive.hpp"
#include "engine/gemm.hpp"
#include "quant/dequantize.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kDepth = 2880;
constexpr std::int64_t kColumns = 2880;
constexpr std::int64_t kExperts = 12;  // together more than the last cache, in FP4 too

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

const std::vector<bench::Operand>& experts(const std::string& form) {
  static std::string kept;
  static std::vector<bench::Operand> operands;
  if (kept != form) {
    operands.clear();
    for (std::int64_t expert = 0; expert < kExperts; ++expert) {
      operands.push_back(
          bench::random_weight(form.c_str(), kColumns, kDepth, static_cast<std::uint64_t>(expert)));
    }
    kept = form;
  }
  return operands;
}

std::int64_t weight_bytes(const bench::Operand& weight) {
  return std::ssize(weight.codes) + std::ssize(weight.scales);
}

void exact_gemm(benchmark::State& state, const char* activation, const char* form) {
  const std::int64_t rows = state.range(0);
  const bench::Operand x = bench::random_activations(activation, rows, kDepth, 1);
  const std::vector<bench::Operand>& weights = experts(form);
  std::vector<std::int64_t> all(static_cast<std::size_t>(rows));
  std::iota(all.begin(), all.end(), 0);
  std::vector<float> out(static_cast<std::size_t>(rows * kColumns));
  std::vector<float> activations(static_cast<std::size_t>(rows * kDepth));
  dequantize(x.matrix, DequantizeOrder::checkpoint, Format::f32, activations);
  std::vector<float> scratch;
  GemmStatistics statistics;
  std::vector<double> ours;
  std::vector<double> sgemm;
  double naive = 0.0;
  std::size_t next = 0;
  for (auto _ : state) {
    const ScaledMatrix& weight = weights[next++ % weights.size()].matrix;
    // In turn, so that a noisy machine is as noisy for all.
    sgemm.push_back(bench::sgemm_seconds(rows, kColumns, kDepth, 1));
    if (ours.empty()) {
      const auto begin = Clock::now();
      bench::naive_gemm(activations.data(), rows, weight, scratch, out.data());
      naive = seconds_since(begin);
    }
    const auto begin = Clock::now();
    const GemmInput input(x.matrix, all);
    gemm(input, weight, {}, out.data(), kColumns, 1, &statistics);
    const double seconds = seconds_since(begin);
    benchmark::DoNotOptimize(out.data());
    ours.push_back(seconds);
    state.SetIterationTime(seconds);
  }
  const double one = bench::median(ours);
  const double flops = 2.0 * static_cast<double>(rows) * kColumns * kDepth / one;
  const double outputs = static_cast<double>(statistics.one_sum + statistics.split +
                                             statistics.estimated + statistics.wide);
  state.counters["flops"] = flops;
  state.counters["of_f64_peak"] = flops / bench::peak_f64_flops();
  state.counters["of_read"] =
      static_cast<double>(weight_bytes(weights.front())) / one / bench::read_bandwidth();
  if (bench::has_blas()) state.counters["x_sgemm"] = bench::median(sgemm) / one;
  state.counters["x_naive"] = naive / one;
  state.counters["one_sum"] = static_cast<double>(statistics.one_sum) / outputs;
  state.counters["last_resort"] = static_cast<double>(statistics.wide) / outputs;
}

void register_all() {
  for (const char* activation : {"bf16", "f32", "mxfp4"}) {
    for (const char* weight : {"mxfp4", "nvfp4", "mxfp8", "fp8_channel", "fp8_block", "bf16"}) {
      const bool w4a4 = std::string(activation) == "mxfp4";
      if (w4a4 && std::string(weight) != activation) continue;
      const std::string name =
          "BM_gemm/" + std::string(activation) + "_x_" + weight + "/" + simd::active_kernels()->isa;
      benchmark::RegisterBenchmark(name.c_str(), exact_gemm, activation, weight)
          ->Arg(1)
          ->Arg(8)
          ->Arg(64)
          ->Arg(512)
          ->Unit(benchmark::kMillisecond)
          ->UseManualTime();
    }
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) {
  moeref::bench::choose_blas_core(argv);
  return moeref::bench::run(argc, argv, moeref::register_all);
}
