#include "engine/accumulate/mainloop.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "engine/accumulate/matrix_chain.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/gpu/functions.hpp"
#include "quant/parallel.hpp"
#include "quant/row_decoder.hpp"
#include "simd/kernels.hpp"

namespace moeref::accumulate {
namespace {

constexpr std::size_t kColumns = simd::kPanelColumns;
constexpr std::int16_t kNoTerm = 10'000;  ///< the lowest exponent where all terms are zero

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The smallest exponent of numbers of a format: that of its subnormals.
int smallest_exponent(Format format) { return 1 - mini_float(format).bias; }

/// 2^exponent of a finite number of a format whose smallest exponent's power is given.
float power_of(float value, float smallest) {
  if (value == 0.0f) return 0.0f;
  const auto power = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & kF32Infinity);
  return std::max(power, smallest);
}

int exponent_of_power(float power) {
  return static_cast<int>(std::bit_cast<std::uint32_t>(power) >> 23) - 127;
}

/// A number of `format` from its value.
UnitNumber number_of(Format format, float value) {
  UnitNumber number;
  number.negative = std::signbit(value);
  if (std::isnan(value)) {
    number.kind = NumberKind::nan;
    return number;
  }
  if (std::isinf(value)) {
    number.kind = NumberKind::infinite;
    return number;
  }
  const int fraction_bits = mini_float(format).mantissa_bits;
  number.fraction_bits = static_cast<std::uint8_t>(fraction_bits);
  if (value == 0.0f) return number;
  const int exponent = std::max(std::ilogb(value), smallest_exponent(format));
  number.exponent = static_cast<std::int16_t>(exponent);
  number.significand =
      static_cast<std::int32_t>(std::ldexp(static_cast<double>(value), fraction_bits - exponent));
  return number;
}

bool needs_row_scales(Promotion promotion) {
  return promotion == Promotion::fma_product || promotion == Promotion::fma_row ||
         promotion == Promotion::fma_column;
}

bool needs_column_scales(Promotion promotion) {
  return needs_row_scales(promotion) || promotion == Promotion::column_groups;
}

/// The scale of each chain of one row.
void read_scales(const Mainloop& mainloop, const ScaledMatrix& matrix, std::int64_t row, float* out,
                 std::size_t stride) {
  const std::int64_t chains = chain_count(mainloop, matrix.cols);
  const std::int64_t length = mainloop.chain == 0 ? matrix.cols : mainloop.chain;
  for (std::int64_t chain = 0; chain < chains; ++chain) {
    out[to_size(chain) * stride] = matrix.scales ? scale_at(matrix, row, chain * length) : 1.0f;
  }
}

void check_chains(const Mainloop& mainloop, const ScaledMatrix& matrix) {
  if (!matrix.scales) return;
  const std::int64_t length = mainloop.chain == 0 ? matrix.cols : mainloop.chain;
  const ScaleGrid& scales = *matrix.scales;
  const bool one_block = scales.block_cols >= scales.col_begin + matrix.cols;
  if (one_block || (scales.block_cols % length == 0 && scales.col_begin % length == 0)) return;
  fail(matrix.name,
       "has a scale per {} columns; a main loop that joins its sums every {} needs a "
       "multiple of that",
       scales.block_cols, length);
}

/// Sixteen columns of the right operand side by side.
struct Panel {
  std::int64_t first = 0;
  std::int64_t columns = 0;
  std::vector<float> decoded;  ///< [16, k]
  std::vector<float> values;   ///< [depth, 16], NaN and infinity as 0
  std::vector<float> powers;
  std::vector<std::int16_t> lowest;  ///< [steps]
  std::vector<std::int16_t> largest;
  std::vector<float> scales;  ///< [chains, 16]
  std::uint16_t not_finite = 0;
  int lowest_of_all = kNoTerm;
  int largest_of_all = -kNoTerm;
};

struct Scratch {
  Panel panel;
  std::vector<float> chain;            ///< [rows, 16]: the chain's accumulators
  std::vector<float> sums;             ///< [rows, 16]: joined
  std::vector<std::uint16_t> outside;  ///< [rows]
  std::vector<UnitNumber> row_terms;
  std::vector<UnitNumber> column_terms;
};

/// Everything that stays over the panels of one GEMM.
struct Job {
  const Mainloop& mainloop;
  const MainloopInput& x;
  const ScaledMatrix& weight;
  Format weight_format;
  RowDecoder decoder;
  std::vector<std::int64_t> order;
  const simd::KernelTable& kernels;
  std::int64_t chains;
  std::int64_t chain_depth;  ///< terms of a chain
  bool by_kernel;
  bool rows_finite;
  int lowest_of_rows;
  int largest_of_rows;

  std::int64_t terms() const { return mainloop.unit.terms; }
};

void fill_panel(const Job& job, std::int64_t first, Panel& panel) {
  const std::int64_t k = job.weight.cols;
  const auto depth = job.order.size();
  panel.first = first;
  panel.columns = std::min(static_cast<std::int64_t>(kColumns), job.weight.rows - first);
  panel.decoded.resize(to_size(panel.columns * k));
  for (std::int64_t j = 0; j < panel.columns; ++j) {
    job.decoder(first + j, 1, panel.decoded.data() + j * k);
  }
  panel.values.resize(depth * kColumns);
  panel.powers.resize(depth * kColumns);
  for (std::size_t t = 0; t < depth; ++t) {
    float* to = panel.values.data() + t * kColumns;
    if (job.order[t] < 0) {
      std::fill_n(to, kColumns, 0.0f);
      continue;
    }
    const float* from = panel.decoded.data() + job.order[t];
    if (panel.columns == static_cast<std::int64_t>(kColumns)) {
      for (std::size_t j = 0; j < kColumns; ++j) to[j] = from[to_size(k) * j];
    } else {
      for (std::size_t j = 0; j < kColumns; ++j) {
        to[j] = static_cast<std::int64_t>(j) < panel.columns ? from[to_size(k) * j] : 0.0f;
      }
    }
  }
  const auto steps = depth / to_size(job.terms());
  const auto step_size = to_size(job.terms()) * kColumns;
  panel.lowest.assign(steps, kNoTerm);
  panel.largest.assign(steps, -kNoTerm);
  panel.not_finite = 0;
  panel.lowest_of_all = kNoTerm;
  panel.largest_of_all = -kNoTerm;
  const float smallest = std::ldexp(1.0f, smallest_exponent(job.weight_format));
  for (std::size_t step = 0; step < steps; ++step) {
    float* values = panel.values.data() + step * step_size;
    float low = 0.0f;
    float high = 0.0f;
    const auto measure = [&] {
      job.kernels.matrix->powers(values, step_size, smallest,
                                 panel.powers.data() + step * step_size, &low, &high);
    };
    measure();
    if (std::isinf(high)) {
      for (std::size_t i = 0; i < step_size; ++i) {
        if (std::isfinite(values[i])) continue;
        panel.not_finite |= static_cast<std::uint16_t>(1u << (i % kColumns));
        values[i] = 0.0f;
      }
      measure();
    }
    if (high == 0.0f) continue;
    panel.lowest[step] = static_cast<std::int16_t>(exponent_of_power(low));
    panel.largest[step] = static_cast<std::int16_t>(exponent_of_power(high));
    panel.lowest_of_all = std::min<int>(panel.lowest_of_all, panel.lowest[step]);
    panel.largest_of_all = std::max<int>(panel.largest_of_all, panel.largest[step]);
  }
  panel.scales.assign(to_size(job.chains) * kColumns, 1.0f);
  if (!needs_column_scales(job.mainloop.promotion)) return;
  for (std::int64_t j = 0; j < panel.columns; ++j) {
    read_scales(job.mainloop, job.weight, first + j, panel.scales.data() + j, kColumns);
  }
}

simd::JoinForm join_form(Promotion promotion, bool first) {
  switch (promotion) {
    case Promotion::none:
    case Promotion::add:
      return simd::JoinForm::add;
    case Promotion::fma_product:
      return simd::JoinForm::fma_product;
    case Promotion::fma_row:
      return simd::JoinForm::fma_row;
    case Promotion::fma_column:
      return simd::JoinForm::fma_column;
    case Promotion::column_groups:
      break;
  }
  return first ? simd::JoinForm::scale_first : simd::JoinForm::scale_next;
}

/// The definition of a join, for one column.
float promoted(const Mainloop& mainloop, bool first, float p, float row, float column, float acc) {
  const auto times = [&](float a, float b) {
    return mainloop.flushes ? gpu::mul_ftz(a, b) : gpu::mul(a, b);
  };
  const auto fused = [&](float a, float b, float c) {
    return mainloop.flushes ? gpu::fma_ftz(a, b, c) : gpu::fma(a, b, c);
  };
  switch (mainloop.promotion) {
    case Promotion::none:
      return p;
    case Promotion::add:
      return gpu::canonical(acc + p);
    case Promotion::fma_product:
      return fused(p, times(row, column), acc);
    case Promotion::fma_row:
      return fused(times(p, row), column, acc);
    case Promotion::fma_column:
      return fused(times(p, column), row, acc);
    case Promotion::column_groups:
      return first ? times(p, column) : fused(p, column, acc);
  }
  return p;
}

/// The sums of all rows with one panel.
class PanelSums {
 public:
  PanelSums(const Job& job, Scratch& scratch) : job_(job), s_(scratch), panel_(scratch.panel) {}

  void run(std::int64_t first, float* acc, std::int64_t stride) {
    fill_panel(job_, first, panel_);
    const std::int64_t rows = job_.x.operand.rows;
    s_.sums.assign(to_size(rows) * kColumns, 0.0f);
    s_.outside.resize(to_size(rows));
    for (std::int64_t chain = 0; chain < job_.chains; ++chain) {
      s_.chain.assign(to_size(rows) * kColumns, 0.0f);
      const std::int64_t last =
          std::min(job_.x.operand.depth, (chain + 1) * job_.chain_depth) / job_.terms();
      for (std::int64_t step = chain * job_.chain_depth / job_.terms(); step < last; ++step) {
        run_step(step);
      }
      join(chain);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      std::copy_n(s_.sums.data() + to_size(i) * kColumns, panel_.columns, acc + i * stride + first);
    }
  }

 private:
  /// Runs of rows whose exponents the kernel takes, and the others term by term.
  void run_step(std::int64_t step) {
    const std::int64_t rows = job_.x.operand.rows;
    const bool all_fit = job_.by_kernel && job_.rows_finite && panel_.not_finite == 0 &&
                         fits(job_.lowest_of_rows + panel_.lowest_of_all,
                              job_.largest_of_rows + panel_.largest_of_all);
    std::int64_t row = 0;
    while (row < rows) {
      const std::int64_t begin = row;
      if (all_fit) {
        row = rows;
      } else {
        while (row < rows && row_fits(row, step)) ++row;
      }
      if (row > begin) run_rows(step, begin, row - begin);
      if (row < rows) {
        for (std::int64_t j = 0; j < panel_.columns; ++j) run_element(step, row, j);
        ++row;
      }
    }
  }

  static bool fits(int lowest, int largest) {
    return lowest >= simd::kLowestStepExponent && largest <= simd::kLargestStepExponent;
  }

  bool row_fits(std::int64_t row, std::int64_t step) const {
    if (!job_.by_kernel) return false;
    const UnitOperand& x = job_.x.operand;
    const auto at = to_size(row * (x.depth / job_.terms()) + step);
    return x.finite[to_size(row)] != 0 && fits(x.lowest[at] + panel_.lowest[to_size(step)],
                                               x.largest[at] + panel_.largest[to_size(step)]);
  }

  void run_rows(std::int64_t step, std::int64_t first, std::int64_t count) {
    const UnitOperand& x = job_.x.operand;
    const auto term = to_size(step * job_.terms());
    simd::StepOperands operands;
    operands.row_values = x.values.data() + to_size(first * x.depth) + term;
    operands.row_powers = x.powers.data() + to_size(first * x.depth) + term;
    operands.row_stride = to_size(x.depth);
    operands.rows = to_size(count);
    operands.column_values = panel_.values.data() + term * kColumns;
    operands.column_powers = panel_.powers.data() + term * kColumns;
    const simd::FusedStep kernel_step{to_size(job_.terms()), job_.mainloop.unit.fraction_bits,
                                      job_.mainloop.unit.output == StepOutput::e8m13_toward_zero};
    float* chain = s_.chain.data() + to_size(first) * kColumns;
    std::uint16_t* outside = s_.outside.data() + first;
    // The columns that are not finite, computed apart, must not be touched.
    std::vector<float> kept;
    if (panel_.not_finite != 0) kept.assign(chain, chain + to_size(count) * kColumns);
    job_.kernels.matrix->fused_step(kernel_step, operands, chain, outside);
    for (std::int64_t i = 0; i < count; ++i) {
      const unsigned apart = outside[i] | panel_.not_finite;
      if (apart == 0) continue;
      for (std::size_t j = 0; j < to_size(panel_.columns); ++j) {
        if ((apart >> j & 1u) == 0) continue;
        if ((panel_.not_finite >> j & 1u) != 0) {
          chain[to_size(i) * kColumns + j] = kept[to_size(i) * kColumns + j];
        }
        run_element(step, first + i, static_cast<std::int64_t>(j));
      }
    }
  }

  void run_element(std::int64_t step, std::int64_t row, std::int64_t column) {
    const UnitOperand& x = job_.x.operand;
    s_.row_terms.clear();
    s_.column_terms.clear();
    for (std::int64_t t = step * job_.terms(); t < (step + 1) * job_.terms(); ++t) {
      const std::int64_t k = job_.order[to_size(t)];
      s_.row_terms.push_back(number_of(x.format, x.values[to_size(row * x.depth + t)]));
      s_.column_terms.push_back(
          k < 0 ? UnitNumber{}
                : number_of(job_.weight_format,
                            panel_.decoded[to_size(column * job_.weight.cols + k)]));
    }
    float& sum = s_.chain[to_size(row) * kColumns + to_size(column)];
    sum = std::bit_cast<float>(fused_step(job_.mainloop.unit, s_.row_terms, s_.column_terms,
                                          std::bit_cast<std::uint32_t>(sum)));
  }

  void join(std::int64_t chain) {
    const std::int64_t rows = job_.x.operand.rows;
    if (job_.mainloop.promotion == Promotion::none) {
      s_.sums = s_.chain;
      return;
    }
    const simd::JoinForm form = join_form(job_.mainloop.promotion, chain == 0);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float row_scale =
          job_.x.scales.empty() ? 1.0f : job_.x.scales[to_size(i * job_.chains + chain)];
      const float* p = s_.chain.data() + to_size(i) * kColumns;
      float* sums = s_.sums.data() + to_size(i) * kColumns;
      const float* columns = panel_.scales.data() + to_size(chain) * kColumns;
      const unsigned unsure =
          job_.kernels.matrix->join(form, job_.mainloop.flushes, p, row_scale, columns, sums);
      for (std::size_t j = 0; unsure != 0 && j < kColumns; ++j) {
        if ((unsure >> j & 1u) == 0) continue;
        sums[j] = promoted(job_.mainloop, chain == 0, p[j], row_scale, columns[j], sums[j]);
      }
    }
  }

  const Job& job_;
  Scratch& s_;
  Panel& panel_;
};

/// Whether the kernel computes what the unit does (simd::FusedStep).
bool kernel_takes(const FusedDot& unit) {
  const int sum_bits = unit.output == StepOutput::e8m13_toward_zero ? 23 : 31;
  return unit.zeros == ZeroOperands::skipped && unit.lowest_exponent <= simd::kLowestStepExponent &&
         unit.fraction_bits >= 13 && unit.fraction_bits <= 25 && unit.terms <= 32 &&
         std::int64_t{unit.terms} << (unit.fraction_bits + 2) <= std::int64_t{1} << sum_bits;
}

Format unit_format(const FusedDot& unit, Format native) { return unit.operand.value_or(native); }

/// Error: numbers or a unit that these loops do not sum, a chain that ends inside a step.
void check_form(const Mainloop& mainloop, const ScaledMatrix& matrix) {
  const FusedDot& unit = mainloop.unit;
  if (unit_format(unit, matrix.codes.format) == Format::f32) {
    fail(matrix.name, "has f32 numbers; a main loop multiplies numbers of 16 bits and fewer");
  }
  if (unit.output == StepOutput::f16_nearest || unit.accumulator != AccumulatorPoint::fused ||
      unit.block_scales) {
    fail(matrix.name,
         "meets a unit with an f16 accumulator, one that is added afterwards, or block scales; a "
         "main loop needs an f32 accumulator that is a term of the steps");
  }
  const std::size_t whole = term_order(unit, 1).size();
  if (mainloop.promotion != Promotion::none && to_size(mainloop.chain) % whole != 0) {
    fail(matrix.name, "is summed in chains of {} columns; this unit needs a multiple of {}",
         mainloop.chain, whole);
  }
}

}  // namespace

UnitOperand unit_operand(const FusedDot& unit, Format format, std::int64_t rows, std::int64_t k,
                         std::span<const float> values) {
  const std::vector<std::int64_t> order = term_order(unit, k);
  UnitOperand operand;
  operand.format = unit_format(unit, format);
  operand.rows = rows;
  operand.depth = static_cast<std::int64_t>(order.size());
  operand.values.assign(to_size(rows) * order.size(), 0.0f);
  operand.powers.assign(to_size(rows) * order.size(), 0.0f);
  operand.finite.assign(to_size(rows), 1);
  const float smallest = std::ldexp(1.0f, smallest_exponent(operand.format));
  const std::int64_t steps = operand.steps(unit);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t step = 0; step < steps; ++step) {
      int lowest = kNoTerm;
      int largest = -kNoTerm;
      for (std::int64_t t = step * unit.terms; t < (step + 1) * unit.terms; ++t) {
        const std::int64_t source = order[to_size(t)];
        if (source < 0) continue;
        const float value = values[to_size(row * k + source)];
        operand.values[to_size(row * operand.depth + t)] = value;
        if (!std::isfinite(value)) {
          operand.finite[to_size(row)] = 0;
          continue;
        }
        const float power = power_of(value, smallest);
        operand.powers[to_size(row * operand.depth + t)] = power;
        if (power == 0.0f) continue;
        lowest = std::min(lowest, exponent_of_power(power));
        largest = std::max(largest, exponent_of_power(power));
      }
      operand.lowest.push_back(static_cast<std::int16_t>(lowest));
      operand.largest.push_back(static_cast<std::int16_t>(largest));
    }
  }
  return operand;
}

std::int64_t chain_count(const Mainloop& mainloop, std::int64_t k) {
  if (mainloop.promotion == Promotion::none) return 1;
  return mainloop.chain == 0 ? 1 : (k + mainloop.chain - 1) / mainloop.chain;
}

MainloopInput mainloop_input(const Mainloop& mainloop, const ScaledMatrix& matrix,
                             std::span<const std::int64_t> rows) {
  const simd::DefaultFloatEnvironment environment;
  check_storage(matrix);
  check_form(mainloop, matrix);
  const RowDecoder decode(matrix, /*clears_minus_zero=*/false);
  std::vector<float> values(rows.size() * to_size(matrix.cols));
  MainloopInput input;
  const auto chains = to_size(chain_count(mainloop, matrix.cols));
  const bool scaled = needs_row_scales(mainloop.promotion);
  if (scaled) {
    check_chains(mainloop, matrix);
    input.scales.resize(rows.size() * chains);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    decode(rows[i], 1, values.data() + i * to_size(matrix.cols));
    if (scaled) read_scales(mainloop, matrix, rows[i], input.scales.data() + i * chains, 1);
  }
  input.k = matrix.cols;
  input.operand = unit_operand(mainloop.unit, matrix.codes.format,
                               static_cast<std::int64_t>(rows.size()), matrix.cols, values);
  return input;
}

void run_mainloop(const Mainloop& mainloop, const MainloopInput& x, const ScaledMatrix& weight,
                  float* acc, std::int64_t stride, int threads) {
  const simd::DefaultFloatEnvironment environment;
  if (x.k != weight.cols) {
    fail(weight.name, "has {} columns, its input {}; they must be equal", weight.cols, x.k);
  }
  check_storage(weight);
  check_form(mainloop, weight);
  if (needs_column_scales(mainloop.promotion)) check_chains(mainloop, weight);
  const FusedDot& unit = mainloop.unit;
  const auto& operand = x.operand;
  const auto all_finite = std::all_of(operand.finite.begin(), operand.finite.end(),
                                      [](char flag) { return flag != 0; });
  const auto lowest = std::min_element(operand.lowest.begin(), operand.lowest.end());
  const auto largest = std::max_element(operand.largest.begin(), operand.largest.end());
  const Job job{.mainloop = mainloop,
                .x = x,
                .weight = weight,
                .weight_format = unit_format(unit, weight.codes.format),
                .decoder = RowDecoder(weight, /*clears_minus_zero=*/false),
                .order = term_order(unit, weight.cols),
                .kernels = *simd::active_kernels(),
                .chains = chain_count(mainloop, weight.cols),
                .chain_depth = mainloop.chain == 0 || mainloop.promotion == Promotion::none
                                   ? operand.depth
                                   : mainloop.chain,
                .by_kernel = kernel_takes(unit),
                .rows_finite = all_finite,
                .lowest_of_rows = lowest == operand.lowest.end() ? kNoTerm : *lowest,
                .largest_of_rows = largest == operand.largest.end() ? -kNoTerm : *largest};
  if (operand.rows == 0) return;
  const auto columns = static_cast<std::int64_t>(kColumns);
  parallel_for<Scratch>((weight.rows + columns - 1) / columns, threads,
                        [&](std::int64_t panel, Scratch& scratch) {
                          PanelSums(job, scratch).run(panel * columns, acc, stride);
                        });
}

}  // namespace moeref::accumulate
