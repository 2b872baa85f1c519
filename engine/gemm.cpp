#include "engine/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>

#include "engine/gemm_problem.hpp"
#include "engine/panel.hpp"
#include "engine/panel_output.hpp"
#include "engine/row_parts.hpp"
#include "engine/weight_panel.hpp"
#include "quant/dequantize.hpp"
#include "quant/parallel.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

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
  std::vector<double> x_scales;   ///< of all rows in one segment
  OutputScratch output;
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
      : problem_(problem),
        scratch_(scratch),
        output_(problem, reader_of(problem, scratch), scratch.output, out, out_stride) {}

  /// Panels first .. first + count - 1.
  GemmStatistics run(std::int64_t first, std::int64_t count) {
    WeightReader& reader = *scratch_.reader;
    constexpr std::size_t kMostCuts = 4;
    if (scratch_.parts.size() > kMostCuts) scratch_.parts.clear();
    const std::int64_t at_once = panels_at_once(count);
    if (std::ssize(scratch_.panels) < at_once) scratch_.panels.resize(to_size(at_once));
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t step = std::min(at_once, count - done);
      const std::span<Panel> panels(scratch_.panels.data(), to_size(step));
      for (std::int64_t i = 0; i < step; ++i) {
        prepare(panels[to_size(i)], (first + done + i) * kPanelColumns);
      }
      if (!problem_.lined.empty()) {
        for (Panel& panel : panels) sum_lines(panel);
      } else {
        for_each_chunk(kSliceChunk, [&](std::int64_t k, std::int64_t depth) {
          for (std::size_t p = 0; p < panels.size();) p += sum_slices(panels.subspan(p), k, depth);
        });
      }
      for_each_chunk(kDepthChunk, [&](std::int64_t k, std::int64_t depth) {
        for (Panel& panel : panels) {
          if (is_sliced(panel)) continue;
          reader.prefetch_next(panel.survey, k, depth);
          sum_chunk(panel, reader.decode(panel.survey, k, depth), k, depth);
        }
      });
      for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
        for (const Panel& panel : panels) output_.finish_row(panel, row);
      }
      done += step;
    }
    return output_.statistics();
  }

 private:
  static WeightReader& reader_of(const GemmProblem& problem, Scratch& scratch) {
    if (!scratch.reader) {
      scratch.reader.emplace(problem.weight, problem.measured.bounds, problem.kernels);
    }
    return *scratch.reader;
  }

  /// Panels of `count` that pass over the activations together.
  std::int64_t panels_at_once(std::int64_t count) const {
    if (!scratch_.reader->reads_any_panel() || !problem_.lined.empty()) return 1;
    // Few activations stay in the second cache as a whole: then weight rows are read in one go.
    constexpr std::int64_t kCached = 32768;
    return problem_.x.count() * problem_.depth() <= kCached ? kPanelsOfRow : count;
  }

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
    panel.sums.resize(to_size(panel.part_begin(problem_.x.count()) * kPanelColumns));
    if (!panel.folds) return;
    for (AlignedVector<double>* values : {&panel.high, &panel.low, &panel.error}) {
      values->assign(to_size(problem_.x.count() * kPanelColumns), 0.0);
    }
    measure_columns(problem_, panel);
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
    std::array<WeightReader::Slices, simd::kSlicePanels> slices;
    for (std::size_t p = 0; p < count; ++p) {
      slices[p] = reader.decode_slices(panels[p].survey, p, k, depth);
    }
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      std::array<simd::SlicePanel, simd::kSlicePanels> at;
      for (std::size_t p = 0; p < count; ++p) {
        at[p] = {slices[p].weights, slices[p].scales, panels[p].sums.data() + row * kPanelColumns};
      }
      kernels.dot(sliced(row).chunk(chunk), steps, at.data(), count);
    }
    for (Panel& panel : panels.first(count)) add_left_out(panel, k, depth);
    return count;
  }

  /// All columns of K, along each weight row.
  void sum_lines(Panel& panel) {
    if (!is_sliced(panel)) return;
    for (std::int64_t row = 0; row < problem_.x.count(); ++row) {
      const simd::LineChunk* x = problem_.lined[to_size(problem_.x.chosen(row))].chunks();
      problem_.kernels.lines->dot(x, scratch_.reader->lines(panel.survey),
                                  panel.sums.data() + row * kPanelColumns);
    }
    add_left_out(panel, 0, problem_.depth());
  }

  const SlicedRow& sliced(std::int64_t row) const {
    return problem_.sliced[to_size(problem_.x.chosen(row))];
  }

  /// Blocks of columns k .. k + depth - 1 that have no slices.
  void add_left_out(Panel& panel, std::int64_t k, std::int64_t depth) {
    if (problem_.left_out.empty()) return;
    const std::int64_t cols = problem_.sliced.front().block_cols();
    const auto before = [=](const GemmProblem::LeftOut& at, std::int64_t col) {
      return at.block * cols < col;
    };
    const auto begin =
        std::lower_bound(problem_.left_out.begin(), problem_.left_out.end(), k, before);
    const auto end = std::lower_bound(begin, problem_.left_out.end(), k + depth, before);
    const double* weights = nullptr;
    for (auto at = begin; at != end; ++at) {
      const std::int64_t first = at->block * cols;
      const std::int64_t count = std::min(cols, k + depth - first);
      if (at == begin || at->block != std::prev(at)->block) {
        weights = scratch_.reader->decode(panel.survey, first, count);
      }
      problem_.kernels.gemm->dot(problem_.x.values(at->row).data() + first, 1, weights,
                                 to_size(count), true, panel.sums.data() + at->row * kPanelColumns);
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
      for (std::int64_t part = panel.part_begin(row);
           panel.parts != nullptr && part < panel.part_begin(row + 1); ++part) {
        add(part, 1, row);
      }
      if (is_proved(problem_, panel, row)) continue;
      add_estimates(problem_, panel, row, s, x_scales[to_size(row)], scales,
                    panel.error.data() + row * kPanelColumns);
    }
  }

  const GemmProblem& problem_;
  Scratch& scratch_;
  PanelOutput output_;
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
  for (std::int64_t row = 0; row < problem.x.count(); ++row) {
    const SlicedRow& sliced = problem.sliced[to_size(problem.x.chosen(row))];
    blocks += sliced.blocks();
    for (std::int64_t c = 0; c < sliced.chunks(); ++c) {
      const std::int64_t first = c * (kSliceChunk / sliced.block_cols());
      for (const std::uint8_t block : sliced.left_out(c)) {
        problem.left_out.push_back({first + block, row});
      }
    }
  }
  if (8 * std::ssize(problem.left_out) > blocks) {
    problem.sliced = {};
    problem.left_out.clear();
    return;
  }
  std::sort(problem.left_out.begin(), problem.left_out.end(),
            [](const auto& a, const auto& b) { return a.block < b.block; });
  // So few rows that codes are decoded once for each rather than transposed.
  constexpr std::int64_t kFewRows = 2;
  if (problem.x.count() <= kFewRows && has_lines(problem.weight)) {
    problem.lined = problem.x.prepared().lined(slice_columns(problem.weight), threads);
  }
}

/// Where tasks of at most `most` panels begin, then `panels`. They get shorter to the end, so that
/// no thread waits long for another.
std::vector<std::int64_t> task_begins(std::int64_t panels, std::int64_t most, int threads) {
  constexpr std::int64_t kTasks = 3;  // for each thread, as long as the next one
  std::vector<std::int64_t> begins{0};
  while (begins.back() < panels) {
    const std::int64_t left = panels - begins.back();
    begins.push_back(begins.back() + std::clamp<std::int64_t>(left / (kTasks * threads), 1, most));
  }
  return begins;
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
  // Sums of at most 256 KiB.
  constexpr std::int64_t kMostSums = 32768;
  const std::int64_t most =
      std::clamp<std::int64_t>(kMostSums / (x.count() * kPanelColumns), 1, kMostPanels);
  const std::vector<std::int64_t> begins = task_begins(panels, most, thread_count(threads));
  std::mutex guard;
  parallel_for<Scratch>(std::ssize(begins) - 1, threads, [&](std::int64_t task, Scratch& scratch) {
    const std::int64_t first = begins[to_size(task)];
    const GemmStatistics counts =
        PanelJob(problem, scratch, out, out_stride).run(first, begins[to_size(task + 1)] - first);
    if (statistics == nullptr) return;
    const std::lock_guard<std::mutex> lock(guard);
    *statistics += counts;
  });
}

}  // namespace moeref
