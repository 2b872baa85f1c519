#include "engine/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>

#include "engine/exact/linear_form.hpp"
#include "engine/exact/rounding.hpp"
#include "engine/exact/superaccumulator.hpp"
#include "engine/operand.hpp"
#include "engine/row_parts.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/parallel.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kColumns = static_cast<std::int64_t>(simd::kPanelColumns);

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Everything that stays the same over the panels of one GEMM.
struct Problem {
  const GemmInput& x;
  const ScaledMatrix& weight;
  const GemmEpilogue& epilogue;
  std::vector<std::int64_t> bounds;  ///< columns where segments begin, then K
  std::vector<Window> x_windows;     ///< [rows, segments]
  std::vector<double> x_scales;      ///< [rows, segments]: the wide scales
  const simd::KernelTable& kernels;

  std::int64_t segments() const { return static_cast<std::int64_t>(bounds.size()) - 1; }
  std::int64_t start(std::int64_t s) const { return bounds[to_size(s)]; }
  std::int64_t length(std::int64_t s) const { return bounds[to_size(s + 1)] - start(s); }
  std::int64_t depth() const { return weight.cols; }
};

/// Up to 16 weight rows decoded side by side.
struct Panel {
  std::int64_t first = 0;
  std::int64_t columns = 0;
  std::vector<double> values;   ///< [K, 16]
  std::vector<Window> windows;  ///< [segments, 16]
  std::vector<double> scales;   ///< [segments, 16]: the wide scales
  std::array<double, simd::kPanelColumns> bias{};
  std::array<char, simd::kPanelColumns> finite{};
  std::array<char, simd::kPanelColumns> wide{};  ///< spans too many bits for f64 sums
};

void decode_panel(const Problem& problem, OperandDecoder& decoder, std::int64_t first,
                  Panel& panel) {
  panel.first = first;
  panel.columns = std::min(kColumns, problem.weight.rows - first);
  panel.values.assign(to_size(problem.depth() * kColumns), 0.0);
  panel.windows.assign(to_size(problem.segments() * kColumns), Window{});
  panel.scales.assign(to_size(problem.segments() * kColumns), 1.0);
  decoder.decode(first, panel.columns, panel.values.data(), 1, kColumns, panel.finite.data());
  for (std::int64_t j = 0; j < panel.columns; ++j) {
    double* column = panel.values.data() + j;
    const ScaledMatrix& bias = problem.epilogue.bias;
    panel.bias[to_size(j)] = bias ? element_at(bias, 0, first + j) : 0.0;
    for (std::int64_t s = 0; s < problem.segments(); ++s) {
      const std::int64_t at = s * kColumns + j;
      // A column with NaN or infinity is computed apart. Its sums mean nothing and touch no other
      // column.
      if (panel.finite[to_size(j)] != 0) {
        panel.windows[to_size(at)] =
            window_of(column + problem.start(s) * kColumns, problem.length(s), kColumns);
      }
      panel.scales[to_size(at)] = wide_scale(problem.weight, first + j, problem.start(s));
    }
  }
}

/// Bits that the sum over an activation segment may span so that its dot with every column of the
/// panel, but for the wide ones, is exact. A column is wide if it leaves far less room than its
/// neighbours: it must not cost them their f64 sums.
int choose_room(Panel& panel) {
  constexpr int kFarLess = 8;
  std::array<int, simd::kPanelColumns> spreads{};
  for (std::size_t at = 0; at < panel.windows.size(); ++at) {
    const Window& window = panel.windows[at];
    int& spread = spreads[at % spreads.size()];
    if (!window.empty) spread = std::max(spread, window.largest - window.lowest);
  }
  auto sorted = spreads;
  std::sort(sorted.begin(), sorted.begin() + panel.columns);
  const int usual = sorted[to_size(panel.columns / 2)];
  int room = kSumBits;
  for (std::size_t j = 0; j < to_size(panel.columns); ++j) {
    panel.wide[j] = spreads[j] > usual + kFarLess ? 1 : 0;
    if (panel.wide[j] == 0) room = std::min(room, kSumBits - spreads[j]);
  }
  return room;
}

struct Scratch {
  std::optional<OperandDecoder> decoder;
  Panel panel;
  std::map<int, RowParts> parts;  ///< by room: neighbouring panels mostly share a few
  std::vector<double> sums;       ///< [segments, part rows, 16]
  exact::LinearForm form;
};

/// The exact sums of a panel and what they round to.
class PanelJob {
 public:
  PanelJob(const Problem& problem, Scratch& scratch) : problem_(problem), scratch_(scratch) {}

  GemmStatistics run(std::int64_t first, float* out, std::int64_t out_stride) {
    if (!scratch_.decoder) scratch_.decoder.emplace(problem_.weight);
    decode_panel(problem_, *scratch_.decoder, first, scratch_.panel);
    choose_parts();
    sum_products();
    for (std::int64_t i = 0; i < problem_.x.count(); ++i) {
      for (std::int64_t j = 0; j < scratch_.panel.columns; ++j) {
        out[i * out_stride + first + j] = finish(i, j);
      }
    }
    return statistics_;
  }

 private:
  void choose_parts() {
    constexpr std::size_t kMostCuts = 4;
    const int room = choose_room(scratch_.panel);
    parts_ = nullptr;
    if (std::all_of(problem_.x_windows.begin(), problem_.x_windows.end(),
                    [room](const Window& window) { return fits(window, room); })) {
      return;
    }
    const int shared_room =
        room & ~3;  // a little less room than there is lets panels share one cut
    auto found = scratch_.parts.find(shared_room);
    if (found == scratch_.parts.end()) {
      if (scratch_.parts.size() == kMostCuts) scratch_.parts.clear();
      found = scratch_.parts
                  .emplace(shared_room,
                           cut_rows(problem_.x.values, problem_.x.count(), problem_.depth(),
                                    problem_.bounds, problem_.x_windows, shared_room))
                  .first;
    }
    parts_ = &found->second;
  }

  std::int64_t part_begin(std::int64_t row) const {
    return parts_ == nullptr ? row : parts_->begin[to_size(row)];
  }

  double& sum_at(std::int64_t segment, std::int64_t part) {
    return scratch_.sums[to_size((segment * part_begin(problem_.x.count()) + part) * kColumns)];
  }

  void sum_products() {
    const std::vector<double>& values = parts_ == nullptr ? problem_.x.values : parts_->values;
    const std::int64_t parts = part_begin(problem_.x.count());
    scratch_.sums.resize(to_size(problem_.segments() * parts * kColumns));
    for (std::int64_t s = 0; s < problem_.segments(); ++s) {
      const std::int64_t start = problem_.start(s);
      problem_.kernels.dot_panel(values.data() + start, to_size(problem_.depth()), to_size(parts),
                                 scratch_.panel.values.data() + start * kColumns,
                                 to_size(problem_.length(s)), &sum_at(s, 0));
    }
  }

  float finish(std::int64_t i, std::int64_t j) {
    const GemmEpilogue& epilogue = problem_.epilogue;
    const std::int64_t n = scratch_.panel.first + j;
    const double bias = scratch_.panel.bias[to_size(j)];
    const double residual =
        epilogue.residual != nullptr ? epilogue.residual[i * epilogue.residual_stride + n] : 0.0;
    const double scale = epilogue.row_scales.empty() ? 1.0 : epilogue.row_scales[to_size(i)];
    const double weight = epilogue.row_weights.empty() ? 1.0 : epilogue.row_weights[to_size(i)];
    const double factor = scale * epilogue.factor;  // 48 bits: exact
    if (problem_.x.finite[to_size(i)] == 0 || scratch_.panel.finite[to_size(j)] == 0 ||
        !std::isfinite(factor) || !std::isfinite(weight) || !std::isfinite(bias) ||
        !std::isfinite(residual)) {
      ++statistics_.not_finite;
      return class_of_ieee_sum(i, j, factor, bias, weight, residual);
    }
    exact::LinearForm& form = scratch_.form;
    form.clear();
    collect_products(i, j);
    form.multiply_by(factor);
    form.multiply_by(weight);
    for (const ScaledMatrix* operand : {&problem_.x.matrix, &problem_.weight}) {
      form.multiply_by(global_multiplier(*operand));
      form.divide_by(global_divisor(*operand));
    }
    form.add(bias * weight);  // 48 bits: exact
    form.add(residual);
    return form.round(epilogue.output);
  }

  /// The exact sum of each segment, times the f32 scales of that segment.
  void collect_products(std::int64_t i, std::int64_t j) {
    const bool cut = scratch_.panel.wide[to_size(j)] == 0 &&
                     (parts_ == nullptr || parts_->possible[to_size(i)] != 0);
    const std::int64_t begin = part_begin(i);
    const std::int64_t end = part_begin(i + 1);
    ++(!cut ? statistics_.wide : end - begin == 1 ? statistics_.one_sum : statistics_.split);
    for (std::int64_t s = 0; s < problem_.segments(); ++s) {
      const double scale = problem_.x_scales[to_size(i * problem_.segments() + s)] *
                           scratch_.panel.scales[to_size(s * kColumns + j)];  // 48 bits: exact
      if (!cut) {
        add_wide_sum(scale, i, j, s);
        continue;
      }
      for (std::int64_t part = begin; part < end; ++part) {
        const double sum = (&sum_at(s, part))[j];
        if (sum != 0.0) scratch_.form.add_product(scale, sum);
      }
    }
  }

  void add_wide_sum(double scale, std::int64_t i, std::int64_t j, std::int64_t s) {
    exact::Superaccumulator accumulator;
    const double* row = problem_.x.row(i);
    for (std::int64_t k = problem_.start(s); k < problem_.bounds[to_size(s + 1)]; ++k) {
      accumulator.add(row[k] *
                      scratch_.panel.values[to_size(k * kColumns + j)]);  // <= 48 bits: exact
    }
    exact::Dyadic rest = accumulator.total();
    while (!rest.is_zero()) {
      const exact::Dyadic head = rest.truncated(kSumBits);
      scratch_.form.add_product(scale, head.to_double_odd());  // exact: it has at most 53 bits
      rest -= head;
    }
  }

  /// NaN, +inf or -inf as the IEEE sum of the whole products has it, all factors of a product
  /// included. As long as products of finite factors stay inside the f64 range (eight factors
  /// near the end of f32's do not), the operands alone decide, and no order matters.
  float class_of_ieee_sum(std::int64_t i, std::int64_t j, double factor, double bias, double weight,
                          double residual) const {
    const double x_factor =
        global_multiplier(problem_.x.matrix) / global_divisor(problem_.x.matrix);
    const double w_factor = global_multiplier(problem_.weight) / global_divisor(problem_.weight);
    const double* activations = problem_.x.row(i);
    double sum = bias;
    for (std::int64_t s = 0; s < problem_.segments() && !std::isnan(sum); ++s) {
      const double x_scale = problem_.x_scales[to_size(i * problem_.segments() + s)] * x_factor;
      const double w_scale = scratch_.panel.scales[to_size(s * kColumns + j)] * w_factor;
      for (std::int64_t k = problem_.start(s); k < problem_.bounds[to_size(s + 1)]; ++k) {
        sum += (activations[k] * x_scale) *
               (scratch_.panel.values[to_size(k * kColumns + j)] * w_scale) * factor;
      }
    }
    sum = sum * weight + residual;
    return std::isnan(sum) ? exact::canonical_nan() : static_cast<float>(sum);
  }

  const Problem& problem_;
  Scratch& scratch_;
  GemmStatistics statistics_;
  const RowParts* parts_ = nullptr;  ///< null: every row is one part
};

const simd::KernelTable& chosen_kernels() {
  const simd::KernelTable* kernels = simd::active_kernels();
  if (kernels == nullptr) {
    fail("MOEREF_ISA", "{} is not available on this CPU or in this build; unset it",
         std::getenv("MOEREF_ISA"));
  }
  return *kernels;
}

Problem describe(const GemmInput& x, const ScaledMatrix& weight, const GemmEpilogue& epilogue) {
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
  Problem problem{x,  weight, epilogue,        segment_bounds(operands, weight.cols),
                  {}, {},     chosen_kernels()};
  for (std::int64_t i = 0; i < x.count(); ++i) {
    for (std::int64_t s = 0; s < problem.segments(); ++s) {
      const bool finite = x.finite[to_size(i)] != 0;
      problem.x_windows.push_back(
          finite ? window_of(x.row(i) + problem.start(s), problem.length(s), 1) : Window{});
      problem.x_scales.push_back(wide_scale(x.matrix, x.rows[to_size(i)], problem.start(s)));
    }
  }
  return problem;
}

}  // namespace

GemmInput::GemmInput(const ScaledMatrix& input, std::span<const std::int64_t> selected)
    : matrix(input),
      rows(selected.begin(), selected.end()),
      values(rows.size() * to_size(input.cols)),
      finite(rows.size()) {
  const simd::DefaultFloatEnvironment environment;
  check_storage(matrix);
  OperandDecoder decoder(matrix);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double* row = values.data() + i * to_size(matrix.cols);
    decoder.decode(rows[i], 1, row, matrix.cols, 1, &finite[i]);
  }
}

GemmStatistics& GemmStatistics::operator+=(const GemmStatistics& other) {
  one_sum += other.one_sum;
  split += other.split;
  wide += other.wide;
  not_finite += other.not_finite;
  return *this;
}

void gemm(const GemmInput& x, const ScaledMatrix& weight, const GemmEpilogue& epilogue, float* out,
          std::int64_t out_stride, int threads, GemmStatistics* statistics) {
  const simd::DefaultFloatEnvironment environment;
  const Problem problem = describe(x, weight, epilogue);
  if (x.count() == 0) return;
  std::mutex guard;
  parallel_for<Scratch>((weight.rows + kColumns - 1) / kColumns, threads,
                        [&](std::int64_t panel, Scratch& scratch) {
                          const GemmStatistics counts =
                              PanelJob(problem, scratch).run(panel * kColumns, out, out_stride);
                          if (statistics == nullptr) return;
                          const std::lock_guard<std::mutex> lock(guard);
                          *statistics += counts;
                        });
}

}  // namespace moeref
