#include "engine/layer_gemm.hpp"

#include <cmath>
#include <numeric>
#include <optional>

#include "engine/exact/rounding.hpp"
#include "engine/kernel_rounding.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/gpu/functions.hpp"

namespace moeref {
namespace {

/// Activations that are prepared for all experts at once: 256 MiB of f64 numbers.
constexpr std::int64_t kMostPrepared = 1 << 25;
/// So few that all together stay in a cache: then every thread has rows to prepare.
constexpr std::int64_t kFewPrepared = 1 << 20;

/// The f32 operations of a kernel's epilogue, with or without flush.
struct Epilogue {
  bool flushes;
  float times(float a, float b) const { return flushes ? gpu::mul_ftz(a, b) : gpu::mul(a, b); }
  float plus(float a, float b) const {
    return flushes ? gpu::add_ftz(a, b) : gpu::canonical(a + b);
  }
  float fused(float a, float b, float c) const {
    return flushes ? gpu::fma_ftz(a, b, c) : gpu::fma(a, b, c);
  }
};

/// Without the scales that the expert's number already holds.
ScaledMatrix bare(ScaledMatrix matrix, bool whole_scale) {
  matrix.global_rule = GlobalScaleRule::none;
  matrix.global_scale = 1.0f;
  if (whole_scale) matrix.scales = std::nullopt;
  return matrix;
}

/// The scale of a row (or of the whole matrix) as the epilogue multiplies it.
float whole_row_scale(const ScaledMatrix& matrix, std::int64_t row) {
  const float block = matrix.scales ? scale_at(matrix, row, 0) : 1.0f;
  if (matrix.global_rule != GlobalScaleRule::multiply) return block;
  return matrix.scales ? gpu::mul(block, matrix.global_scale) : matrix.global_scale;
}

std::variant<GemmInput, accumulate::MainloopInput> read_input(const LayerOperand& operand,
                                                              std::span<const std::int64_t> rows,
                                                              int threads) {
  if (operand.level() == NumericsLevel::replay) {
    return accumulate::mainloop_input(operand.numerics().mainloop, operand.matrix(), rows);
  }
  return operand.input(rows, threads);
}

}  // namespace

LayerOperand::LayerOperand(const GemmNumerics& numerics, NumericsLevel level, const StageOperand& x,
                           bool is_shared, int threads)
    : numerics_(numerics),
      level_(level),
      matrix_(numerics.factor == SumFactor::expert ? bare(x.matrix, x.whole_scale) : x.matrix),
      row_scales_(x.row_scales) {
  const bool fits = matrix_.rows * matrix_.cols <= (is_shared ? kMostPrepared : kFewPrepared);
  if (level == NumericsLevel::replay || !fits) return;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(matrix_.rows));
  std::iota(rows.begin(), rows.end(), 0);
  prepared_ = std::make_shared<const PreparedRows>(matrix_, rows, threads);
}

GemmInput LayerOperand::input(std::span<const std::int64_t> rows, int threads) const {
  return prepared_ != nullptr ? GemmInput(prepared_, rows) : GemmInput(matrix_, rows, threads);
}

LayerGemm::LayerGemm(const LayerOperand& operand, std::span<const std::int64_t> rows, int threads)
    : operand_(operand),
      numerics_(operand.numerics()),
      rows_(rows.begin(), rows.end()),
      input_(read_input(operand, rows, threads)) {}

void LayerGemm::run(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                    std::int64_t stride, int threads, GemmStatistics* statistics) const {
  const ScaledMatrix used =
      numerics_.factor == SumFactor::expert ? bare(weight, /*whole_scale=*/false) : weight;
  GemmArguments first = arguments;
  if (numerics_.rounds_before_weight) first.row_weights = {};
  if (std::holds_alternative<GemmInput>(input_)) {
    run_exact(used, first, out, stride, threads, statistics);
  } else {
    run_replay(used, first, out, stride, threads);
  }
  if (!numerics_.rounds_before_weight || arguments.row_weights.empty()) return;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    for (std::int64_t n = 0; n < weight.rows; ++n) {
      float& value = out[static_cast<std::int64_t>(i) * stride + n];
      if (std::holds_alternative<GemmInput>(input_)) {
        value = exact::round_to(numerics_.output,
                                static_cast<double>(value) * arguments.row_weights[i] + 0.0);
      } else {
        value = kernel_rounded(numerics_.output, gpu::mul(value, arguments.row_weights[i]));
      }
    }
  }
}

void LayerGemm::run_exact(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                          std::int64_t stride, int threads, GemmStatistics* statistics) const {
  GemmEpilogue epilogue;
  epilogue.output = numerics_.output;
  epilogue.row_scales = arguments.row_scales;
  if (numerics_.factor == SumFactor::expert) epilogue.factor = arguments.factor;
  if (numerics_.bias != GemmBias::none) epilogue.bias = arguments.bias;
  epilogue.row_weights = arguments.row_weights;
  gemm(std::get<GemmInput>(input_), weight, epilogue, out, stride, threads, statistics);
}

void LayerGemm::run_replay(const ScaledMatrix& weight, const GemmArguments& arguments, float* out,
                           std::int64_t stride, int threads) const {
  if (!arguments.row_scales.empty()) {
    fail(weight.name, "cannot be replayed with scales of rows apart from its operand's");
  }
  accumulate::run_mainloop(numerics_.mainloop, std::get<accumulate::MainloopInput>(input_), weight,
                           out, stride, threads);
  const Epilogue op{numerics_.flushes};
  std::vector<float> column_scales;
  if (numerics_.factor == SumFactor::row_times_column) {
    for (std::int64_t n = 0; n < weight.rows; ++n) {
      column_scales.push_back(whole_row_scale(weight, n));
    }
  }
  std::vector<float> biases(static_cast<std::size_t>(weight.rows), 0.0f);
  const bool has_bias = numerics_.bias != GemmBias::none && arguments.bias;
  for (std::int64_t n = 0; has_bias && n < weight.rows; ++n) {
    biases[static_cast<std::size_t>(n)] = static_cast<float>(element_at(arguments.bias, 0, n));
  }
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const float row_scale = numerics_.factor == SumFactor::row_times_column
                                ? whole_row_scale(operand_.matrix(), rows_[i])
                                : 1.0f;
    for (std::int64_t n = 0; n < weight.rows; ++n) {
      float& value = out[static_cast<std::int64_t>(i) * stride + n];
      const float bias = biases[static_cast<std::size_t>(n)];
      if (numerics_.bias == GemmBias::fused) {
        value = op.fused(arguments.factor, value, bias);
      } else if (numerics_.factor == SumFactor::expert) {
        value = op.times(arguments.factor, value);
      } else if (numerics_.factor == SumFactor::row_times_column) {
        value = op.times(value, op.times(row_scale, column_scales[static_cast<std::size_t>(n)]));
      }
      if (numerics_.bias == GemmBias::added && has_bias) value = op.plus(value, bias);
      if (!arguments.row_weights.empty()) {
        value = op.times(arguments.row_weights[i], value);
      }
      if (numerics_.clears_minus_zero) value = op.plus(value, 0.0f);
      value = kernel_rounded(numerics_.output, value);
    }
  }
}

}  // namespace moeref
