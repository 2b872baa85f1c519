#include "bench/bench_context.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>

#include "bench/blas.hpp"
#include "bench/fma_peak.hpp"
#include "bench/markdown_reporter.hpp"
#include "io/counter_random.hpp"
#include "quant/formats.hpp"
#include "simd/kernels.hpp"

namespace moeref::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::vector<std::uint16_t> draws(std::int64_t count, std::uint64_t seed, std::string_view name) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  TensorRandom(seed, name).draws(0, values);
  return values;
}

float normal(std::uint16_t draw) {
  return static_cast<float>(normal_variate(draw)) / static_cast<float>(kNormalUnit);
}

void append(std::vector<std::byte>& bytes, std::uint32_t value, int width) {
  const auto* raw = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), raw, raw + width);
}

void set_scales(Operand& operand, Format format, std::int64_t block_rows, std::int64_t block_cols,
                std::uint64_t seed) {
  ScaledMatrix& m = operand.matrix;
  const std::int64_t rows = (m.rows + block_rows - 1) / block_rows;
  const std::int64_t cols = (m.cols + block_cols - 1) / block_cols;
  for (const std::uint16_t draw : draws(rows * cols, seed, "scales")) {
    if (format == Format::e8m0) append(operand.scales, 117u + draw % 4u, 1);
    if (format == Format::ue4m3) append(operand.scales, 40u + draw % 48u, 1);
    if (format == Format::f32) {
      const float scale = 0x1p-13f * (1.0f + static_cast<float>(draw) * 0x1p-16f);
      std::uint32_t bits;
      std::memcpy(&bits, &scale, 4);
      append(operand.scales, bits, 4);
    }
  }
  m.scales = ScaleGrid{operand.scales.data(), format, block_rows, block_cols, 0, 0, cols, 1};
}

}  // namespace

Operand random_weight(const char* form, std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  const std::string_view name = form;
  Operand operand;
  ScaledMatrix& m = operand.matrix;
  m.name = form;
  m.rows = rows;
  m.cols = cols;
  m.codes.row_stride = cols;
  const bool fp4 = name == "mxfp4" || name == "nvfp4";
  m.codes.format = fp4 ? Format::e2m1 : name == "bf16" ? Format::bf16 : Format::e4m3;
  for (const std::uint16_t draw : draws(fp4 ? rows * cols / 2 : rows * cols, seed, "codes")) {
    if (fp4) append(operand.codes, draw & 0xFFu, 1);
    if (name == "bf16")
      append(operand.codes, encode(Format::bf16, 0x1p-6f * normal(draw), EncodePolicy::eigen), 2);
    if (m.codes.format == Format::e4m3) {
      append(operand.codes, encode(Format::e4m3, 100.0f * normal(draw), EncodePolicy::ocp_saturate),
             1);
    }
  }
  if (name == "mxfp4" || name == "mxfp8") set_scales(operand, Format::e8m0, 1, 32, seed);
  if (name == "nvfp4") {
    set_scales(operand, Format::ue4m3, 1, 16, seed);
    m.global_rule = GlobalScaleRule::multiply;
    m.global_scale = 0x1.234568p-10f;
  }
  if (name == "fp8_channel") set_scales(operand, Format::f32, 1, cols, seed);
  if (name == "fp8_block") set_scales(operand, Format::f32, 128, 128, seed);
  m.codes.data = operand.codes.data();
  return operand;
}

Operand random_activations(const char* form, std::int64_t rows, std::int64_t cols,
                           std::uint64_t seed) {
  Operand operand;
  ScaledMatrix& m = operand.matrix;
  m.name = form;
  m.rows = rows;
  m.cols = cols;
  m.codes.row_stride = cols;
  if (std::string_view(form) == "mxfp4") return random_weight(form, rows, cols, seed);
  const bool f32 = std::string_view(form) == "f32";
  m.codes.format = f32 ? Format::f32 : Format::bf16;
  const auto low = draws(rows * cols, seed, "low");
  std::size_t i = 0;
  for (const std::uint16_t draw : draws(rows * cols, seed, "activations")) {
    const float value = normal(draw) * (1.0f + static_cast<float>(low[i++]) * 0x1p-24f);
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (f32) append(operand.codes, bits, 4);
    if (!f32) append(operand.codes, encode(Format::bf16, value, EncodePolicy::eigen), 2);
  }
  m.codes.data = operand.codes.data();
  return operand;
}

double read_bandwidth() {
  static const double measured = [] {
    const std::vector<std::uint64_t> memory(std::size_t{1} << 25, 1);  // 256 MiB
    double best = 0.0;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto begin = Clock::now();
      std::uint64_t sum = 0;
      for (const std::uint64_t value : memory) sum += value;
      benchmark::DoNotOptimize(sum);
      best = std::max(best, static_cast<double>(memory.size() * 8) / seconds_since(begin));
    }
    return best;
  }();
  return measured;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + (std::ssize(values) - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double write_bandwidth() {
  static const double measured = [] {
    std::vector<std::byte> memory(std::size_t{1} << 28);
    std::vector<double> seen;
    for (int repeat = 1; repeat <= 7; ++repeat) {
      const auto begin = Clock::now();
      std::memset(memory.data(), repeat, memory.size());
      benchmark::DoNotOptimize(memory.data());
      seen.push_back(static_cast<double>(memory.size()) / seconds_since(begin));
    }
    return median(seen);
  }();
  return measured;
}

double peak_f64_flops() {
  static const double measured = [] {
    double best = 0.0;
    for (int repeat = 0; repeat < 10; ++repeat) {
      best = std::max(best, fma_flops(simd::active_kernels()->isa));
    }
    return best;
  }();
  return measured;
}

namespace {

void add_context() {
  benchmark::AddCustomContext("OpenBLAS kernels", blas_core());
  benchmark::AddCustomContext("instruction set", simd::active_kernels()->isa);
  benchmark::AddCustomContext("read bandwidth, 1 thread",
                              std::to_string(read_bandwidth() / 1e9) + " GB/s");
  benchmark::AddCustomContext("write bandwidth, 1 thread",
                              std::to_string(write_bandwidth() / 1e9) + " GB/s");
  benchmark::AddCustomContext("f64 multiply-add peak, 1 thread",
                              std::to_string(peak_f64_flops() / 1e9) + " GFLOP/s");
}

}  // namespace

int run(int argc, char** argv, void (*register_all)()) {
  const auto markdown = std::find(argv, argv + argc, std::string_view("--markdown"));
  const bool prints_markdown = markdown != argv + argc;
  if (prints_markdown)
    argc = static_cast<int>(std::remove(markdown, argv + argc, *markdown) - argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_context();
  register_all();
  if (prints_markdown) {
    MarkdownReporter reporter;
    benchmark::RunSpecifiedBenchmarks(&reporter);
  } else {
    benchmark::RunSpecifiedBenchmarks();
  }
  return 0;
}

}  // namespace moeref::bench
