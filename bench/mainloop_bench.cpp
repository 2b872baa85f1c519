// Main loops of GPU kernels, bit for bit, for each instruction set, one thread. flops: 2 rows
// columns K a second; x_naive: time of a plain f32 dot product in the same process over the time
// taken.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "bench/bench_context.hpp"
#include "engine/accumulate/mainloop.hpp"
#include "quant/dequantize.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kColumns = 512;
constexpr std::int64_t kDepth = 4096;

struct Case {
  const char* name;
  const char* weight;
  const char* activations;  ///< form of the left operand
  const char* instruction;
  Format operand;
  std::int64_t chain;
  Promotion promotion;
  bool flushes;
};

constexpr Case kCases[]{
    {"bf16_wgmma", "bf16", "bf16", "wgmma.k16", Format::bf16, 0, Promotion::none, false},
    {"fp8_wgmma_block128", "fp8_block", "fp8", "wgmma.k32", Format::e4m3, 128,
     Promotion::fma_product, false},
    {"fp8_wgmma_one_chain", "fp8_channel", "fp8", "wgmma.k32", Format::e4m3, 0, Promotion::none,
     false},
    {"mxfp4_wgmma_groups", "mxfp4", "bf16", "wgmma.k16", Format::bf16, 32, Promotion::column_groups,
     true},
};

bench::Operand left_operand(const Case& chosen, std::int64_t rows) {
  if (std::strcmp(chosen.activations, "fp8") == 0) {
    return bench::random_weight("fp8_block", rows, kDepth, 2);
  }
  return bench::random_activations(chosen.activations, rows, kDepth, 2);
}

Mainloop mainloop_of(const Case& chosen) {
  Mainloop mainloop;
  mainloop.unit =
      std::get<FusedDot>(find_matrix_instruction("sm_90", chosen.instruction, chosen.operand,
                                                 chosen.operand, Format::f32)
                             .unit);
  if (std::strcmp(chosen.weight, "mxfp4") == 0) mainloop.unit.operand = Format::bf16;
  mainloop.chain = chosen.chain;
  mainloop.promotion = chosen.promotion;
  mainloop.flushes = chosen.flushes;
  return mainloop;
}

/// Seconds of a plain loop over the same numbers, f32 sums.
double naive_seconds(const ScaledMatrix& x, const ScaledMatrix& w) {
  std::vector<float> left(static_cast<std::size_t>(x.rows * x.cols));
  std::vector<float> right(static_cast<std::size_t>(w.rows * w.cols));
  dequantize(x, DequantizeOrder::once, Format::f32, left);
  dequantize(w, DequantizeOrder::once, Format::f32, right);
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t n = 0; n < w.rows; ++n) {
      float sum = 0.0f;
      for (std::int64_t k = 0; k < x.cols; ++k) {
        sum += left[static_cast<std::size_t>(i * x.cols + k)] *
               right[static_cast<std::size_t>(n * w.cols + k)];
      }
      benchmark::DoNotOptimize(sum);
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void run_case(benchmark::State& state, const Case& chosen, const char* isa) {
  const std::int64_t rows = state.range(0);
  const bench::Operand weight = bench::random_weight(chosen.weight, kColumns, kDepth, 1);
  const bench::Operand left = left_operand(chosen, rows);
  const Mainloop mainloop = mainloop_of(chosen);
  std::vector<std::int64_t> all(static_cast<std::size_t>(rows));
  std::iota(all.begin(), all.end(), 0);
  std::vector<float> acc(static_cast<std::size_t>(rows * kColumns));
  std::vector<float> expected(acc.size());
  const auto compute = [&](std::vector<float>& out) {
    const auto x = accumulate::mainloop_input(mainloop, left.matrix, all);
    accumulate::run_mainloop(mainloop, x, weight.matrix, out.data(), kColumns, 1);
  };
  simd::use_kernels("scalar");
  compute(expected);
  simd::use_kernels(isa);
  double seconds = 0.0;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    compute(acc);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  if (std::memcmp(acc.data(), expected.data(), acc.size() * sizeof(float)) != 0) {
    std::cerr << chosen.name << ": " << isa << " differs from scalar\n";
    std::exit(1);
  }
  const double flops = 2.0 * static_cast<double>(rows * kColumns * kDepth);
  const auto runs = static_cast<double>(state.iterations());
  state.counters["flops"] = flops * runs / seconds;
  state.counters["x_naive"] = naive_seconds(left.matrix, weight.matrix) * runs / seconds;
}

void register_all() {
  for (const Case& chosen : kCases) {
    for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
      benchmark::RegisterBenchmark((std::string("BM_mainloop/") + chosen.name + "/" + *isa).c_str(),
                                   run_case, chosen, *isa)
          ->Arg(8)
          ->Arg(64)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
