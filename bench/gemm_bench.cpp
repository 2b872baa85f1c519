// The exact GEMM beside the loop that GPU tests use as their reference (dequantize to f32, then
// plain f32 loops). Counters: GFLOP/s of 2 M N K, its share of the f64 kernel's peak in the same
// process.
#include <benchmark/benchmark.h>

#include <numeric>
#include <string>
#include <vector>

#include "bench/bench_context.hpp"
#include "engine/gemm.hpp"
#include "quant/dequantize.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kDepth = 2880;
constexpr std::int64_t kColumns = 720;

std::vector<std::int64_t> all_rows(std::int64_t count) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

void report(benchmark::State& state, std::int64_t tokens) {
  const double flops = 2.0 * static_cast<double>(tokens) * kColumns * kDepth;
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_f64_peak"] = benchmark::Counter(flops / bench::peak_f64_flops(),
                                                     benchmark::Counter::kIsIterationInvariantRate);
}

void exact_gemm(benchmark::State& state, const char* activation, const char* weight) {
  const std::int64_t tokens = state.range(0);
  const bench::Operand x = bench::random_activations(activation, tokens, kDepth, 1);
  const bench::Operand w = bench::random_weight(weight, kColumns, kDepth, 2);
  std::vector<float> out(static_cast<std::size_t>(tokens * kColumns));
  GemmStatistics statistics;
  for (auto _ : state) {
    const GemmInput input(x.matrix, all_rows(tokens));
    gemm(input, w.matrix, {}, out.data(), kColumns, 1, &statistics);
    benchmark::DoNotOptimize(out.data());
  }
  report(state, tokens);
  const double all = static_cast<double>(statistics.one_sum + statistics.split + statistics.wide);
  state.counters["one_sum"] = static_cast<double>(statistics.one_sum) / all;
}

void naive_gemm(benchmark::State& state, const char* activation, const char* weight) {
  const std::int64_t tokens = state.range(0);
  const bench::Operand x = bench::random_activations(activation, tokens, kDepth, 1);
  const bench::Operand w = bench::random_weight(weight, kColumns, kDepth, 2);
  std::vector<float> activations(static_cast<std::size_t>(tokens * kDepth));
  std::vector<float> weights(static_cast<std::size_t>(kColumns * kDepth));
  std::vector<float> out(static_cast<std::size_t>(tokens * kColumns));
  for (auto _ : state) {
    dequantize(x.matrix, DequantizeOrder::checkpoint, Format::f32, activations);
    dequantize(w.matrix, DequantizeOrder::checkpoint, Format::f32, weights);
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t n = 0; n < kColumns; ++n) {
        float sum = 0.0f;
        for (std::int64_t k = 0; k < kDepth; ++k) {
          sum += activations[static_cast<std::size_t>(i * kDepth + k)] *
                 weights[static_cast<std::size_t>(n * kDepth + k)];
        }
        out[static_cast<std::size_t>(i * kColumns + n)] = sum;
      }
    }
    benchmark::DoNotOptimize(out.data());
  }
  report(state, tokens);
}

void register_all() {
  for (const char* weight : {"mxfp4", "nvfp4", "mxfp8", "fp8_channel", "fp8_block", "bf16"}) {
    for (const char* activation : {"bf16", "f32"}) {
      const std::string name = std::string("/") + activation + "_x_" + weight;
      benchmark::RegisterBenchmark(("BM_gemm" + name + "/" + simd::active_kernels()->isa).c_str(),
                                   exact_gemm, activation, weight)
          ->Arg(1)
          ->Arg(8)
          ->Arg(64)
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RegisterBenchmark((std::string("BM_naive_f32/bf16_x_") + weight).c_str(), naive_gemm,
                                 "bf16", weight)
        ->Arg(1)
        ->Arg(8)
        ->Arg(64)
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
