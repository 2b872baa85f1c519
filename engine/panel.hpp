#pragma once

#include <array>
#include <cstdint>

#include "engine/gemm_problem.hpp"
#include "engine/row_parts.hpp"
#include "engine/weight_panel.hpp"
#include "quant/aligned.hpp"

namespace moeref {

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

  /// Row of `sums` where the parts of a row begin.
  std::int64_t part_begin(std::int64_t row) const {
    return parts == nullptr ? row : parts->begin[static_cast<std::size_t>(row)];
  }
};

/// Measures the columns over all segments, for what folded sums lack.
void measure_columns(const GemmProblem& problem, Panel& panel);

/// Whether the f64 sums of a row are exact in every column and segment.
inline bool is_proved(const GemmProblem& problem, const Panel& panel, std::int64_t row) {
  return problem.x_bits[static_cast<std::size_t>(row)] <= panel.room;
}

/// What folded sums lack at most of the sum of their segments' sums, to `error` [kPanelColumns].
void add_fold_errors(const GemmProblem& problem, const Panel& panel, std::int64_t row,
                     double* error);

/// What the f64 sums of a row over a segment can be wrong by, times |scale * scales|, to `error`
/// [kPanelColumns]; nothing where the sum is exact. `scales` [kPanelColumns].
void add_estimates(const GemmProblem& problem, const Panel& panel, std::int64_t row, std::int64_t s,
                   double scale, const double* scales, double* error);

}  // namespace moeref
