// Whole layers in the sizes of published models, routing given and even. Counters, of medians:
// tokens/s; GFLOP/s and its share of the f64 kernel's peak on all threads; bytes of the weights
// that are touched, a second, and their share of the read bandwidth; how many times as fast as
// OpenBLAS's sgemm on ready f32 weights and as the loop of GPU tests (dequantize each expert that
// is hit, plain f32 loops), both for the GEMMs alone, measured on one expert for each thread and
// multiplied; x_reference: the time over that of reference numerics; the shares of the outputs of
// GEMMs that are proved by one sum and that need the last resort.
#include <benchmark/benchmark.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "bench/bench_context.hpp"
#include "bench/blas.hpp"
#include "bench/markdown_reporter.hpp"
#include "bench/moe_shapes.hpp"
#include "bench/naive.hpp"
#include "engine/moe.hpp"
#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

using bench::BenchLayer;
using bench::MoeShape;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

const BenchLayer& layer_of(const MoeShape& shape) {
  static const MoeShape* kept = nullptr;
  static std::unique_ptr<const BenchLayer> layer;
  if (kept != &shape) {
    layer.reset();
    layer = bench::make_layer(shape);
    kept = &shape;
  }
  return *layer;
}

/// GEMMs of one expert: [rows, hidden] x w1, [rows, intermediate] x w2.
struct ExpertGemms {
  std::int64_t first_columns;
  std::int64_t hidden;
  std::int64_t intermediate;
};

double sgemm_of_expert(const ExpertGemms& gemms, std::int64_t rows, int threads) {
  return bench::sgemm_seconds(rows, gemms.first_columns, gemms.hidden, threads) +
         bench::sgemm_seconds(rows, gemms.hidden, gemms.intermediate, threads);
}

/// Seconds of one expert for each thread, at the same time.
double naive_of_experts(const MoeLayer& layer, std::int64_t rows, int threads) {
  const std::vector<float> x(
      static_cast<std::size_t>(rows * std::max(layer.hidden, layer.intermediate)), 0.5f);
  struct Scratch {
    std::vector<float> weights;
    std::vector<float> y;
  };
  const auto begin = Clock::now();
  parallel_for<Scratch>(threads, threads, [&](std::int64_t i, Scratch& scratch) {
    const Expert& expert = layer.experts[static_cast<std::size_t>(i)];
    scratch.y.resize(x.size());
    for (const ScaledMatrix* weight : {&expert.gate, &expert.up, &expert.down}) {
      if (*weight) bench::naive_gemm(x.data(), rows, *weight, scratch.weights, scratch.y.data());
    }
  });
  return seconds_since(begin);
}

/// The median of what is measured as often as 30 ms allow, three times at least: a layer of a model
/// comes behind another, with threads that are awake and memory that was touched.
template <typename Measure>
double in_a_row(Measure measure) {
  std::vector<double> times;
  const auto begin = Clock::now();
  do {
    times.push_back(measure());
  } while (seconds_since(begin) < 0.03 || times.size() < 3);
  return bench::median(times);
}

void whole_layer(benchmark::State& state, const MoeShape& shape) {
  const std::int64_t tokens = state.range(0);
  const BenchLayer& made = layer_of(shape);
  const bench::Operand x = bench::random_activations("bf16", tokens, shape.hidden, 99);
  const Route route = bench::even_route(tokens, shape.top_k, shape.experts);
  ForwardOptions options;
  options.threads = static_cast<int>(state.range(1));
  const std::int64_t slots = tokens * shape.top_k;
  const std::int64_t hit = std::min(slots, shape.experts);
  const std::int64_t rows = (slots + hit - 1) / hit;
  const std::int64_t halves = shape.gated ? 2 : 1;
  const ExpertGemms gemms{halves * shape.intermediate, shape.hidden, shape.intermediate};
  std::vector<double> ours;
  std::vector<double> sgemm;
  std::vector<double> naive;
  GemmStatistics statistics;
  // In turn, so that a noisy machine is as noisy for all; the naive one as often as two seconds
  // allow.
  double naive_seconds = 0.0;
  for (auto _ : state) {
    sgemm.push_back(in_a_row([&] { return sgemm_of_expert(gemms, rows, options.threads); }) *
                    static_cast<double>(hit));
    if (naive_seconds < 2.0) {
      const double experts = naive_of_experts(made.layer, rows, options.threads);
      naive_seconds += experts;
      naive.push_back(experts * static_cast<double>(hit) / options.threads);
    }
    if (options.threads > 1) bench::let_blas_sleep();
    const double seconds = in_a_row([&] {
      const auto begin = Clock::now();
      const ForwardResult result = forward(made.layer, x.matrix, route, options);
      benchmark::DoNotOptimize(result.output.data());
      statistics = result.statistics;
      return seconds_since(begin);
    });
    ours.push_back(seconds);
    state.SetIterationTime(seconds);
  }
  const double one = bench::median(ours);
  const double flops =
      2.0 * static_cast<double>(slots * (halves + 1) * shape.hidden * shape.intermediate) / one;
  const double bytes = static_cast<double>(hit * made.bytes_per_expert) / one;
  const double outputs = static_cast<double>(statistics.one_sum + statistics.split +
                                             statistics.estimated + statistics.wide);
  state.counters["tokens"] = static_cast<double>(tokens) / one;
  state.counters["flops"] = flops;
  state.counters["of_f64_peak"] = flops / bench::peak_f64_flops() / options.threads;
  state.counters["bytes"] = bytes;
  state.counters["of_read"] = bytes / bench::read_bandwidth();
  if (bench::has_blas()) state.counters["x_sgemm"] = bench::median(sgemm) / one;
  state.counters["x_naive"] = bench::median(naive) / one;
  state.counters["one_sum"] = static_cast<double>(statistics.one_sum) / outputs;
  state.counters["last_resort"] = static_cast<double>(statistics.wide) / outputs;
}

constexpr std::int64_t kWidth = 2880;
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTopK = 4;
constexpr MoeShape kNumericsShape{"gpt-oss-20b", "mxfp4", kWidth, kWidth, kExperts, kTopK, true};

/// The layer as the kernel of flashinfer_sm90_mxfp4 reads it.
const KernelLayer& kernel_layer() {
  static const KernelLayer kernel = [] {
    const MoeLayer& layer = layer_of(kNumericsShape).layer;
    const Backend& backend = find_backend("flashinfer_sm90_mxfp4");
    const PreparedLayer prepared = plan_layer(backend, parse_options(backend, {}), layer, {});
    std::vector<Tensor> made;
    for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, 0));
    return prepared_kernel_layer(prepared, made, layer, 0);
  }();
  return kernel;
}

/// One forward; rounding points and sums as the level says.
void run_forward(NumericsLevel level, const ScaledMatrix& x, const Route& route,
                 const ForwardOptions& options) {
  const MoeLayer& layer = layer_of(kNumericsShape).layer;
  if (level == NumericsLevel::reference) {
    benchmark::DoNotOptimize(forward(layer, x, route, options).output.data());
    return;
  }
  const Backend& backend = find_backend("flashinfer_sm90_mxfp4");
  NumericsRequest request;
  request.shape.hidden = request.shape.intermediate = request.shape.stride = kWidth;
  request.shape.experts = request.shape.total_experts = kExperts;
  request.options = parse_options(backend, {});
  request.kernel = parse_kernel_options(backend, {});
  request.tokens = route.tokens;
  request.top_k = route.top_k;
  request.activation = layer.activation;
  request.level = level;
  const Numerics numerics = numerics_for(backend, request);
  benchmark::DoNotOptimize(
      forward(kernel_layer(), x, route, numerics, level, options).output.data());
}

void numerics_of_a_layer(benchmark::State& state, NumericsLevel level) {
  const std::int64_t tokens = state.range(0);
  const bench::Operand x = bench::random_activations("bf16", tokens, kWidth, 99);
  const Route route = bench::even_route(tokens, kTopK, kExperts);
  ForwardOptions options;
  options.threads = static_cast<int>(state.range(1));
  const auto seconds_of = [&](NumericsLevel timed) {
    const auto begin = Clock::now();
    run_forward(timed, x.matrix, route, options);
    return seconds_since(begin);
  };
  layer_of(kNumericsShape);
  kernel_layer();  // prepared before anything is timed
  std::vector<double> reference;
  std::vector<double> times;
  for (auto _ : state) {
    reference.push_back(seconds_of(NumericsLevel::reference));
    times.push_back(seconds_of(level));
    state.SetIterationTime(times.back());
  }
  const double one = bench::median(times);
  state.counters["tokens"] = static_cast<double>(tokens) / one;
  state.counters["flops"] = static_cast<double>(tokens * kTopK) * 6.0 * kWidth * kWidth / one;
  state.counters["x_reference"] = one / bench::median(reference);
}

void register_all() {
  for (const MoeShape& shape : bench::moe_shapes()) {
    const std::string name = "BM_layer/" + std::string(shape.name) + ", " + shape.weights;
    benchmark::RegisterBenchmark(name.c_str(), whole_layer, shape)
        ->ArgNames({"tokens", "threads"})
        ->ArgsProduct({{1, 8, 64, 512}, {1, 2}})
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
  for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
    benchmark::RegisterBenchmark(("BM_numerics/" + std::string(name(level))).c_str(),
                                 numerics_of_a_layer, level)
        ->ArgNames({"tokens", "threads"})
        ->ArgsProduct({{1, 8, 64}, {1, 2}})
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) {
  moeref::bench::choose_blas_core(argv);
  return moeref::bench::run(argc, argv, moeref::register_all);
}
