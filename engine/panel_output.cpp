#include "engine/panel_output.hpp"

#include <algorithm>
#include <cmath>

#include "engine/exact/exact_dot.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/exact/superaccumulator.hpp"
#include "quant/dequantize.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

void PanelOutput::finish_row(const Panel& panel, std::int64_t row) {
  const GemmEpilogue& epilogue = problem_.epilogue;
  const std::int64_t columns = panel.survey.columns;
  const Tail& tail = problem_.tails[to_size(row)];
  const bool proved = is_proved(problem_, panel, row);
  double addends[2][simd::kPanelColumns];  // where there are any
  simd::FinishTerms terms;
  terms.multipliers = tail.multipliers.data();
  terms.multiplier_count = tail.multiplier_count;
  terms.divisors = tail.divisors.data();
  terms.divisor_count = tail.divisor_count;
  if (epilogue.bias) {
    terms.addends[0] = addends[0];
    for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
      addends[0][j] = panel.bias[j] * tail.weight;  // 48 bits: exact
    }
  }
  bool finite = panel.finite && problem_.x.is_finite(row) && tail.finite;
  if (epilogue.residual != nullptr) {
    terms.addends[1] = addends[1];
    const float* residual = epilogue.residual + row * epilogue.residual_stride + panel.survey.first;
    std::fill_n(addends[1], simd::kPanelColumns, 0.0);
    for (std::size_t j = 0; j < to_size(columns); ++j) {
      addends[1][j] = residual[j];
      finite = finite && std::isfinite(residual[j]);
    }
  }
  double error[simd::kPanelColumns];  // where sums may lack something
  bool estimated[simd::kPanelColumns] = {};
  if (panel.folds) {
    terms.high = panel.high.data() + row * kPanelColumns;
    terms.low = panel.low.data() + row * kPanelColumns;
    std::copy_n(panel.error.data() + row * kPanelColumns, kPanelColumns, error);
    for (std::size_t j = 0; j < to_size(columns); ++j) estimated[j] = error[j] != 0.0;
    add_fold_errors(problem_, panel, row, error);
    terms.error = error;
  } else {
    terms.high = panel.sums.data() + row * kPanelColumns;
    if (problem_.segments() > 0) terms.row_scale = problem_.x_scale(row, 0);
    if (problem_.wide_weight_scales) terms.column_scales = panel.survey.scales.data();
    if (!proved) {
      // The scales come with the terms.
      std::fill_n(error, simd::kPanelColumns, 0.0);
      add_estimates(problem_, panel, row, 0, 1.0, kNoScales.data(), error);
      for (std::size_t j = 0; j < to_size(columns); ++j) estimated[j] = error[j] != 0.0;
      terms.error = error;
    }
  }
  float* out = out_ + row * out_stride_ + panel.survey.first;
  float values[simd::kPanelColumns];  // of a last panel, which may have fewer
  const bool whole = columns == kPanelColumns;
  const std::uint32_t doubts = problem_.kernels.gemm->finish(
      terms, output_type(problem_.epilogue.output), whole ? out : values);
  if (!whole) std::copy_n(values, columns, out);
  if (finite && proved && doubts == 0) {
    statistics_.one_sum += columns;
    return;
  }
  const auto addend = [&](std::size_t which, std::int64_t j) {
    return terms.addends[which] == nullptr ? 0.0 : addends[which][j];
  };
  for (std::int64_t j = 0; j < columns; ++j) {
    if (!finite && !is_finite(panel, row, j, addend(1, j))) {
      ++statistics_.not_finite;
      out[j] = class_of_ieee_sum(panel, row, j, addend(1, j));
    } else if ((doubts >> j & 1) != 0) {
      ++statistics_.wide;
      out[j] = by_itself(panel, row, j, {addend(0, j), addend(1, j)});
    } else {
      ++counter(panel, row, estimated[j]);
    }
  }
}

bool PanelOutput::is_finite(const Panel& panel, std::int64_t row, std::int64_t j,
                            double residual) const {
  return problem_.x.is_finite(row) && problem_.tails[to_size(row)].finite &&
         panel.survey.finite[to_size(j)] != 0 && std::isfinite(panel.bias[to_size(j)]) &&
         std::isfinite(residual);
}

std::int64_t& PanelOutput::counter(const Panel& panel, std::int64_t row, bool estimated) {
  if (estimated) return statistics_.estimated;
  const bool one = panel.part_begin(row + 1) - panel.part_begin(row) == 1;
  return one ? statistics_.one_sum : statistics_.split;
}

/// One output by itself, from exact sums of its segments.
float PanelOutput::by_itself(const Panel& panel, std::int64_t row, std::int64_t j,
                             std::array<double, 2> addends) {
  const Tail& tail = problem_.tails[to_size(row)];
  exact::LinearForm& form = scratch_.form;
  form.clear();
  read_weight_row(panel, j);
  for (std::int64_t s = 0; s < problem_.segments(); ++s) {
    const double scale = problem_.x_scale(row, s) *
                         panel.survey.scales[to_size(s * kPanelColumns + j)];  // 48 bits: exact
    const auto segment = [&](std::span<const double> values) {
      return values.subspan(to_size(problem_.start(s)),
                            to_size(problem_.end(s) - problem_.start(s)));
    };
    const std::span<const double> x = segment(problem_.x.values(row));
    const std::span<const double> w = segment(scratch_.weight_row);
    if (const auto sum = exact::exact_dot(x, w)) {
      form.add_product(scale, sum->hi);
      form.add_product(scale, sum->lo);
    } else {
      add_wide_sum(scale, x, w);
    }
  }
  for (std::size_t i = 0; i < tail.multiplier_count; ++i) form.multiply_by(tail.multipliers[i]);
  for (std::size_t i = 0; i < tail.divisor_count; ++i) form.divide_by(tail.divisors[i]);
  for (const double addend : addends) form.add(addend);
  return form.round(problem_.epilogue.output);
}

void PanelOutput::add_wide_sum(double scale, std::span<const double> x, std::span<const double> w) {
  exact::Superaccumulator accumulator;
  for (std::size_t k = 0; k < x.size(); ++k) accumulator.add(x[k] * w[k]);  // exact
  exact::Dyadic rest = accumulator.total();
  while (!rest.is_zero()) {
    const exact::Dyadic head = rest.truncated(kSumBits);
    scratch_.form.add_product(scale, head.to_double_odd());  // exact: it has at most 53 bits
    rest -= head;
  }
}

void PanelOutput::read_weight_row(const Panel& panel, std::int64_t j) {
  scratch_.weight_row.resize(to_size(problem_.depth()));
  reader_.decode_row(panel.survey.first + j, scratch_.weight_row);
}

/// NaN, +inf or -inf as the IEEE sum of the whole products has it, all factors of a product
/// included. As long as products of finite factors stay inside the f64 range (eight factors
/// near the end of f32's do not), the operands alone decide, and no order matters.
float PanelOutput::class_of_ieee_sum(const Panel& panel, std::int64_t row, std::int64_t j,
                                     double residual) {
  read_weight_row(panel, j);
  const Tail& tail = problem_.tails[to_size(row)];
  const double x_factor =
      global_multiplier(problem_.x.matrix()) / global_divisor(problem_.x.matrix());
  const double w_factor = global_multiplier(problem_.weight) / global_divisor(problem_.weight);
  double sum = panel.bias[to_size(j)];
  for (std::int64_t s = 0; s < problem_.segments() && !std::isnan(sum); ++s) {
    const double x_scale = problem_.x_scale(row, s) * x_factor;
    const double w_scale = panel.survey.scales[to_size(s * kPanelColumns + j)] * w_factor;
    for (std::int64_t k = problem_.start(s); k < problem_.end(s); ++k) {
      sum += (problem_.x.values(row)[to_size(k)] * x_scale) *
             (scratch_.weight_row[to_size(k)] * w_scale) * tail.factor;
    }
  }
  sum = sum * tail.weight + residual;
  return std::isnan(sum) ? exact::canonical_nan() : static_cast<float>(sum);
}

}  // namespace moeref
