#pragma once

#include <cstdint>
#include <vector>

#include "layout/move/placement.hpp"

namespace moeref::move {

/// A stretch of the output that is filled by runs of a row of the input axes, in units: the
/// innermost digits, cut where the stretch would get too long or reach over too large a box.
struct RunTile {
  struct Run {
    std::int32_t row;
    std::int32_t col;
  };
  std::int64_t run = 1;             ///< units of each run
  std::vector<Run> runs;            ///< in output order, from the tile's first row and column
  std::vector<PlacedDigit> digits;  ///< that the tile covers
  std::int64_t box_rows = 1;        ///< a box that holds whole tiles has a multiple of these
  std::int64_t box_cols = 1;
  bool cut = false;  ///< the outermost of `digits` does not divide its axis: a last tile is shorter

  /// Runs of the tile at `base` that are inside the box.
  std::int64_t count(const Box& box, const TileBases::Base& base) const;
  /// Units whose multiple every tile has.
  std::int64_t whole_units() const;
};

/// `run`: units of a run. At most `max_runs` runs, boxes of about `max_box` units.
RunTile make_run_tile(const UnitDigits& units, std::int64_t run, std::int64_t max_runs,
                      std::int64_t max_box);

}  // namespace moeref::move
