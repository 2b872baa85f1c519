#include "engine/panel.hpp"

#include <algorithm>
#include <cmath>

#include "engine/sum_bounds.hpp"
#include "quant/formats.hpp"

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

}  // namespace

void measure_columns(const GemmProblem& problem, Panel& panel) {
  panel.most.fill(0.0);
  panel.lowest.fill(RowReach::kNoBits);
  for (std::int64_t s = 0; s < problem.segments(); ++s) {
    for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
      const std::size_t at = to_size(s * kPanelColumns) + j;
      const double scale = std::fabs(panel.survey.scales[at]);
      const double largest = panel.survey.largest[at];
      if (largest == 0.0 || scale == 0.0 || !std::isfinite(scale)) continue;
      panel.most[j] = std::max(panel.most[j], largest * scale * (1.0 + 0x1p-30));
      panel.lowest[j] = std::min(panel.lowest[j], exponent_above(largest) - panel.survey.spread[j] +
                                                      lowest_exponent(scale));
    }
  }
  panel.most_of_all = *std::max_element(panel.most.begin(), panel.most.end());
  panel.lowest_of_all = *std::min_element(panel.lowest.begin(), panel.lowest.end());
}

void add_fold_errors(const GemmProblem& problem, const Panel& panel, std::int64_t row,
                     double* error) {
  const RowReach& reach = problem.reaches[to_size(row)];
  const std::int64_t parts = panel.part_begin(row + 1) - panel.part_begin(row);
  const std::int64_t count = problem.segments() * parts;
  const auto bound = [&](double most, int lowest) {
    return fold_bound(count, reach.total * most, reach.lowest + lowest);
  };
  if (bound(panel.most_of_all, panel.lowest_of_all) == 0.0) return;
  for (std::size_t j = 0; j < to_size(panel.survey.columns); ++j) {
    error[j] += bound(panel.most[j], panel.lowest[j]);
  }
}

void add_estimates(const GemmProblem& problem, const Panel& panel, std::int64_t row, std::int64_t s,
                   double scale, const double* scales, double* error) {
  const Window& window = problem.window(row, s);
  if (window.empty) return;
  const bool cut = panel.parts != nullptr && panel.parts->possible[to_size(row)] != 0;
  const int bits = window.sum - window.lowest;
  const double by_terms = sum_bound(additions(problem, problem.end(s) - problem.start(s)));
  const double factor = std::fabs(scale) * by_terms * (1.0 + 0x1p-40);
  const double* largest = panel.survey.largest.data() + s * kPanelColumns;
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    const bool exact = bits + panel.survey.spread[j] <= kSumBits || (cut && panel.wide[j] == 0);
    const double products = std::min(window.total * largest[j], window.norm * panel.norms[j]);
    if (!exact) error[j] += products * factor * std::fabs(scales[j]);
  }
}

}  // namespace moeref
