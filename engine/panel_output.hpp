#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/exact/linear_form.hpp"
#include "engine/gemm.hpp"
#include "engine/panel.hpp"
#include "engine/weight_panel.hpp"

namespace moeref {

/// What the outputs that sums do not decide are computed with, kept from one to the next.
struct OutputScratch {
  std::vector<double> weight_row;
  exact::LinearForm form;
};

/// From the sums of panels to outputs.
class PanelOutput {
 public:
  PanelOutput(const GemmProblem& problem, WeightReader& reader, OutputScratch& scratch, float* out,
              std::int64_t out_stride)
      : problem_(problem), reader_(reader), scratch_(scratch), out_(out), out_stride_(out_stride) {}

  /// The outputs of one row in the columns of the panel.
  void finish_row(const Panel& panel, std::int64_t row);
  const GemmStatistics& statistics() const { return statistics_; }

 private:
  bool is_finite(const Panel& panel, std::int64_t row, std::int64_t j, double residual) const;
  std::int64_t& counter(const Panel& panel, std::int64_t row, bool estimated);
  float by_itself(const Panel& panel, std::int64_t row, std::int64_t j,
                  std::array<double, 2> addends);
  void add_wide_sum(double scale, std::span<const double> x, std::span<const double> w);
  void read_weight_row(const Panel& panel, std::int64_t j);
  float class_of_ieee_sum(const Panel& panel, std::int64_t row, std::int64_t j, double residual);

  const GemmProblem& problem_;
  WeightReader& reader_;
  OutputScratch& scratch_;
  float* out_;
  std::int64_t out_stride_;
  GemmStatistics statistics_;
};

}  // namespace moeref
