// Quantizers on bf16 rows and dequantization of weights to f32, for each instruction set, one
// thread. x_read: time of reading the input once, x_write: of writing the output once, in memory
// far larger than the caches, over the time taken (1 = as fast as memory).
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "bench/bench_context.hpp"
#include "quant/dequantize.hpp"
#include "quant/quantize.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kRows = 4096;
constexpr std::int64_t kCols = 4096;

struct Case {
  const char* name;
  std::vector<std::string> options;
  std::optional<float> given;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"sglang_fp8_group", {"math=fast"}, std::nullopt},
      {"sglang_fp8_group", {"math=precise", "version=v0"}, std::nullopt},
      {"deepgemm_fp8_token", {}, std::nullopt},
      {"deepgemm_fp8_block", {}, std::nullopt},
      {"flashinfer_mxfp8", {}, std::nullopt},
      {"flashinfer_mxfp4", {}, std::nullopt},
      {"flashinfer_nvfp4", {}, 448.0f},
      {"sglang_fp8_static", {}, 0.01f},
      {"sglang_fp8_token", {}, std::nullopt},
      {"modelopt_nvfp4", {}, std::nullopt},
      {"modelopt_mxfp4", {}, std::nullopt},
      {"compressed_tensors_fp8", {}, std::nullopt},
  };
  return all;
}

const bench::Operand& numbers() {
  static const bench::Operand operand = bench::random_activations("bf16", kRows, kCols, 1);
  return operand;
}

ValueMatrix values(std::int64_t rows) {
  return {"numbers", Format::bf16, rows, kCols,
          std::span(numbers().codes).first(static_cast<std::size_t>(2 * rows * kCols))};
}

/// Whether the instruction set gives the bytes of the scalar loops.
void verify(const QuantizePlan& plan, const Case& chosen, const char* isa) {
  simd::use_kernels("scalar");
  const Quantized expected = quantize(plan, values(128), chosen.given, 1);
  simd::use_kernels(isa);
  const Quantized found = quantize(plan, values(128), chosen.given, 1);
  if (found.codes == expected.codes && found.scales == expected.scales) return;
  std::cerr << chosen.name << ": " << isa << " differs from scalar\n";
  std::exit(1);
}

void quantize_rows(benchmark::State& state, const Case& chosen, const char* isa) {
  const Quantizer& quantizer = find_quantizer(chosen.name);
  const QuantizePlan plan = quantizer.plan(
      parse_options(quantizer.name, quantizer.options, chosen.options), Format::bf16);
  verify(plan, chosen, isa);
  Quantized out;
  quantize(plan, values(kRows), chosen.given, 1, out);
  for (auto _ : state) {
    quantize(plan, values(kRows), chosen.given, 1, out);
    benchmark::DoNotOptimize(out.codes.data());
  }
  const double bytes = 2.0 * kRows * kCols;
  state.counters["bytes"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["x_read"] = benchmark::Counter(bytes / bench::read_bandwidth(),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void dequantize_rows(benchmark::State& state, const char* form, const char* isa) {
  simd::use_kernels(isa);
  const bench::Operand weight = bench::random_weight(form, kRows, kCols, 2);
  std::vector<float> out(static_cast<std::size_t>(kRows * kCols));
  for (auto _ : state) {
    dequantize(weight.matrix, DequantizeOrder::checkpoint, Format::f32, out);
    benchmark::DoNotOptimize(out.data());
  }
  const double bytes = 4.0 * kRows * kCols;
  state.counters["bytes"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["x_write"] = benchmark::Counter(bytes / bench::write_bandwidth(),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    for (const Case& chosen : cases()) {
      std::string name = std::string("BM_quantize/") + chosen.name;
      for (const std::string& option : chosen.options) name += "," + option;
      benchmark::RegisterBenchmark((name + "/" + *isa).c_str(), quantize_rows, chosen, *isa)
          ->Unit(benchmark::kMillisecond);
    }
    for (const char* form : {"mxfp4", "nvfp4", "mxfp8", "fp8_channel", "fp8_block", "bf16"}) {
      benchmark::RegisterBenchmark((std::string("BM_dequantize/") + form + "/" + *isa).c_str(),
                                   dequantize_rows, form, *isa)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

}  // namespace
}  // namespace moeref

int main(int argc, char** argv) { return moeref::bench::run(argc, argv, moeref::register_all); }
