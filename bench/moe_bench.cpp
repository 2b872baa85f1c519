// A whole layer in the sizes of GPT-OSS-20B (experts cut to 8 so that it fits small machines):
// routing given, reference numerics. Counters: tokens/s, GFLOP/s, weight bytes touched per second
// as a share of the read bandwidth.
#include <benchmark/benchmark.h>

#include <memory>

#include "bench/bench_context.hpp"
#include "engine/moe.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kWidth = 2880;
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kTopK = 4;

struct Layer {
  std::vector<bench::Operand> operands;
  MoeLayer layer;
};

const Layer& gpt_oss_layer() {
  static const std::unique_ptr<const Layer> layer = [] {
    auto made = std::make_unique<Layer>();
    made->operands.reserve(3 * kExperts);
    made->layer.hidden = kWidth;
    made->layer.intermediate = kWidth;
    made->layer.activation = {ActivationForm::swiglu, 1.702f, 1.0f, 7.0f, {}, {}, {}};
    const auto weight = [&made](std::uint64_t seed) {
      made->operands.push_back(bench::random_weight("mxfp4", kWidth, kWidth, seed));
      return made->operands.back().matrix;
    };
    for (std::uint64_t expert = 0; expert < kExperts; ++expert) {
      Expert e;
      e.gate = weight(3 * expert);
      e.up = weight(3 * expert + 1);
      e.down = weight(3 * expert + 2);
      made->layer.experts.push_back(e);
    }
    return made;
  }();
  return *layer;
}

void gpt_oss_20b(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  const Layer& made = gpt_oss_layer();
  const bench::Operand x = bench::random_activations("bf16", tokens, kWidth, 99);
  Route route{tokens, kTopK, {}, {}};
  for (std::int64_t slot = 0; slot < tokens * kTopK; ++slot) {
    route.ids.push_back(static_cast<std::int32_t>((slot + slot / kTopK) % kExperts));
    route.weights.push_back(0.25f);
  }
  ForwardOptions options;
  options.threads = static_cast<int>(state.range(1));
  for (auto _ : state) {
    benchmark::DoNotOptimize(forward(made.layer, x.matrix, route, options).output.data());
  }
  const double slots = static_cast<double>(tokens * kTopK);
  const double touched =
      std::min(slots, static_cast<double>(kExperts)) * 3 * kWidth * kWidth * (0.5 + 1.0 / 32);
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["tokens"] = benchmark::Counter(static_cast<double>(tokens), rate);
  state.counters["flops"] = benchmark::Counter(slots * 6.0 * kWidth * kWidth, rate);
  state.counters["of_read_bandwidth"] = benchmark::Counter(touched / bench::read_bandwidth(), rate);
}

BENCHMARK(gpt_oss_20b)
    ->Name("BM_moe/gpt-oss-20b")
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{1, 8, 64}, {1, 2}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) {
  return moeref::bench::run(argc, argv, [] {});
}
