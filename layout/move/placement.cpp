#include "layout/move/placement.hpp"

#include <algorithm>
#include <numeric>

#include "quant/tensor.hpp"

namespace moeref::move {
namespace {

/// What the tile's digits leave of the digits of a map, outermost first.
std::vector<PlacedDigit> digits_outside(const UnitDigits& units, std::vector<PlacedDigit> tile) {
  std::erase_if(tile, [](const PlacedDigit& digit) { return digit.size == 1; });
  std::sort(tile.begin(), tile.end(), [](const PlacedDigit& left, const PlacedDigit& right) {
    return left.weight > right.weight;
  });
  std::vector<PlacedDigit> outside;
  for (const PlacedDigit& digit : units.digits) {
    std::int64_t end = digit.weight * digit.size;
    const auto add = [&](std::int64_t weight) {
      const std::int64_t stride = weight / digit.weight * digit.stride;
      if (weight < end) outside.push_back({digit.axis, weight, ceil_div(end, weight), stride});
    };
    for (const PlacedDigit& inside : tile) {
      const bool part = inside.axis == digit.axis && inside.weight >= digit.weight &&
                        inside.weight < digit.weight * digit.size;
      if (!part) continue;
      add(inside.weight * inside.size);
      end = inside.weight;
    }
    add(digit.weight);
  }
  return outside;
}

/// The tiles of a box of these sizes, from the first digit out.
std::vector<TileBases::Base> bases_inside(const std::vector<PlacedDigit>& outside,
                                          std::int64_t rows, std::int64_t cols) {
  std::vector<TileBases::Base> bases;
  if (rows == 0 || cols == 0) return bases;
  bases.push_back({0, 0});
  for (auto digit = outside.rbegin(); digit != outside.rend(); ++digit) {
    const bool by_row = digit->axis == Axis::row;
    const std::int64_t size = by_row ? rows : cols;
    const std::size_t inner = bases.size();
    for (std::int64_t value = 1; value < std::min(digit->size, ceil_div(size, digit->weight));
         ++value) {
      const auto step = static_cast<std::int32_t>(value * digit->weight);
      for (std::size_t i = 0; i < inner; ++i) {
        TileBases::Base base = bases[i];
        (by_row ? base.row : base.col) += step;
        if (base.row < rows && base.col < cols) bases.push_back(base);
      }
    }
  }
  return bases;
}

/// A multiple of `step` near `wanted` that cuts `size` into even pieces, or `size`.
std::int64_t even_step(std::int64_t size, std::int64_t step, std::int64_t wanted) {
  const std::int64_t line = std::lcm(step, std::int64_t{64});
  if (line <= wanted) step = line;
  const std::int64_t whole = std::max(wanted / step, std::int64_t{1}) * step;
  const std::int64_t pieces = ceil_div(size, whole);
  return std::min(ceil_div(ceil_div(size, pieces), step) * step, size);
}

/// Units that stand side by side in the output and come from the first box of these sizes.
std::int64_t stretch(const UnitDigits& units, std::int64_t rows, std::int64_t cols) {
  std::int64_t stretch = 1;
  for (auto digit = units.digits.rbegin(); digit != units.digits.rend(); ++digit) {
    const std::int64_t size = digit->axis == Axis::row ? rows : cols;
    const std::int64_t inside = std::clamp<std::int64_t>(size / digit->weight, 1, digit->size);
    stretch *= inside;
    if (inside < digit->size) break;
  }
  return stretch;
}

}  // namespace

BoxShape choose_box(const UnitDigits& units, std::int64_t row_step, std::int64_t col_step,
                    std::int64_t cols_together) {
  constexpr std::int64_t kRowBytes = 4096;
  constexpr std::int64_t kSmallBox = 1 << 14;  // bytes
  constexpr std::int64_t kLargeBox = 3 << 19;
  constexpr std::int64_t kStretch = 1024;
  const std::int64_t per_byte = 8 / units.unit_bits;
  const std::int64_t cols_wanted = std::min(kRowBytes, kLargeBox / row_step) * per_byte;
  BoxShape shape;
  const std::int64_t together = cols_together / col_step * col_step;
  const bool cut = cols_together < units.cols && together > 0;
  shape.cols = even_step(cut ? together : units.cols, col_step, cols_wanted);
  std::int64_t rows = std::max(kSmallBox * per_byte / shape.cols, row_step);
  while (rows < units.rows && 2 * rows * shape.cols <= kLargeBox * per_byte &&
         stretch(units, rows, shape.cols) < kStretch * per_byte) {
    rows *= 2;
  }
  shape.rows = even_step(units.rows, row_step, rows);
  return shape;
}

TileBases::TileBases(const UnitDigits& units, const std::vector<PlacedDigit>& digits,
                     const BoxShape& shape, std::size_t multiple)
    : rows_(shape.rows), cols_(shape.cols), row_bits_(units.row_place), col_bits_(units.col_place) {
  for (std::int64_t& place : row_bits_) place *= units.unit_bits;
  for (std::int64_t& place : col_bits_) place *= units.unit_bits;
  const std::int64_t row_count[2] = {std::min(rows_, units.rows), units.rows % rows_};
  const std::int64_t col_count[2] = {std::min(cols_, units.cols), units.cols % cols_};
  const std::vector<PlacedDigit> outside = digits_outside(units, digits);
  for (int edge = 0; edge < 4; ++edge) {
    std::vector<Base>& bases = bases_[edge];
    bases = bases_inside(outside, row_count[edge % 2], col_count[edge / 2]);
    while (bases.size() % multiple != 0) bases.push_back(bases.back());
  }
}

std::unique_ptr<Placement> make_placement(const UnitDigits& units, const BitPermutation* words,
                                          std::int64_t cols_together) {
  if (units.row_major()) return nullptr;
  const std::int64_t run_bits = units.run() * units.unit_bits;
  if (run_bits <= 16) {
    if (auto lanes = make_lane_placement(units, words)) return lanes;
  }
  return make_run_placement(units, words, cols_together);
}

}  // namespace moeref::move
