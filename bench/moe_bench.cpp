// A whole layer in the sizes of GPT-OSS-20B (experts cut to 8 so that it fits small machines):
// routing given, with each level of numerics. Counters: tokens/s, GFLOP/s, weight bytes touched per
// second as a share of the read bandwidth; x_reference: the time over that of reference numerics.
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <string>

#include "bench/bench_context.hpp"
#include "engine/moe.hpp"
#include "layout/backend.hpp"
#include "layout/prepare.hpp"

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
    made->layer.weight_format = "mxfp4";
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

/// The layer as the kernel of flashinfer_sm90_mxfp4 reads it.
const KernelLayer& kernel_layer() {
  static const KernelLayer kernel = [] {
    const Backend& backend = find_backend("flashinfer_sm90_mxfp4");
    const PreparedLayer prepared =
        plan_layer(backend, parse_options(backend, {}), gpt_oss_layer().layer, {});
    std::vector<Tensor> made;
    for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, 0));
    return prepared_kernel_layer(prepared, made, gpt_oss_layer().layer, 0);
  }();
  return kernel;
}

/// One forward; rounding points and sums as the level says.
void run_forward(NumericsLevel level, const ScaledMatrix& x, const Route& route,
                 const ForwardOptions& options) {
  if (level == NumericsLevel::reference) {
    benchmark::DoNotOptimize(forward(gpt_oss_layer().layer, x, route, options).output.data());
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
  request.activation = gpt_oss_layer().layer.activation;
  request.level = level;
  const Numerics numerics = numerics_for(backend, request);
  benchmark::DoNotOptimize(
      forward(kernel_layer(), x, route, numerics, level, options).output.data());
}

void gpt_oss_20b(benchmark::State& state, NumericsLevel level) {
  const std::int64_t tokens = state.range(0);
  const bench::Operand x = bench::random_activations("bf16", tokens, kWidth, 99);
  Route route{tokens, kTopK, {}, {}};
  for (std::int64_t slot = 0; slot < tokens * kTopK; ++slot) {
    route.ids.push_back(static_cast<std::int32_t>((slot + slot / kTopK) % kExperts));
    route.weights.push_back(0.25f);
  }
  ForwardOptions options;
  options.threads = static_cast<int>(state.range(1));
  const auto seconds_of = [&](NumericsLevel timed) {
    const auto begin = std::chrono::steady_clock::now();
    run_forward(timed, x.matrix, route, options);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  kernel_layer();  // prepared before anything is timed
  double reference = 0.0;
  double timed = 0.0;
  // In turn, so that a noisy machine is as noisy for both.
  for (auto _ : state) {
    if (level != NumericsLevel::reference) reference += seconds_of(NumericsLevel::reference);
    const double seconds = seconds_of(level);
    timed += seconds;
    state.SetIterationTime(seconds);
  }
  const double slots = static_cast<double>(tokens * kTopK);
  const double touched =
      std::min(slots, static_cast<double>(kExperts)) * 3 * kWidth * kWidth * (0.5 + 1.0 / 32);
  const double runs = static_cast<double>(state.iterations());
  state.counters["tokens"] = static_cast<double>(tokens) * runs / timed;
  state.counters["flops"] = slots * 6.0 * kWidth * kWidth * runs / timed;
  state.counters["of_read_bandwidth"] = touched * runs / timed / bench::read_bandwidth();
  if (reference > 0.0) state.counters["x_reference"] = timed / reference;
}

void register_all() {
  for (const NumericsLevel level :
       {NumericsLevel::reference, NumericsLevel::backend, NumericsLevel::replay}) {
    benchmark::RegisterBenchmark(("BM_moe/gpt-oss-20b/" + std::string(name(level))).c_str(),
                                 gpt_oss_20b, level)
        ->ArgNames({"tokens", "threads"})
        ->ArgsProduct({{1, 8, 64}, {1, 2}})
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
