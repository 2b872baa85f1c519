#include "engine/gemm_problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <span>

#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "simd/float_environment.hpp"

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

const simd::KernelTable& chosen_kernels() {
  const simd::KernelTable* kernels = simd::active_kernels();
  if (kernels == nullptr) {
    fail("MOEREF_ISA", "{} is not available on this CPU or in this build; unset it",
         std::getenv("MOEREF_ISA"));
  }
  return *kernels;
}

}  // namespace

bool has_short_significands(const ScaledMatrix& matrix) {
  constexpr int kShort = 12;
  const bool narrow = matrix.scales && !has_wide_scales(matrix);
  return info(matrix.codes.format).significand_bits +
             (narrow ? info(matrix.scales->format).significand_bits : 0) <=
         kShort;
}

GemmProblem describe_gemm(const GemmInput& x, const ScaledMatrix& weight,
                          const GemmEpilogue& epilogue) {
  if (x.matrix.cols != weight.cols) {
    fail(weight.name, "has {} columns, its input {} has {}; they must be equal", weight.cols,
         x.matrix.name, x.matrix.cols);
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
    if (rows.empty() || rows.size() == x.rows.size()) continue;
    fail(weight.name, "is given {} row factors for {} rows", rows.size(), x.rows.size());
  }
  const std::array<const ScaledMatrix*, 2> operands{&x.matrix, &weight};
  GemmProblem problem{.x = x,
                      .weight = weight,
                      .epilogue = epilogue,
                      .bounds = segment_bounds(operands, weight.cols),
                      .kernels = chosen_kernels(),
                      .wide_weight_scales = has_wide_scales(weight)};
  std::vector<double> row(to_size(weight.cols));
  for (std::int64_t i = 0; i < x.count(); ++i) {
    x.values.get(i, row);
    int bits = 0;
    for (std::int64_t s = 0; s < problem.segments(); ++s) {
      const bool finite = x.finite[to_size(i)] != 0;
      const Window window =
          finite ? window_of(std::span(row).subspan(to_size(problem.start(s)),
                                                    to_size(problem.end(s) - problem.start(s))),
                             *problem.kernels.gemm)
                 : Window{};
      if (!window.empty) bits = std::max(bits, window.sum - window.lowest);
      problem.x_windows.push_back(window);
      problem.x_scales.push_back(wide_scale(x.matrix, x.rows[to_size(i)], problem.start(s)));
    }
    problem.x_bits.push_back(bits);
    problem.most_bits = std::max(problem.most_bits, bits);
    problem.tails.push_back(tail_of(x.matrix, weight, epilogue, to_size(i)));
  }
  return problem;
}

GemmInput::GemmInput(const ScaledMatrix& input, std::span<const std::int64_t> selected)
    : matrix(input),
      rows(selected.begin(), selected.end()),
      values(std::ssize(rows), input.cols,
             static_cast<std::int64_t>(chosen_kernels().gemm->row_block)),
      finite(rows.size()) {
  const simd::DefaultFloatEnvironment environment;
  check_storage(matrix);
  OperandDecoder decoder(matrix);
  std::vector<double> row(to_size(matrix.cols));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    decoder.decode(rows[i], 1, row.data(), 0, 1, &finite[i]);
    values.put(static_cast<std::int64_t>(i), row);
  }
}

const SlicedRows& GemmInput::sliced(std::int64_t block_cols,
                                    const simd::SliceKernels& kernels) const {
  if (!sliced_ || sliced_->block_cols() != block_cols) {
    sliced_.emplace(values.cols(), block_cols, kernels);
    std::vector<double> row(to_size(values.cols()));
    for (std::int64_t i = 0; i < count(); ++i) {
      values.get(i, row);
      if (finite[to_size(i)] == 0) std::fill(row.begin(), row.end(), 0.0);
      sliced_->add(row);
    }
  }
  return *sliced_;
}

}  // namespace moeref
