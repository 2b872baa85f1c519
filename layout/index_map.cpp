#include "layout/index_map.hpp"

#include <algorithm>
#include <stdexcept>

namespace moeref {
namespace {

/// Sizes of the digits of one axis, whose rest is what `extent` leaves.
void resolve(std::vector<PlacedDigit>& digits, Axis axis, std::int64_t extent) {
  std::vector<PlacedDigit*> rising;
  for (PlacedDigit& digit : digits) {
    if (digit.axis == axis) rising.push_back(&digit);
  }
  std::sort(rising.begin(), rising.end(),
            [](const auto* left, const auto* right) { return left->weight < right->weight; });
  std::int64_t covered = 1;
  for (PlacedDigit* digit : rising) {
    if (digit->weight != covered) throw std::invalid_argument("IndexMap: digits leave a gap");
    if (digit->size == Digit::kRest) {
      if (digit != rising.back() || extent % covered != 0) {
        throw std::invalid_argument("IndexMap: digits do not divide the axis");
      }
      digit->size = extent / covered;
    }
    covered *= digit->size;
  }
  if (covered != extent) throw std::invalid_argument("IndexMap: digits do not cover the axis");
}

}  // namespace

IndexMap::IndexMap(std::int64_t expert_count, std::int64_t row_count, std::int64_t col_count,
                   int bits)
    : experts(expert_count),
      in_rows(row_count),
      in_cols(col_count),
      element_bits(bits),
      rows(row_count),
      cols(col_count) {
  place({{Axis::row, 1}, {Axis::col, 1}});
}

void IndexMap::place(const std::vector<Digit>& order) {
  std::vector<PlacedDigit> placed;
  for (const Digit& digit : order) placed.push_back({digit.axis, digit.weight, digit.size, 0});
  resolve(placed, Axis::row, rows.size());
  resolve(placed, Axis::col, cols.size());
  std::int64_t stride = 1;
  for (auto digit = placed.rbegin(); digit != placed.rend(); ++digit) {
    digit->stride = stride;
    stride *= digit->size;
  }
  digits = std::move(placed);
}

Origin IndexMap::origin(std::int64_t element) const {
  std::int64_t row = 0;
  std::int64_t col = 0;
  for (const PlacedDigit& digit : digits) {
    const std::int64_t value = element / digit.stride;
    element %= digit.stride;
    (digit.axis == Axis::row ? row : col) += value * digit.weight;
  }
  const AxisEntry from_row = rows[row];
  const AxisEntry from_col = cols[col];
  if (!from_row.is_pad() && !from_col.is_pad()) {
    return {.row = from_row.index(), .col = from_col.index()};
  }
  const bool by_row =
      !from_col.is_pad() || (from_row.is_pad() && from_row.pad_step() > from_col.pad_step());
  const AxisEntry& pad = by_row ? from_row : from_col;
  return {.pad = true, .pad_step = pad.pad_step(), .fill = pad.fill()};
}

std::int64_t IndexMap::place_of(std::int64_t out_row, std::int64_t out_col) const {
  std::int64_t element = 0;
  for (const PlacedDigit& digit : digits) {
    const std::int64_t index = digit.axis == Axis::row ? out_row : out_col;
    element += index / digit.weight % digit.size * digit.stride;
  }
  return element;
}

}  // namespace moeref
