#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout/bit_permutation.hpp"
#include "layout/move/units.hpp"

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
  std::int64_t pitch = 0;      ///< bytes from one packed row to the next
  bool rows_anywhere = false;  ///< put takes rows that are not packed, too
};

/// Memory of one thread.
struct PlacementScratch {
  std::vector<std::byte> tile;
  std::vector<std::byte> nibbles;
  std::vector<std::byte> joined;
  std::vector<std::byte> words;
};

/// How the packed rows of a box get to their places in an expert's output, and back.
class Placement {
 public:
  virtual ~Placement() = default;
  const BoxShape& shape() const { return shape_; }
  /// Whether put moves the bits of words, too; take always does.
  bool puts_words() const { return puts_words_; }

  /// `rows[i]`: the box's columns of its row i, `pitch` apart unless they may lie anywhere.
  virtual void put(const Box& box, const std::byte* const* rows, std::byte* placed,
                   PlacementScratch& scratch) const = 0;
  virtual void take(const Box& box, const std::byte* placed, std::byte* packed,
                    PlacementScratch& scratch) const = 0;

 protected:
  BoxShape shape_;
  bool puts_words_ = true;
};

/// Chooses the way for these digits. `words` may be null. `cols_together`: so many first columns of
/// a row stand side by side in the input, too. nullptr: rows follow each other as they are, there
/// is nothing to place.
std::unique_ptr<Placement> make_placement(const UnitDigits& units, const BitPermutation* words,
                                          std::int64_t cols_together);

/// Words of 64 bits whose units change lanes: any order whose innermost digits and lowest columns
/// are powers of two. nullptr: not such an order, or one that would need too large a box.
std::unique_ptr<Placement> make_lane_placement(const UnitDigits& units,
                                               const BitPermutation* words);
/// Runs of bytes (single ones, pairs, ..) or single nibbles by a table of where each comes from.
std::unique_ptr<Placement> make_run_placement(const UnitDigits& units, const BitPermutation* words,
                                              std::int64_t cols_together);

/// Where the tiles of boxes begin: the first rows and columns of all tiles that have `digits`, in
/// the order of the output.
class TileBases {
 public:
  struct Base {
    std::int32_t row;
    std::int32_t col;
  };
  TileBases() = default;
  /// `multiple`: the last base is repeated until there are so many times n of them.
  TileBases(const UnitDigits& units, const std::vector<PlacedDigit>& digits, const BoxShape& shape,
            std::size_t multiple = 1);

  const std::vector<Base>& of(const Box& box) const {
    return bases_[(box.rows < rows_ ? 1 : 0) + (box.cols < cols_ ? 2 : 0)];
  }

  /// Places of the tiles of one box, in bytes.
  class Places {
   public:
    Places(const TileBases& bases, const Box& box)
        : row_bits_(bases.row_bits_.data() + box.row),
          col_bits_(bases.col_bits_.data() + box.col) {}
    std::int64_t operator[](const Base& base) const {
      return (row_bits_[base.row] + col_bits_[base.col]) >> 3;
    }

   private:
    const std::int64_t* row_bits_;
    const std::int64_t* col_bits_;
  };

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::vector<std::int64_t> row_bits_;  ///< places of rows ...
  std::vector<std::int64_t> col_bits_;  ///< ... and columns, in bits
  std::vector<Base> bases_[4];  ///< whole boxes, at the last rows, at the last columns, at both
};

/// Bytes from one packed row of a box to the next: apart from powers of two, so that rows do not
/// share cache sets.
constexpr std::int64_t packed_pitch(std::int64_t row_bytes) {
  return (row_bytes + 63) / 64 * 64 + 16;
}

/// Boxes that hold whole steps of rows and columns, so that memory is read and written in long
/// stretches: whole rows up to some KB, and as many rows as it takes to fill stretches of the
/// output (bounded: a box has at most about 1.5 MB). The first `cols_together` columns are cut
/// evenly.
BoxShape choose_box(const UnitDigits& units, std::int64_t row_step, std::int64_t col_step,
                    std::int64_t cols_together);

}  // namespace moeref::move
