#include "layout/move/run_tile.hpp"

#include <algorithm>

#include "quant/tensor.hpp"

namespace moeref::move {
namespace {

/// Rows of a box are read by cache lines.
constexpr std::int64_t kLine = 64;

class RunTileMaker {
 public:
  RunTileMaker(const UnitDigits& units, std::int64_t max_runs, std::int64_t max_box)
      : units_(units), max_runs_(max_runs), max_box_(max_box) {}

  RunTile make(std::int64_t run) {
    tile_.run = run;
    tile_.runs = {{0, 0}};
    take({Axis::col, 1, run, 1});
    for (auto digit = units_.digits.rbegin(); digit != units_.digits.rend(); ++digit) {
      PlacedDigit rest = *digit;
      if (run > 1 && digit == units_.digits.rbegin()) {
        rest = {Axis::col, run, digit->size / run, run};
      }
      if (rest.size == 1) continue;
      const std::int64_t size = size_that_fits(rest);
      if (size < 2) break;
      rest.size = size;
      add(rest);
      if (size != digit_size(*digit, run)) break;
    }
    return tile_;
  }

 private:
  std::int64_t digit_size(const PlacedDigit& digit, std::int64_t run) const {
    const bool innermost = digit.stride == 1;
    return innermost ? digit.size / run : digit.size;
  }

  bool fits(const PlacedDigit& digit, std::int64_t size) const {
    const std::int64_t reach = digit.weight * size;
    const std::int64_t rows = digit.axis == Axis::row ? reach : tile_.box_rows;
    const std::int64_t cols = digit.axis == Axis::col ? reach : tile_.box_cols;
    return static_cast<std::int64_t>(tile_.runs.size()) * size <= max_runs_ &&
           rows * std::max(cols, kLine) <= max_box_;
  }

  /// How much of the digit the tile takes: all, a divisor, or of the last digit of an axis any
  /// power of two. Nibbles come in pairs, whatever box that takes.
  std::int64_t size_that_fits(const PlacedDigit& digit) {
    if (fits(digit, digit.size)) return digit.size;
    const std::int64_t extent = digit.axis == Axis::row ? units_.rows : units_.cols;
    std::int64_t size = 1;
    if (digit.weight * digit.size == extent) {
      while (size * 2 < digit.size && fits(digit, size * 2)) size *= 2;
      tile_.cut = size > 1 && digit.size % size != 0;
    } else {
      for (std::int64_t divisor = 2; divisor < digit.size && fits(digit, divisor); ++divisor) {
        if (digit.size % divisor == 0) size = divisor;
      }
    }
    const bool pairs = units_.unit_bits == 4 && tile_.runs.size() == 1;
    if (pairs && size % 2 != 0) {
      tile_.cut = false;
      return 2;
    }
    return size;
  }

  void take(const PlacedDigit& digit) {
    tile_.digits.push_back(digit);
    std::int64_t& reach = digit.axis == Axis::row ? tile_.box_rows : tile_.box_cols;
    reach = std::max(reach, digit.weight * digit.size);
  }

  void add(const PlacedDigit& digit) {
    take(digit);
    const std::vector<RunTile::Run> inner = tile_.runs;
    for (std::int64_t value = 1; value < digit.size; ++value) {
      const auto step = static_cast<std::int32_t>(value * digit.weight);
      for (const RunTile::Run& run : inner) {
        tile_.runs.push_back(digit.axis == Axis::row ? RunTile::Run{run.row + step, run.col}
                                                     : RunTile::Run{run.row, run.col + step});
      }
    }
  }

  const UnitDigits& units_;
  std::int64_t max_runs_;
  std::int64_t max_box_;
  RunTile tile_;
};

}  // namespace

std::int64_t RunTile::count(const Box& box, const TileBases::Base& base) const {
  const auto all = static_cast<std::int64_t>(runs.size());
  if (!cut) return all;
  const PlacedDigit& outer = digits.back();
  const std::int64_t left = outer.axis == Axis::row ? box.rows - base.row : box.cols - base.col;
  return std::min(ceil_div(left, outer.weight), outer.size) * (all / outer.size);
}

std::int64_t RunTile::whole_units() const {
  const auto all = static_cast<std::int64_t>(runs.size()) * run;
  return cut ? all / digits.back().size : all;
}

RunTile make_run_tile(const UnitDigits& units, std::int64_t run, std::int64_t max_runs,
                      std::int64_t max_box) {
  return RunTileMaker(units, max_runs, max_box).make(run);
}

}  // namespace moeref::move
