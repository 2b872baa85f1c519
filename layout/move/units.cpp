#include "layout/move/units.hpp"

#include <algorithm>

namespace moeref::move {
namespace {

bool goes_on(const PlacedDigit& outer, const PlacedDigit& inner) {
  return outer.axis == inner.axis && outer.weight == inner.weight * inner.size;
}

/// Joins neighbours that go on with each other and leaves out digits of one value.
std::vector<PlacedDigit> joined(const std::vector<PlacedDigit>& digits) {
  std::vector<PlacedDigit> joined;
  for (const PlacedDigit& digit : digits) {
    if (digit.size == 1) continue;
    if (!joined.empty() && goes_on(joined.back(), digit)) {
      joined.back() = {digit.axis, digit.weight, joined.back().size * digit.size, digit.stride};
    } else {
      joined.push_back(digit);
    }
  }
  return joined;
}

/// One element is `times` units.
std::vector<PlacedDigit> widened(std::vector<PlacedDigit> digits, std::int64_t times) {
  for (PlacedDigit& digit : digits) {
    if (digit.axis == Axis::col) digit.weight *= times;
    digit.stride *= times;
  }
  digits.push_back({Axis::col, 1, times, 1});
  return digits;
}

/// Two elements are one unit: the innermost digit counts columns and is even.
std::vector<PlacedDigit> halved(std::vector<PlacedDigit> digits) {
  PlacedDigit inner = digits.back();
  digits.pop_back();
  for (PlacedDigit& digit : digits) {
    if (digit.axis == Axis::col) digit.weight /= 2;
    digit.stride /= 2;
  }
  inner.size /= 2;
  digits.push_back(inner);
  return digits;
}

}  // namespace

std::vector<std::int64_t> axis_places(const std::vector<PlacedDigit>& digits, Axis axis,
                                      std::int64_t size) {
  std::vector<PlacedDigit> rising;
  for (const PlacedDigit& digit : digits) {
    if (digit.axis == axis && digit.size > 1) rising.push_back(digit);
  }
  std::sort(rising.begin(), rising.end(), [](const PlacedDigit& left, const PlacedDigit& right) {
    return left.weight < right.weight;
  });
  std::vector<std::int64_t> places(static_cast<std::size_t>(std::min<std::int64_t>(size, 1)), 0);
  places.reserve(static_cast<std::size_t>(size));
  for (const PlacedDigit& digit : rising) {
    const std::size_t lower = places.size();
    for (std::int64_t value = 1; value < digit.size; ++value) {
      for (std::size_t i = 0; i < lower; ++i) places.push_back(places[i] + value * digit.stride);
    }
  }
  return places;
}

std::int64_t UnitDigits::run() const {
  const bool by_cols =
      !digits.empty() && digits.back().axis == Axis::col && digits.back().weight == 1;
  return by_cols ? digits.back().size : 1;
}

bool UnitDigits::row_major() const {
  for (const PlacedDigit& digit : digits) {
    if (digit.stride != digit.weight * (digit.axis == Axis::row ? cols : 1)) return false;
  }
  return true;
}

UnitDigits unit_digits(const IndexMap& map) {
  UnitDigits units{8, map.rows.size(), map.cols.size(), joined(map.digits), {}, {}};
  if (map.element_bits > 8) {
    units.cols *= map.element_bits / 8;
    units.digits = joined(widened(units.digits, map.element_bits / 8));
  } else if (map.element_bits == 4 && units.run() % 2 == 0) {
    units.cols /= 2;
    units.digits = joined(halved(units.digits));
  } else if (map.element_bits == 4) {
    units.unit_bits = 4;
  }
  units.row_place = axis_places(units.digits, Axis::row, units.rows);
  units.col_place = axis_places(units.digits, Axis::col, units.cols);
  return units;
}

}  // namespace moeref::move
