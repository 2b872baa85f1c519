#include "engine/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <optional>

#include "engine/exact/exact_dot.hpp"
#include "engine/exact/linear_form.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/exact/superaccumulator.hpp"
#include "engine/gemm_problem.hpp"
#include "engine/row_parts.hpp"
#include "engine/weight_panel.hpp"
#include "quant/aligned.hpp"
#include "quant/dequantize.hpp"
#include "quant/parallel.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// |rounded sum of products - sum| / sum of |products| is at most this: the terms of a chunk one
/// after the other, then the chunks; or exact sums of blocks of 16 terms or more, one after the
/// other.
double sum_error(std::int64_t terms) {
  const std::int64_t steps =
      std::max(std::min(terms, kDepthChunk) + terms / kDepthChunk, terms / 16) + 16;
  return static_cast<double>(steps) * 0x1p-52;
}

/// One panel of the result on its way.
struct Panel {
  PanelSurvey survey;
  std::array<double, simd::kPanelColumns> bias{};
  /// Columns that leave activations far less room than their neighbours: they must not cost them
  /// their exact sums.
  std::array<char, simd::kPanelColumns> wide{};
  const RowParts* parts = nullptr;  ///< null: every row is one part
  bool folds = false;               ///< several sums make one output
  int room = 0;                     ///< bits that a row may span for exact sums in every column
  bool finite = true;               ///< all columns with their biases
  std::array<double, simd::kPanelColumns> norms{};  ///< of the columns, where rows are estimated
  AlignedVector<double> sums;                       ///< [part rows, kPanelColumns] of one segment
  AlignedVector<double> high;  ///< [rows, kPanelColumns], where it folds; with low and error
  AlignedVector<double> low;
  AlignedVector<double> error;
};

/// Bits that the sum over an activation segment may span so that its dot with every column of the
/// panel, but for the wide ones, is exact.
int choose_room(Panel& panel) {
  constexpr int kFarLess = 8;
  const auto& spread = panel.survey.spread;
  auto sorted = spread;
  std::sort(sorted.begin(), sorted.begin() + panel.survey.columns);
  const int usual = sorted[to_size(panel.survey.columns / 2)];
  int room = kSumBits;
  for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
    panel.wide[j] = spread[j] > usual + kFarLess ? 1 : 0;
    if (panel.wide[j] == 0) room = std::min(room, kSumBits - spread[j]);
  }
  return room;
}

struct Scratch {
  std::optional<WeightReader> reader;
  std::vector<Panel> panels;
  std::map<int, RowParts> parts;  ///< by room: neighbouring panels mostly share a few
  std::vector<double> weight_row;
  std::vector<double> row;  ///< of activations
  exact::LinearForm form;
};

/// Panels that one task takes: their sums stay in the second cache while a chunk of the activations
/// passes over them.
constexpr std::int64_t kMostPanels = 16;

/// Some panels of the result.
class PanelJob {
 public:
  PanelJob(const GemmProblem& problem, Scratch& scratch, float* out, std::int64_t out_stride)
      : problem_(problem), scratch_(scratch), out_(out), out_stride_(out_stride) {
    if (!scratch.reader) scratch.reader.emplace(problem.weight, problem.bounds, problem.kernels);
  }

  /// Panels first .. first + count - 1.
  GemmStatistics run(std::int64_t first, std::int64_t count) {
    WeightReader& reader = *scratch_.reader;
    constexpr std::size_t kMostCuts = 4;
    if (scratch_.parts.size() > kMostCuts) scratch_.parts.clear();
    scratch_.panels.resize(to_size(kMostPanels));
    // Few activations stay in the second cache as a whole: then each weight row is read in one go.
    constexpr std::int64_t kCached = 32768;
    const bool few = problem_.x.count() * problem_.depth() <= kCached;
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t step = reader.reads_any_panel() && !few ? count : 1;
      const std::span<Panel> panels(scratch_.panels.data(), to_size(step));
      for (std::int64_t i = 0; i < step; ++i) {
        prepare(panels[to_size(i)], (first + done + i) * kPanelColumns);
      }
      for_each_chunk(kSliceChunk, [&](std::int64_t k, std::int64_t depth) {
        for (std::size_t p = 0; p < panels.size();) p += sum_slices(panels.subspan(p), k, depth);
      });
      for_each_chunk(kDepthChunk, [&](std::int64_t k, std::int64_t depth) {
        for (Panel& panel : panels) {
          if (!is_sliced(panel)) sum_chunk(panel, reader.decode(panel.survey, k, depth), k, depth);
        }
      });
      for (Panel& panel : panels) finish(panel);
      done += step;
    }
    return statistics_;
  }

 private:
  void prepare(Panel& panel, std::int64_t first) {
    scratch_.reader->survey(first, panel.survey);
    panel.room = kSumBits;
    panel.finite = true;
    for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
      const ScaledMatrix& bias = problem_.epilogue.bias;
      panel.bias[j] = bias ? element_at(bias, 0, first + static_cast<std::int64_t>(j)) : 0.0;
      panel.room = std::min(panel.room, kSumBits - panel.survey.spread[j]);
      panel.finite = panel.finite && panel.survey.finite[j] != 0 && std::isfinite(panel.bias[j]);
    }
    choose_parts(panel);
    panel.norms.fill(HUGE_VAL);
    if (problem_.segments() == 1 && problem_.most_bits > panel.room) {
      scratch_.reader->find_norms(panel.survey, panel.norms);
    }
    panel.folds = panel.parts != nullptr || problem_.segments() > 1;
    panel.sums.resize(to_size(rows_of(panel).rows() * kPanelColumns));
    if (!panel.folds) return;
    for (AlignedVector<double>* values : {&panel.high, &panel.low, &panel.error}) {
      values->assign(to_size(problem_.x.count() * kPanelColumns), 0.0);
    }
  }

  void choose_parts(Panel& panel) {
    panel.parts = nullptr;
    const int room = choose_room(panel);
    if (!has_short_significands(problem_.x.matrix) ||
        std::all_of(problem_.x_windows.begin(), problem_.x_windows.end(),
                    [room](const Window& window) { return fits(window, room); })) {
      return;
    }
    const int shared_room = room & ~3;  // a little less room than there is: panels share one cut
    auto found = scratch_.parts.find(shared_room);
    if (found == scratch_.parts.end()) {
      found =
          scratch_.parts
              .emplace(shared_room, cut_rows(problem_.x.values, problem_.bounds, problem_.x_windows,
                                             shared_room, *problem_.kernels.gemm))
              .first;
    }
    panel.parts = &found->second;
  }

  const PackedRows& rows_of(const Panel& panel) const {
    return panel.parts == nullptr ? problem_.x.values : panel.parts->values;
  }
  std::int64_t part_begin(const Panel& panel, std::int64_t row) const {
    return panel.parts == nullptr ? row : panel.parts->begin[to_size(row)];
  }

  /// Columns k .. k + depth - 1 of the activations with `weights` [depth, kPanelColumns].
  void sum_chunk(Panel& panel, const double* weights, std::int64_t k, std::int64_t depth) {
    const PackedRows& rows = rows_of(panel);
    for (std::int64_t s = first_segment(k);
         s < problem_.segments() && problem_.start(s) < k + depth; ++s) {
      const std::int64_t begin = std::max(problem_.start(s), k);
      const std::int64_t end = std::min(problem_.end(s), k + depth);
      for (std::int64_t row = 0; row < rows.rows(); row += rows.row_block()) {
        problem_.kernels.gemm->dot(rows.column(row, begin), to_size(rows.block_rows(row)),
                                   weights + (begin - k) * kPanelColumns, to_size(end - begin),
                                   begin != problem_.start(s),
                                   panel.sums.data() + row * kPanelColumns);
      }
      if (panel.folds && end == problem_.end(s)) fold(panel, s);
    }
  }

  bool is_sliced(const Panel& panel) const {
    return problem_.sliced != nullptr && panel.parts == nullptr;
  }

  /// The same by whole numbers, where there is one segment, of the first panels; blocks that have
  /// none by f64. Gives how many panels it has seen to.
  std::size_t sum_slices(std::span<Panel> panels, std::int64_t k, std::int64_t depth) {
    if (!is_sliced(panels[0])) return 1;
    const std::size_t count = panels.size() > 1 && is_sliced(panels[1]) ? 2 : 1;
    static_assert(simd::kSlicePanels == 2);
    for (Panel& panel : panels.first(count)) {
      if (k == 0) std::fill(panel.sums.begin(), panel.sums.end(), 0.0);
    }
    const SlicedRows& rows = *problem_.sliced;
    const std::int64_t chunk = k / kSliceChunk;
    WeightReader& reader = *scratch_.reader;
    const simd::SliceKernels& kernels = *problem_.kernels.slices;
    constexpr std::int64_t kFewRows = 2;  // decode twice rather than store and load
    if (problem_.x.count() <= kFewRows) {
      for (Panel& panel : panels.first(count)) {
        const WeightReader::CodedSlices slices = reader.slice_codes(panel.survey, k, depth);
        for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
          kernels.dot_codes(rows.row(row, chunk), rows.steps(), slices.codes, slices.scales,
                            panel.sums.data() + row * kPanelColumns);
        }
      }
    } else {
      std::array<WeightReader::Slices, simd::kSlicePanels> slices;
      for (std::size_t p = 0; p < count; ++p) {
        slices[p] = reader.decode_slices(panels[p].survey, p, k, depth);
      }
      for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
        std::array<simd::SlicePanel, simd::kSlicePanels> at;
        for (std::size_t p = 0; p < count; ++p) {
          at[p] = {slices[p].weights, slices[p].scales,
                   panels[p].sums.data() + row * kPanelColumns};
        }
        kernels.dot(rows.row(row, chunk), rows.steps(), at.data(), count);
      }
    }
    for (Panel& panel : panels.first(count)) add_left_out(panel, k, depth);
    return count;
  }

  /// Blocks of columns k .. k + depth - 1 that have no slices.
  void add_left_out(Panel& panel, std::int64_t k, std::int64_t depth) {
    const SlicedRows& rows = *problem_.sliced;
    const std::int64_t cols = rows.block_cols();
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      for (const std::uint8_t block : rows.left_out(row, k / kSliceChunk)) {
        const std::int64_t begin = k + block * cols;
        const std::int64_t end = std::min(begin + cols, k + depth);
        const std::int64_t chunk = begin / kDepthChunk * kDepthChunk;
        const double* weights = scratch_.reader->decode(
            panel.survey, chunk, std::min(kDepthChunk, problem_.depth() - chunk));
        double* sums = panel.sums.data() + row * kPanelColumns;
        for (std::int64_t col = begin; col < end; ++col) {
          const double value = problem_.x.values.at(row, col);
          const double* weight = weights + (col - chunk) * kPanelColumns;
          for (std::int64_t j = 0; j < kPanelColumns; ++j) sums[j] += value * weight[j];
        }
      }
    }
  }

  /// body(k, depth) for chunks of K, but for the last of `chunk` columns.
  template <typename Body>
  void for_each_chunk(std::int64_t chunk, Body body) const {
    for (std::int64_t k = 0; k < problem_.depth(); k += chunk) {
      body(k, std::min(chunk, problem_.depth() - k));
    }
  }

  std::int64_t first_segment(std::int64_t k) const {
    const auto after = std::upper_bound(problem_.bounds.begin(), problem_.bounds.end(), k);
    return after - problem_.bounds.begin() - 1;
  }

  /// The sums of a segment, times the f32 scales of that segment, to the outputs.
  void fold(Panel& panel, std::int64_t s) {
    const double* scales = panel.survey.scales.data() + s * kPanelColumns;
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      double* error = panel.error.data() + row * kPanelColumns;
      const double scale = problem_.x_scale(row, s);
      for (std::int64_t part = part_begin(panel, row); part < part_begin(panel, row + 1); ++part) {
        problem_.kernels.gemm->add_segment(panel.sums.data() + part * kPanelColumns, scales, scale,
                                           panel.high.data() + row * kPanelColumns,
                                           panel.low.data() + row * kPanelColumns, error);
      }
      for (std::int64_t j = 0; j < panel.survey.columns; ++j) {
        const double bound = estimate_error(panel, row, s, j);
        if (bound != 0.0) error[j] += bound * std::fabs(scale * scales[j]) * (1.0 + 0x1p-40);
      }
    }
  }

  /// 0: the sum is exact. Else what the f64 sum of a row and a column over a segment can be wrong
  /// by.
  double estimate_error(const Panel& panel, std::int64_t row, std::int64_t s,
                        std::int64_t j) const {
    const Window& window = problem_.window(row, s);
    const bool cut = panel.parts != nullptr && panel.parts->possible[to_size(row)] != 0;
    if (cut && panel.wide[to_size(j)] == 0) return 0.0;
    if (fits(window, kSumBits - panel.survey.spread[to_size(j)])) return 0.0;
    const double products =
        std::min(window.total * panel.survey.largest[to_size(s * kPanelColumns + j)],
                 window.norm * panel.norms[to_size(j)]);
    return products * sum_error(problem_.end(s) - problem_.start(s));
  }

  void finish(Panel& panel) {
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) finish_row(panel, row);
  }

  void finish_row(Panel& panel, std::int64_t row) {
    const GemmEpilogue& epilogue = problem_.epilogue;
    const std::int64_t columns = panel.survey.columns;
    const Tail& tail = problem_.tails[to_size(row)];
    const bool proved = problem_.x_bits[to_size(row)] <= panel.room;
    double addends[2][simd::kPanelColumns] = {};
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
    bool finite = panel.finite && problem_.x.finite[to_size(row)] != 0 && tail.finite;
    if (epilogue.residual != nullptr) {
      terms.addends[1] = addends[1];
      const float* residual =
          epilogue.residual + row * epilogue.residual_stride + panel.survey.first;
      for (std::size_t j = 0; j < to_size(columns); ++j) {
        addends[1][j] = residual[j];
        finite = finite && std::isfinite(residual[j]);
      }
    }
    double error[simd::kPanelColumns] = {};
    if (panel.folds) {
      terms.high = panel.high.data() + row * kPanelColumns;
      terms.low = panel.low.data() + row * kPanelColumns;
      terms.error = panel.error.data() + row * kPanelColumns;
    } else {
      terms.high = panel.sums.data() + row * kPanelColumns;
      if (problem_.segments() > 0) terms.row_scale = problem_.x_scale(row, 0);
      if (problem_.wide_weight_scales) terms.column_scales = panel.survey.scales.data();
      if (!proved) {
        for (std::int64_t j = 0; j < columns; ++j) error[j] = estimate_error(panel, row, 0, j);
        terms.error = error;
      }
    }
    float values[simd::kPanelColumns];
    const std::uint32_t doubts = problem_.kernels.gemm->finish(terms, output_type(), values);
    float* out = out_ + row * out_stride_ + panel.survey.first;
    std::copy_n(values, columns, out);
    if (finite && proved && doubts == 0) {
      statistics_.one_sum += columns;
      return;
    }
    for (std::int64_t j = 0; j < columns; ++j) {
      if (!finite && !is_finite(panel, row, j, addends[1][j])) {
        ++statistics_.not_finite;
        out[j] = class_of_ieee_sum(panel, row, j, addends[1][j]);
      } else if ((doubts >> j & 1) != 0) {
        ++statistics_.wide;
        out[j] = by_itself(panel, row, j, {addends[0][j], addends[1][j]});
      } else {
        ++counter(panel, row, j);
      }
    }
  }

  bool is_finite(const Panel& panel, std::int64_t row, std::int64_t j, double residual) const {
    return problem_.x.finite[to_size(row)] != 0 && problem_.tails[to_size(row)].finite &&
           panel.survey.finite[to_size(j)] != 0 && std::isfinite(panel.bias[to_size(j)]) &&
           std::isfinite(residual);
  }

  simd::OutputType output_type() const {
    switch (problem_.epilogue.output) {
      case Format::bf16:
        return {8, -126, 127};
      case Format::f16:
        return {11, -14, 15};
      default:
        return {24, -126, 127};
    }
  }

  std::int64_t& counter(const Panel& panel, std::int64_t row, std::int64_t j) {
    for (std::int64_t s = 0; s < problem_.segments(); ++s) {
      if (estimate_error(panel, row, s, j) != 0.0) return statistics_.estimated;
    }
    const bool one = part_begin(panel, row + 1) - part_begin(panel, row) == 1;
    return one ? statistics_.one_sum : statistics_.split;
  }

  /// One output by itself, from exact sums of its segments.
  float by_itself(const Panel& panel, std::int64_t row, std::int64_t j,
                  std::array<double, 2> addends) {
    const Tail& tail = problem_.tails[to_size(row)];
    exact::LinearForm& form = scratch_.form;
    form.clear();
    read_weight_row(panel, j);
    scratch_.row.resize(to_size(problem_.depth()));
    problem_.x.values.get(row, scratch_.row);
    for (std::int64_t s = 0; s < problem_.segments(); ++s) {
      const double scale = problem_.x_scale(row, s) *
                           panel.survey.scales[to_size(s * kPanelColumns + j)];  // 48 bits: exact
      const auto segment = [&](const std::vector<double>& values) {
        return std::span(values).subspan(to_size(problem_.start(s)),
                                         to_size(problem_.end(s) - problem_.start(s)));
      };
      const std::span<const double> x = segment(scratch_.row);
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

  void add_wide_sum(double scale, std::span<const double> x, std::span<const double> w) {
    exact::Superaccumulator accumulator;
    for (std::size_t k = 0; k < x.size(); ++k) accumulator.add(x[k] * w[k]);  // exact
    exact::Dyadic rest = accumulator.total();
    while (!rest.is_zero()) {
      const exact::Dyadic head = rest.truncated(kSumBits);
      scratch_.form.add_product(scale, head.to_double_odd());  // exact: it has at most 53 bits
      rest -= head;
    }
  }

  void read_weight_row(const Panel& panel, std::int64_t j) {
    scratch_.weight_row.resize(to_size(problem_.depth()));
    scratch_.reader->decode_row(panel.survey.first + j, scratch_.weight_row);
  }

  /// NaN, +inf or -inf as the IEEE sum of the whole products has it, all factors of a product
  /// included. As long as products of finite factors stay inside the f64 range (eight factors
  /// near the end of f32's do not), the operands alone decide, and no order matters.
  float class_of_ieee_sum(const Panel& panel, std::int64_t row, std::int64_t j, double residual) {
    read_weight_row(panel, j);
    const Tail& tail = problem_.tails[to_size(row)];
    const double x_factor =
        global_multiplier(problem_.x.matrix) / global_divisor(problem_.x.matrix);
    const double w_factor = global_multiplier(problem_.weight) / global_divisor(problem_.weight);
    double sum = panel.bias[to_size(j)];
    for (std::int64_t s = 0; s < problem_.segments() && !std::isnan(sum); ++s) {
      const double x_scale = problem_.x_scale(row, s) * x_factor;
      const double w_scale = panel.survey.scales[to_size(s * kPanelColumns + j)] * w_factor;
      for (std::int64_t k = problem_.start(s); k < problem_.end(s); ++k) {
        sum += (problem_.x.values.at(row, k) * x_scale) *
               (scratch_.weight_row[to_size(k)] * w_scale) * tail.factor;
      }
    }
    sum = sum * tail.weight + residual;
    return std::isnan(sum) ? exact::canonical_nan() : static_cast<float>(sum);
  }

  const GemmProblem& problem_;
  Scratch& scratch_;
  float* out_;
  std::int64_t out_stride_;
  GemmStatistics statistics_;
};

}  // namespace

GemmStatistics& GemmStatistics::operator+=(const GemmStatistics& other) {
  one_sum += other.one_sum;
  split += other.split;
  estimated += other.estimated;
  wide += other.wide;
  not_finite += other.not_finite;
  return *this;
}

void gemm(const GemmInput& x, const ScaledMatrix& weight, const GemmEpilogue& epilogue, float* out,
          std::int64_t out_stride, int threads, GemmStatistics* statistics) {
  const simd::DefaultFloatEnvironment environment;
  GemmProblem problem = describe_gemm(x, weight, epilogue);
  if (x.count() == 0) return;
  if (const simd::SliceKernels* slices = problem.kernels.slices;
      slices != nullptr && problem.segments() == 1) {
    const bool pays = has_short_significands(x.matrix) || x.count() <= slices->most_long_rows;
    const std::int64_t cols = pays ? slice_columns(weight) : 0;
    if (cols != 0) problem.sliced = &x.sliced(cols, *slices);
  }
  const std::int64_t panels = (weight.rows + kPanelColumns - 1) / kPanelColumns;
  // Some tasks for every thread, so that none waits long for another; sums of at most 256 KiB.
  constexpr std::int64_t kTasks = 4;
  constexpr std::int64_t kMostSums = 32768;
  const std::int64_t most =
      std::clamp<std::int64_t>(kMostSums / (x.count() * kPanelColumns), 1, kMostPanels);
  const std::int64_t step =
      std::clamp<std::int64_t>(panels / (kTasks * thread_count(threads)), 1, most);
  std::mutex guard;
  parallel_for<Scratch>(
      (panels + step - 1) / step, threads, [&](std::int64_t task, Scratch& scratch) {
        const std::int64_t first = task * step;
        const GemmStatistics counts =
            PanelJob(problem, scratch, out, out_stride).run(first, std::min(step, panels - first));
        if (statistics == nullptr) return;
        const std::lock_guard<std::mutex> lock(guard);
        *statistics += counts;
      });
}

}  // namespace moeref
