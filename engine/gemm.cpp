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
#include "engine/sum_bounds.hpp"
#include "engine/weight_panel.hpp"
#include "quant/aligned.hpp"
#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "quant/parallel.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Additions that a product goes through in a sum of `terms`, at most: in f64 sums those of a
/// chunk, in one chain or in some, and one a chunk; in sums of whole numbers, exact inside a block,
/// one a block and those inside one that is left out. A GEMM can have both.
std::int64_t additions(const GemmProblem& problem, std::int64_t terms) {
  constexpr std::int64_t kChains = 8;
  const std::int64_t of_chunks = std::min(terms, kDepthChunk) + kChains + terms / kDepthChunk + 1;
  if (problem.sliced.empty()) return of_chunks;
  // The sum of a block has 49 bits: times a scale of more than 4 it may be rounded before it is
  // added.
  const ScaledMatrix& weight = problem.weight;
  const bool rounds = weight.scales && !problem.wide_weight_scales &&
                      info(weight.scales->format).significand_bits > 4;
  const std::int64_t cols = problem.sliced.front().block_cols();
  return std::max(of_chunks, cols + (rounds ? 2 : 1) * (terms / cols + 1));
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
  /// Of each column over all segments: |value * wide scale| is at most, and a multiple of 2^.
  std::array<double, simd::kPanelColumns> most{};
  std::array<int, simd::kPanelColumns> lowest{};
  double most_of_all = 0.0;
  int lowest_of_all = RowReach::kNoBits;
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
  std::vector<double> x_scales;  ///< of all rows in one segment
  exact::LinearForm form;
};

/// Panels that one task takes: their sums stay in the second cache while a chunk of the activations
/// passes over them.
constexpr std::int64_t kMostPanels = 16;

/// Panels whose sums of whole numbers read a row's digits once.
constexpr auto kPanelsOfRow = static_cast<std::int64_t>(simd::kSlicePanels);

/// Some panels of the result.
class PanelJob {
 public:
  PanelJob(const GemmProblem& problem, Scratch& scratch, float* out, std::int64_t out_stride)
      : problem_(problem), scratch_(scratch), out_(out), out_stride_(out_stride) {
    if (!scratch.reader)
      scratch.reader.emplace(problem.weight, problem.measured.bounds, problem.kernels);
  }

  /// Panels first .. first + count - 1.
  GemmStatistics run(std::int64_t first, std::int64_t count) {
    WeightReader& reader = *scratch_.reader;
    constexpr std::size_t kMostCuts = 4;
    if (scratch_.parts.size() > kMostCuts) scratch_.parts.clear();
    scratch_.panels.resize(to_size(kMostPanels));
    // Few activations stay in the second cache as a whole: then weight rows are read in one go.
    constexpr std::int64_t kCached = 32768;
    const bool few = problem_.x.count() * problem_.depth() <= kCached;
    const std::int64_t at_once = !reader.reads_any_panel() || is_decoded_on_the_way() ? 1
                                 : few                                                ? kPanelsOfRow
                                                                                      : count;
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t step = std::min(at_once, count - done);
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
      for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
        for (Panel& panel : panels) finish_row(panel, row);
      }
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
    panel.sums.resize(to_size(part_begin(panel, problem_.x.count()) * kPanelColumns));
    if (!panel.folds) return;
    for (AlignedVector<double>* values : {&panel.high, &panel.low, &panel.error}) {
      values->assign(to_size(problem_.x.count() * kPanelColumns), 0.0);
    }
    measure_columns(panel);
  }

  void measure_columns(Panel& panel) const {
    panel.most.fill(0.0);
    panel.lowest.fill(RowReach::kNoBits);
    for (std::int64_t s = 0; s < problem_.segments(); ++s) {
      for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
        const std::size_t at = to_size(s * kPanelColumns) + j;
        const double scale = std::fabs(panel.survey.scales[at]);
        const double largest = panel.survey.largest[at];
        if (largest == 0.0 || scale == 0.0 || !std::isfinite(scale)) continue;
        panel.most[j] = std::max(panel.most[j], largest * scale * (1.0 + 0x1p-30));
        panel.lowest[j] =
            std::min(panel.lowest[j],
                     exponent_above(largest) - panel.survey.spread[j] + lowest_exponent(scale));
      }
    }
    panel.most_of_all = *std::max_element(panel.most.begin(), panel.most.end());
    panel.lowest_of_all = *std::min_element(panel.lowest.begin(), panel.lowest.end());
  }

  void choose_parts(Panel& panel) {
    panel.parts = nullptr;
    const int room = choose_room(panel);
    if (!has_short_significands(problem_.x.matrix()) || problem_.most_bits <= room) return;
    const int shared_room = room & ~3;  // a little less room than there is: panels share one cut
    auto found = scratch_.parts.find(shared_room);
    if (found == scratch_.parts.end()) {
      std::vector<MeasuredRow> rows;
      for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
        rows.push_back({problem_.x.values(row), problem_.windows(row)});
      }
      found = scratch_.parts
                  .emplace(shared_room, cut_rows(rows, problem_.measured.bounds, shared_room,
                                                 *problem_.kernels.gemm))
                  .first;
    }
    panel.parts = &found->second;
  }

  const PackedRows& rows_of(const Panel& panel) const {
    return panel.parts == nullptr ? *problem_.packed : panel.parts->values;
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

  /// So few rows that weights are decoded once for each rather than stored and loaded.
  bool is_decoded_on_the_way() const {
    constexpr std::int64_t kFewRows = 2;
    return !problem_.sliced.empty() && problem_.x.count() <= kFewRows;
  }

  bool is_sliced(const Panel& panel) const {
    return !problem_.sliced.empty() && panel.parts == nullptr;
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
    const std::int64_t chunk = k / kSliceChunk;
    const std::size_t steps = to_size(problem_.sliced.front().block_cols()) / simd::kSliceStep;
    WeightReader& reader = *scratch_.reader;
    const simd::SliceKernels& kernels = *problem_.kernels.slices;
    if (is_decoded_on_the_way()) {
      for (Panel& panel : panels.first(count)) {
        const WeightReader::CodedSlices slices = reader.slice_codes(panel.survey, k, depth);
        for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
          kernels.dot_codes(sliced(row).chunk(chunk), steps, slices.codes, slices.scales,
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
        kernels.dot(sliced(row).chunk(chunk), steps, at.data(), count);
      }
    }
    for (Panel& panel : panels.first(count)) add_left_out(panel, k, depth);
    return count;
  }

  const SlicedRow& sliced(std::int64_t row) const {
    return problem_.sliced[to_size(problem_.x.chosen(row))];
  }

  /// Blocks of columns k .. k + depth - 1 that have no slices.
  void add_left_out(Panel& panel, std::int64_t k, std::int64_t depth) {
    if (problem_.left_out.empty()) return;
    const std::int64_t cols = problem_.sliced.front().block_cols();
    for (std::int64_t begin = k; begin < k + depth; begin += kDepthChunk) {
      const std::int64_t end = std::min(begin + kDepthChunk, k + depth);
      const double* weights = nullptr;
      for (const std::int64_t row : problem_.left_out) {
        for (const std::uint8_t block : sliced(row).left_out(k / kSliceChunk)) {
          const std::int64_t first = k + block * cols;
          if (first < begin || first >= end) continue;
          if (weights == nullptr) {
            weights = scratch_.reader->decode(panel.survey, begin, end - begin);
          }
          double sums[simd::kPanelColumns];
          problem_.kernels.gemm->dot(problem_.x.values(row).data() + first, 1,
                                     weights + (first - begin) * kPanelColumns,
                                     to_size(std::min(first + cols, end) - first), false, sums);
          double* to = panel.sums.data() + row * kPanelColumns;
          for (std::size_t j = 0; j < simd::kPanelColumns; ++j) to[j] += sums[j];
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
    const auto after =
        std::upper_bound(problem_.measured.bounds.begin(), problem_.measured.bounds.end(), k);
    return after - problem_.measured.bounds.begin() - 1;
  }

  /// The sums of a segment, times the f32 scales of that segment, to the outputs.
  void fold(Panel& panel, std::int64_t s) {
    const double* scales = panel.survey.scales.data() + s * kPanelColumns;
    std::vector<double>& x_scales = scratch_.x_scales;
    x_scales.clear();
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      x_scales.push_back(problem_.x_scale(row, s));
    }
    const auto add = [&](std::int64_t first_part, std::size_t rows, std::int64_t first_row) {
      problem_.kernels.gemm->add_segment(panel.sums.data() + first_part * kPanelColumns, rows,
                                         scales, x_scales.data() + first_row,
                                         panel.high.data() + first_row * kPanelColumns,
                                         panel.low.data() + first_row * kPanelColumns);
    };
    if (panel.parts == nullptr) add(0, x_scales.size(), 0);
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      for (std::int64_t part = part_begin(panel, row);
           panel.parts != nullptr && part < part_begin(panel, row + 1); ++part) {
        add(part, 1, row);
      }
      if (is_proved(panel, row)) continue;
      add_estimates(panel, row, s, x_scales[to_size(row)], scales,
                    panel.error.data() + row * kPanelColumns);
    }
  }

  /// Whether the f64 sums of a row are exact in every column and segment.
  bool is_proved(const Panel& panel, std::int64_t row) const {
    return problem_.x_bits[to_size(row)] <= panel.room;
  }

  /// What folded sums lack at most of the sum of their segments' sums, to `error`.
  void add_fold_errors(const Panel& panel, std::int64_t row, double* error) const {
    const RowReach& reach = problem_.reaches[to_size(row)];
    const std::int64_t parts = part_begin(panel, row + 1) - part_begin(panel, row);
    const std::int64_t count = problem_.segments() * parts;
    const auto bound = [&](double most, int lowest) {
      return fold_bound(count, reach.total * most, reach.lowest + lowest);
    };
    if (bound(panel.most_of_all, panel.lowest_of_all) == 0.0) return;
    for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
      error[j] += bound(panel.most[j], panel.lowest[j]);
    }
  }

  /// What the f64 sums of a row over a segment can be wrong by, times |scale * scales|, to `error`;
  /// nothing where the sum is exact.
  void add_estimates(const Panel& panel, std::int64_t row, std::int64_t s, double scale,
                     const double* scales, double* error) const {
    const Window& window = problem_.window(row, s);
    if (window.empty) return;
    const bool cut = panel.parts != nullptr && panel.parts->possible[to_size(row)] != 0;
    const int bits = window.sum - window.lowest;
    const double by_terms = sum_bound(additions(problem_, problem_.end(s) - problem_.start(s)));
    const double factor = std::fabs(scale) * by_terms * (1.0 + 0x1p-40);
    const double* largest = panel.survey.largest.data() + s * kPanelColumns;
    for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
      const bool exact = bits + panel.survey.spread[j] <= kSumBits || (cut && panel.wide[j] == 0);
      const double products = std::min(window.total * largest[j], window.norm * panel.norms[j]);
      if (!exact) error[j] += products * factor * std::fabs(scales[j]);
    }
  }

  void finish_row(Panel& panel, std::int64_t row) {
    const GemmEpilogue& epilogue = problem_.epilogue;
    const std::int64_t columns = panel.survey.columns;
    const Tail& tail = problem_.tails[to_size(row)];
    const bool proved = is_proved(panel, row);
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
      const float* residual =
          epilogue.residual + row * epilogue.residual_stride + panel.survey.first;
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
      add_fold_errors(panel, row, error);
      terms.error = error;
    } else {
      terms.high = panel.sums.data() + row * kPanelColumns;
      if (problem_.segments() > 0) terms.row_scale = problem_.x_scale(row, 0);
      if (problem_.wide_weight_scales) terms.column_scales = panel.survey.scales.data();
      if (!proved) {
        constexpr std::array<double, simd::kPanelColumns> kOnes = [] {
          std::array<double, simd::kPanelColumns> ones{};
          ones.fill(1.0);
          return ones;
        }();
        // The scales come with the terms.
        std::fill_n(error, simd::kPanelColumns, 0.0);
        add_estimates(panel, row, 0, 1.0, kOnes.data(), error);
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

  bool is_finite(const Panel& panel, std::int64_t row, std::int64_t j, double residual) const {
    return problem_.x.is_finite(row) && problem_.tails[to_size(row)].finite &&
           panel.survey.finite[to_size(j)] != 0 && std::isfinite(panel.bias[to_size(j)]) &&
           std::isfinite(residual);
  }

  std::int64_t& counter(const Panel& panel, std::int64_t row, bool estimated) {
    if (estimated) return statistics_.estimated;
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

  const GemmProblem& problem_;
  Scratch& scratch_;
  float* out_;
  std::int64_t out_stride_;
  GemmStatistics statistics_;
};

/// Whether sums of whole numbers are possible, and faster.
bool sums_whole_numbers(const GemmProblem& problem) {
  const simd::SliceKernels* slices = problem.kernels.slices;
  if (slices == nullptr || problem.segments() != 1 || slice_columns(problem.weight) == 0) {
    return false;
  }
  return has_short_significands(problem.x.matrix()) || problem.x.count() <= slices->most_long_rows;
}

/// Makes sums those of whole numbers, unless so many blocks have no slices that f64 sums are
/// faster.
void slice(GemmProblem& problem, int threads) {
  problem.sliced = problem.x.prepared().sliced(slice_columns(problem.weight), threads);
  std::int64_t blocks = 0;
  std::int64_t left_out = 0;
  for (std::int64_t row = 0; row < problem.x.count(); ++row) {
    const SlicedRow& sliced = problem.sliced[to_size(problem.x.chosen(row))];
    blocks += sliced.blocks();
    if (sliced.left_out_blocks() == 0) continue;
    left_out += sliced.left_out_blocks();
    problem.left_out.push_back(row);
  }
  if (8 * left_out > blocks) problem.sliced = {};
}

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
  GemmProblem problem = describe_gemm(x, weight, epilogue, threads);
  if (x.count() == 0) return;
  if (sums_whole_numbers(problem)) slice(problem, threads);
  if (problem.sliced.empty()) problem.packed = &x.packed(threads);
  const std::int64_t panels = (weight.rows + kPanelColumns - 1) / kPanelColumns;
  // Some tasks for every thread, so that none waits long for another; sums of at most 256 KiB.
  constexpr std::int64_t kTasks = 8;
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
