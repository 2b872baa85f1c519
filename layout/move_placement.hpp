#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout/bit_permutation.hpp"
#include "layout/move_units.hpp"

namespace moeref::move {

/// A rectangle of an expert's output axes, in units.
struct Box {
  std::int64_t row = 0;
  std::int64_t rows = 0;
  std::int64_t col = 0;
  std::int64_t cols = 0;
};

/// What a placement asks of its boxes.
struct BoxShape {
  std::int64_t rows = 0;  ///< boxes begin at multiples of these; the last of an axis may be smaller
  std::int64_t cols = 0;  ///< in units
  /// Bytes from one row to the next in memory; 0: rows may lie anywhere.
  std::int64_t pitch = 0;
};

/// Memory of one thread.
struct PlacementScratch {
  std::vector<std::byte> tile;
  std::vector<std::byte> nibbles;
  std::vector<std::byte> words;
};

/// How the packed rows of a box get to their places in an expert's output, and back.
class Placement {
 public:
  virtual ~Placement() = default;
  const BoxShape& shape() const { return shape_; }
  /// Whether put and take move the bits of words, too. If not, take still does.
  bool puts_words() const { return puts_words_; }

  /// `rows[i]`: the box's columns of its row i.
  virtual void put(const Box& box, const std::byte* const* rows, std::byte* placed,
                   PlacementScratch& scratch) const = 0;
  virtual void take(const Box& box, const std::byte* placed, std::byte* const* rows,
                    PlacementScratch& scratch) const = 0;

 protected:
  BoxShape shape_;
  bool puts_words_ = true;
};

/// Chooses the way for these digits. `words` may be null. nullptr: rows follow each other as they
/// are, there is nothing to place.
std::unique_ptr<Placement> make_placement(const UnitDigits& units, const BitPermutation* words);

/// Words of 64 bits whose units change lanes: any order whose innermost digits and lowest columns
/// are powers of two. nullptr: not such an order, or one that would need too large a box.
std::unique_ptr<Placement> make_lane_placement(const UnitDigits& units,
                                               const BitPermutation* words);
/// Runs of bytes (single ones, pairs, ..) or single nibbles by a table of where each comes from.
std::unique_ptr<Placement> make_run_placement(const UnitDigits& units, const BitPermutation* words);

/// Where the tiles of a box begin: the first rows and columns of all tiles that have `digits`, in
/// the order of the output.
class TileBases {
 public:
  struct Base {
    std::int32_t row;
    std::int32_t col;
  };
  TileBases() = default;
  TileBases(const UnitDigits& units, const std::vector<PlacedDigit>& digits, const BoxShape& shape);

  const std::vector<Base>& of(const Box& box) const {
    return bases_[(box.rows < rows_ ? 1 : 0) + (box.cols < cols_ ? 2 : 0)];
  }
  /// Of the tile's first unit, in bytes.
  std::int64_t place(const Box& box, const Base& base) const {
    return (row_place_[static_cast<std::size_t>(box.row + base.row)] +
            col_place_[static_cast<std::size_t>(box.col + base.col)]) *
           unit_bits_ / 8;
  }

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  int unit_bits_ = 8;
  std::vector<std::int64_t> row_place_;
  std::vector<std::int64_t> col_place_;
  std::vector<Base> bases_[4];  ///< whole boxes, at the last rows, at the last columns, at both
};

/// Bytes from one packed row of a box to the next: apart from powers of two, so that rows do not
/// share cache sets.
constexpr std::int64_t packed_pitch(std::int64_t row_bytes) {
  return (row_bytes + 63) / 64 * 64 + 16;
}

/// A multiple of `step` near `wanted` that cuts `size` into even pieces, or `size`.
std::int64_t even_step(std::int64_t size, std::int64_t step, std::int64_t wanted);

}  // namespace moeref::move
