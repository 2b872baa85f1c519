// A whole layer through every backend: seconds in which its weights are prepared. 32 experts of
// GPT-OSS's size in the first format that the backend takes, sizes rounded up to its rules.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_context.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "quant/error.hpp"
#include "quant/tensor.hpp"

namespace moeref {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kExperts = 32;
constexpr std::int64_t kHidden = 2880;
constexpr std::int64_t kIntermediate = 2880;

bool takes(const Backend& backend, const Options& options, const SampleShape& shape) {
  try {
    plan_layer(backend, options, sample_layer(shape), {});
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// The smallest sizes that the backend takes, tried with few experts: with SiLU, or if it does not
/// take that, with a limit, or with GPT-OSS's activation and biases.
SampleShape shape_for(const Backend& backend, const Options& options) {
  constexpr std::int64_t kSteps[] = {64, 128, 256, 512};
  for (const auto& [bias, limit] :
       {std::pair{false, kNoLimit}, std::pair{false, 10.0f}, std::pair{true, kNoLimit}}) {
    for (const std::int64_t hidden_step : kSteps) {
      for (const std::int64_t step : kSteps) {
        SampleShape shape{.experts = 2,
                          .hidden = ceil_div(kHidden, hidden_step) * hidden_step,
                          .intermediate = ceil_div(kIntermediate, step) * step,
                          .bias = bias,
                          .weight_format = std::string(backend.formats.front()),
                          .limit = limit};
        if (!takes(backend, options, shape)) continue;
        shape.experts = kExperts;
        return shape;
      }
    }
  }
  fail(backend.name, "takes no layer near {} x {}", kHidden, kIntermediate);
}

void time_layer(benchmark::State& state, const Backend& backend, int threads) {
  const Options options = parse_options(backend, {});
  const SampleShape shape = shape_for(backend, options);
  const MoeLayer layer = sample_layer(shape);
  std::vector<std::vector<std::byte>> made;
  double best = 1e9;
  double bytes = 0;
  for (auto _ : state) {
    const auto begin = Clock::now();
    const PreparedLayer prepared = plan_layer(backend, options, layer, {});
    made.resize(prepared.tensors.size());
    bytes = 0;
    for (std::size_t i = 0; i < made.size(); ++i) {
      made[i].resize(static_cast<std::size_t>(byte_count(prepared.tensors[i])));
      make(prepared.tensors[i], made[i], threads);
      bytes += static_cast<double>(made[i].size());
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  state.counters["seconds"] = best;
  state.counters["bytes"] = bytes;
  state.SetLabel(shape.weight_format + ", hidden " + std::to_string(shape.hidden) +
                 ", intermediate " + std::to_string(shape.intermediate));
}

void register_all() {
  constexpr int kThreads = 2;
  for (const Backend* backend : all_backends()) {
    const std::string name =
        "BM_layer/" + std::string(backend->name) + "/threads:" + std::to_string(kThreads);
    benchmark::RegisterBenchmark(
        name.c_str(), [backend](benchmark::State& state) { time_layer(state, *backend, kThreads); })
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime()
        ->Iterations(3);
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
