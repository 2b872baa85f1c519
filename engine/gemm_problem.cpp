#include "engine/gemm_problem.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

Tail tail_of(const ScaledMatrix& x, const ScaledMatrix& weight, const GemmEpilogue& epilogue,
             std::size_t row) {
  Tail tail;
  const double scale = epilogue.row_scales.empty() ? 1.0 : epilogue.row_scales[row];
  tail.factor = scale * epilogue.factor;
  if (!epilogue.row_weights.empty()) tail.weight = epilogue.row_weights[row];
  tail.finite = std::isfinite(tail.factor) && std::isfinite(tail.weight);
  for (const double multiplier :
       {tail.factor, tail.weight, global_multiplier(x), global_multiplier(weight)}) {
    if (multiplier != 1.0) tail.multipliers[tail.multiplier_count++] = multiplier;
  }
  for (const double divisor : {global_divisor(x), global_divisor(weight)}) {
    if (divisor != 1.0) tail.divisors[tail.divisor_count++] = divisor;
  }
  return tail;
}

RowReach reach_of(const GemmProblem& problem, std::int64_t row) {
  RowReach reach;
  for (std::int64_t s = 0; s < problem.segments(); ++s) {
    const Window& window = problem.window(row, s);
    const double scale = problem.x_scale(row, s);
    if (window.empty || scale == 0.0) continue;
    reach.total += window.total * std::fabs(scale) * (1.0 + 0x1p-30);
    if (!std::isfinite(scale)) continue;
    reach.lowest = std::min(reach.lowest, window.lowest + lowest_exponent(scale));
  }
  return reach;
}

}  // namespace

simd::OutputType output_type(Format output) {
  switch (output) {
    case Format::bf16:
      return {8, -126, 127};
    case Format::f16:
      return {11, -14, 15};
    default:
      return {24, -126, 127};
  }
}

bool has_short_significands(const ScaledMatrix& matrix) {
  constexpr int kShort = 12;
  const bool narrow = matrix.scales && !has_wide_scales(matrix);
  return info(matrix.codes.format).significand_bits +
             (narrow ? info(matrix.scales->format).significand_bits : 0) <=
         kShort;
}

GemmProblem describe_gemm(const GemmInput& x, const ScaledMatrix& weight,
                          const GemmEpilogue& epilogue, int threads) {
  if (x.matrix().cols != weight.cols) {
    fail(weight.name, "has {} columns, its input {} has {}; they must be equal", weight.cols,
         x.matrix().name, x.matrix().cols);
  }
  check_storage(weight);
  if (epilogue.bias) {
    check_storage(epilogue.bias);
    if (epilogue.bias.rows != 1 || epilogue.bias.cols != weight.rows) {
      fail(epilogue.bias.name, "is [{}, {}]; the bias of {} must be [1, {}]", epilogue.bias.rows,
           epilogue.bias.cols, weight.name, weight.rows);
    }
  }
  for (const std::span<const float> rows : {epilogue.row_scales, epilogue.row_weights}) {
    if (rows.empty() || std::ssize(rows) == x.count()) continue;
    fail(weight.name, "is given {} row factors for {} rows", rows.size(), x.count());
  }
  const std::array<const ScaledMatrix*, 2> operands{&x.matrix(), &weight};
  GemmProblem problem{
      .x = x,
      .weight = weight,
      .epilogue = epilogue,
      .measured = x.prepared().measured(segment_bounds(operands, weight.cols), threads),
      .kernels = chosen_kernels(),
      .wide_weight_scales = has_wide_scales(weight)};
  for (std::int64_t i = 0; i < x.count(); ++i) {
    int bits = 0;
    for (const Window& window : problem.windows(i)) {
      if (!window.empty) bits = std::max(bits, window.sum - window.lowest);
    }
    problem.x_bits.push_back(bits);
    problem.most_bits = std::max(problem.most_bits, bits);
    problem.reaches.push_back(reach_of(problem, i));
    problem.tails.push_back(tail_of(x.matrix(), weight, epilogue, to_size(i)));
  }
  return problem;
}

}  // namespace moeref
