#include "engine/expert_rows.hpp"

#include <algorithm>
#include <cmath>

#include "engine/activation_rows.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/dequantize.hpp"
#include "quant/gpu/functions.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

float capped(float x, float limit) { return x > limit ? limit : x; }
float clamped(float x, float limit) { return x > limit ? limit : (x < -limit ? -limit : x); }

float exact_activation(const ActivationNumerics& numerics, const ActivationParameters& p,
                       float gate, float up) {
  const bool step = p.form == ActivationForm::silu_clamp_after;
  if (numerics.clamp_nan == ClampNan::dropped &&
      (step || (p.form == ActivationForm::swiglu && numerics.is_parametric))) {
    if (std::isnan(up)) up = p.limit;
    if (std::isnan(gate) && step) {
      // min(silu(NaN), L)
      return exact::round_to(numerics.output,
                             static_cast<double>(p.limit) * clamped(up, p.limit) + 0.0);
    }
    if (std::isnan(gate)) gate = p.limit;
  }
  const bool plain_silu = p.form == ActivationForm::swiglu && p.alpha == 1.0f && p.beta == 0.0f;
  if (!numerics.rounds_silu || !plain_silu) return activate(p, gate, up, numerics.output);
  const ActivationParameters silu{ActivationForm::silu};
  const float s = activate(silu, 0.0f, capped(gate, p.limit), numerics.output);
  return exact::round_to(numerics.output, static_cast<double>(s) * clamped(up, p.limit) + 0.0);
}

/// The same of columns side by side.
void exact_activations(const ActivationNumerics& numerics, const ActivationParameters& p,
                       std::span<const float> gate, std::span<const float> up,
                       std::span<float> out) {
  const auto one = [&](std::size_t i) {
    out[i] = exact_activation(numerics, p, gate.empty() ? 0.0f : gate[i], up[i]);
  };
  if (numerics.rounds_silu) {
    for (std::size_t i = 0; i < up.size(); ++i) one(i);
    return;
  }
  activate_all(p, gate, up, numerics.output, out);
  for (std::size_t i = 0; numerics.clamp_nan == ClampNan::dropped && i < up.size(); ++i) {
    if (std::isnan(up[i]) || (!gate.empty() && std::isnan(gate[i]))) one(i);
  }
}

std::vector<float> bias_values(const ScaledMatrix& bias) {
  std::vector<float> values;
  for (std::int64_t i = 0; bias && i < bias.cols; ++i) {
    values.push_back(static_cast<float>(element_at(bias, 0, i)));
  }
  return values;
}

/// Rows plus bias in f32; the row itself if there is none.
std::span<const float> with_bias(NumericsLevel level, std::span<const float> row,
                                 std::span<const float> bias, std::vector<float>& sums) {
  if (bias.empty() || row.empty()) return row;
  sums.resize(row.size());
  for (std::size_t i = 0; i < row.size(); ++i) {
    sums[i] = level == NumericsLevel::replay ? gpu::add_ftz(row[i], bias[i]) : row[i] + bias[i];
  }
  return sums;
}

/// Where gate and up lie in a row of GEMM1's output of `width` columns each.
struct HalfColumns {
  std::int64_t gate = 0;
  std::int64_t up = 0;
  std::int64_t stride = 1;
};

HalfColumns half_columns(GateOrder order, bool gated, std::int64_t width) {
  if (!gated) return {};
  if (order == GateOrder::interleaved) return {0, 1, 2};
  if (order == GateOrder::up_gate) return {width, 0, 1};
  return {0, width, 1};
}

/// Rows as they are read back from codes.
std::vector<float> through_codes(const ActivationQuantizer& quantizer, std::vector<float> values,
                                 std::int64_t rows, std::int64_t cols, int threads) {
  Rows stored("gemm1", Format::f32, rows, cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    stored.put(row, 0, std::span(values).subspan(to_size(row * cols), to_size(cols)));
  }
  const StageOperand codes = quantized_operand(quantizer, stored, {}, {}, threads);
  dequantize(codes.matrix, DequantizeOrder::once, Format::f32, values);
  return values;
}

std::vector<float> selected(std::span<const float> values, std::span<const std::int64_t> rows) {
  std::vector<float> result;
  if (values.empty()) return result;
  for (const std::int64_t row : rows) result.push_back(values[to_size(row)]);
  return result;
}

}  // namespace

void run_first_half(const Numerics& numerics, const ExpertView& view, const LayerOperand& x,
                    const ExpertBatch& batch, const ExpertStages& stages, int threads,
                    GemmStatistics* statistics) {
  const Expert& expert = *view.expert;
  const NumericsLevel level = x.level();
  const std::int64_t width = expert.up.rows;
  const std::int64_t count = std::ssize(batch.sources);
  const LayerGemm gemm(x, batch.sources, threads);
  std::vector<float> scales = selected(x.row_scales(), batch.sources);
  GemmArguments arguments;
  if (numerics.router_weight == WeightPoint::input) {
    scales.resize(batch.weights.size(), 1.0f);
    for (std::size_t i = 0; i < scales.size(); ++i) scales[i] *= batch.weights[i];
  }
  if (numerics.router_weight == WeightPoint::gemm1) arguments.row_weights = batch.weights;
  arguments.row_scales = scales;
  const auto multiply = [&](const ScaledMatrix& weight, const ScaledMatrix& bias, float factor) {
    std::vector<float> out(to_size(count * width));
    arguments.factor = factor;
    arguments.bias = numerics.activation.adds_bias ? ScaledMatrix{} : bias;
    gemm.run(weight, arguments, out.data(), width, threads, statistics);
    return out;
  };
  const auto stored = [&](std::vector<float> values) {
    return numerics.gemm1_output
               ? through_codes(numerics.gemm1_output, std::move(values), count, width, threads)
               : values;
  };
  std::vector<float> gate;
  if (expert.gate) gate = stored(multiply(expert.gate, expert.gate_bias, view.gate_factor));
  const std::vector<float> up = stored(multiply(expert.up, expert.up_bias, view.up_factor));

  const bool adds = numerics.activation.adds_bias;
  const std::vector<float> gate_bias = bias_values(adds ? expert.gate_bias : ScaledMatrix{});
  const std::vector<float> up_bias = bias_values(adds ? expert.up_bias : ScaledMatrix{});
  const HalfColumns columns = half_columns(stages.order, static_cast<bool>(expert.gate), width);
  struct Scratch {
    std::vector<float> gate;
    std::vector<float> up;
    std::vector<float> act;
  };
  // Parts of rows, so that one row is work for every thread.
  constexpr std::int64_t kPart = 256;
  const std::int64_t parts = (width + kPart - 1) / kPart;
  parallel_for<Scratch>(count * parts, threads, [&](std::int64_t task, Scratch& scratch) {
    const std::int64_t i = task / parts;
    const std::int64_t col = task % parts * kPart;
    const std::size_t size = to_size(std::min(width - col, kPart));
    const auto part = [&](const std::vector<float>& values, std::int64_t row) {
      return values.empty() ? std::span<const float>()
                            : std::span(values).subspan(to_size(row * width + col), size);
    };
    std::span<const float> gates = part(gate, i);
    std::span<const float> ups = part(up, i);
    const std::int64_t result = batch.results[to_size(i)];
    const std::int64_t gate_col = columns.gate + col * columns.stride;
    const std::int64_t up_col = columns.up + col * columns.stride;
    if (stages.gemm1 != nullptr) {
      stages.gemm1->put(result, gate_col, gates, columns.stride);
      stages.gemm1->put(result, up_col, ups, columns.stride);
    }
    if (stages.given_gemm1 != nullptr) {
      scratch.gate.resize(gates.size());
      scratch.up.resize(ups.size());
      stages.given_gemm1->get(result, gate_col, scratch.gate, columns.stride);
      stages.given_gemm1->get(result, up_col, scratch.up, columns.stride);
      gates = scratch.gate;
      ups = scratch.up;
    }
    scratch.act.resize(size);
    gates = with_bias(level, gates, part(gate_bias, 0), scratch.gate);
    ups = with_bias(level, ups, part(up_bias, 0), scratch.up);
    if (level == NumericsLevel::replay) {
      kernel_activations(numerics.activation, view.activation, gates, ups, scratch.act);
    } else {
      exact_activations(numerics.activation, view.activation, gates, ups, scratch.act);
    }
    stages.act->put(result, col, scratch.act);
  });
}

void run_second_half(const Numerics& numerics, const ExpertView& view, const LayerOperand& x,
                     const ExpertBatch& batch, Rows& gemm2, int threads,
                     GemmStatistics* statistics) {
  const Expert& expert = *view.expert;
  const std::int64_t width = expert.down.rows;
  const LayerGemm gemm(x, batch.sources, threads);
  const std::vector<float> scales = selected(x.row_scales(), batch.sources);
  GemmArguments arguments;
  arguments.factor = view.down_factor;
  arguments.row_scales = scales;
  arguments.bias = expert.down_bias;
  if (numerics.router_weight == WeightPoint::gemm2) arguments.row_weights = batch.weights;
  std::vector<float> out(batch.sources.size() * to_size(width));
  gemm.run(expert.down, arguments, out.data(), width, threads, statistics);
  for (std::size_t i = 0; i < batch.results.size(); ++i) {
    gemm2.put(batch.results[i], 0, std::span(out).subspan(i * to_size(width), to_size(width)));
  }
}

}  // namespace moeref
