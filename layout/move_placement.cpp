#include "layout/move_placement.hpp"

#include <algorithm>

#include "quant/tensor.hpp"

namespace moeref::move {
namespace {

/// The indices below `size` at which the digits of one axis are all 0.
std::vector<std::int32_t> bases_of(const std::vector<PlacedDigit>& digits, Axis axis,
                                   std::int64_t size) {
  std::vector<std::int32_t> bases;
  for (std::int64_t i = 0; i < size; ++i) {
    const bool begins = std::all_of(digits.begin(), digits.end(), [&](const PlacedDigit& digit) {
      return digit.axis != axis || i / digit.weight % digit.size == 0;
    });
    if (begins) bases.push_back(static_cast<std::int32_t>(i));
  }
  return bases;
}

}  // namespace

TileBases::TileBases(const UnitDigits& units, const std::vector<PlacedDigit>& digits,
                     const BoxShape& shape)
    : rows_(shape.rows),
      cols_(shape.cols),
      unit_bits_(units.unit_bits),
      row_place_(units.row_place),
      col_place_(units.col_place) {
  const std::int64_t row_count[2] = {std::min(rows_, units.rows), units.rows % rows_};
  const std::int64_t col_count[2] = {std::min(cols_, units.cols), units.cols % cols_};
  for (int edge = 0; edge < 4; ++edge) {
    std::vector<Base>& bases = bases_[edge];
    const auto cols = bases_of(digits, Axis::col, col_count[edge / 2]);
    for (const std::int32_t row : bases_of(digits, Axis::row, row_count[edge % 2])) {
      for (const std::int32_t col : cols) bases.push_back({row, col});
    }
    std::sort(bases.begin(), bases.end(), [this](const Base& left, const Base& right) {
      return place({}, left) < place({}, right);
    });
  }
}

std::int64_t even_step(std::int64_t size, std::int64_t step, std::int64_t wanted) {
  const std::int64_t whole = std::max(wanted / step, std::int64_t{1}) * step;
  const std::int64_t pieces = ceil_div(size, whole);
  return std::min(ceil_div(ceil_div(size, pieces), step) * step, size);
}

std::unique_ptr<Placement> make_placement(const UnitDigits& units, const BitPermutation* words) {
  if (units.row_major()) return nullptr;
  const std::int64_t run_bits = units.run() * units.unit_bits;
  if (run_bits <= 16) {
    if (auto lanes = make_lane_placement(units, words)) return lanes;
  }
  return make_run_placement(units, words);
}

}  // namespace moeref::move
