#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "layout/move/axes.hpp"
#include "layout/transform.hpp"

namespace moeref::move {

/// Codes on their way through the recoders; of one thread.
struct RecodeScratch {
  std::vector<std::byte> piece;
  std::vector<std::byte> next;
};

/// Gives the output rows of a map, packed, from a stack: rows and columns moved, codes rewritten,
/// pads filled.
class RowReader {
 public:
  RowReader(const Axes& axes, const TensorStack& in, const Recoders& recoders);

  /// All output rows in the order in which the stack has them; rows of padding come first.
  std::vector<std::int64_t> rows_as_stored() const;

  /// Where an output row comes from, in any expert.
  struct Source {
    const std::byte* pad;     ///< all bytes of a row of padding, or nullptr and
    std::int64_t in_row = 0;  ///< a row of the input, which is
    std::int64_t half = 0;
    std::int64_t row = 0;  ///< this row of a half
  };
  /// An output row. `bytes`: of padding, or of the input row where no code is rewritten and its
  /// columns lie side by side; otherwise nullptr.
  struct Row {
    std::int64_t expert = 0;
    const Source* source = nullptr;
    const std::byte* bytes = nullptr;
  };
  Row row(std::int64_t expert, std::int64_t out_row) const;
  /// The window's bytes if they lie somewhere as they are, or nullptr.
  static const std::byte* find(const Row& row, const ColumnWindow& window) {
    if (row.source->pad != nullptr) return row.bytes + window.byte;
    const bool as_it_is = row.bytes != nullptr && window.is_one_run();
    return as_it_is ? row.bytes + window.pieces.front().in_byte : nullptr;
  }
  void read(const Row& row, const ColumnWindow& window, std::byte* to,
            RecodeScratch& scratch) const;

 private:
  std::size_t plane(const Source& source, std::int64_t expert) const {
    return static_cast<std::size_t>(expert * in_.halves + source.half);
  }
  /// Of the row's first column, in its plane.
  std::int64_t bit(const Source& source, std::int64_t expert) const;
  void read_columns(const Row& row, std::int64_t col, std::int64_t count, std::byte* to,
                    RecodeScratch& scratch) const;
  void load(const Row& row, std::int64_t col, std::int64_t count, std::byte* to) const;

  const TensorStack& in_;
  const Recoders& recoders_;
  std::vector<Source> sources_;
};

/// Takes the output rows of a map apart: elements go back to the dense input, pads and copies are
/// checked.
class RowWriter {
 public:
  RowWriter(const IndexMap& map, const Axes& axes, std::span<const std::byte> placed,
            const Recoders& recoders, std::span<std::byte> out);

  /// Memory of one thread.
  struct Scratch {
    RecodeScratch recode;
    std::vector<std::byte> zeros;
    std::vector<std::byte> first;  ///< the first copy of ...
    std::int64_t first_expert = -1;
    std::int64_t first_row = -1;
    std::int64_t first_byte = -1;
  };
  /// Writes the elements of a packed window and checks the rest.
  void write(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window,
             const std::byte* from, Scratch& scratch, UndoReport& report) const;
  /// Writes what the layout dropped: whole rows, and columns of the rows that it kept.
  void write_dropped_row(std::int64_t expert, std::int64_t in_row) const;
  void write_dropped_cols(std::int64_t expert, std::int64_t out_row) const;

 private:
  /// The input row that an output row holds before any other does; -1: none.
  std::int64_t first_of(std::int64_t out_row) const {
    return first_of_[static_cast<std::size_t>(out_row)];
  }
  std::byte* target(std::int64_t expert, std::int64_t in_row, std::int64_t col) const;
  void restore(std::int64_t expert, std::int64_t in_row, std::int64_t col, std::int64_t count,
               const std::byte* from, RecodeScratch& scratch) const;
  void write_zeros(std::int64_t expert, std::int64_t in_row, ColumnSpan cols) const;
  void check_pads(std::int64_t expert, std::int64_t out_row, std::int64_t col, std::int64_t count,
                  const std::byte* from, const std::byte* wanted, UndoReport& report) const;
  void check_copies(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window,
                    const ColumnPiece& piece, const std::byte* from, Scratch& scratch,
                    UndoReport& report) const;
  /// The first copies of a window's elements, for all rows that hold the same.
  void collect_first(std::int64_t expert, std::int64_t first_row, const ColumnWindow& window,
                     Scratch& scratch) const;
  std::uint32_t placed_element(std::int64_t expert, std::int64_t place) const;

  const IndexMap& map_;
  const Axes& axes_;
  std::span<const std::byte> placed_;
  const Recoders& recoders_;
  std::span<std::byte> out_;
  int bits_;
  int restored_bits_;
  std::int64_t in_row_bytes_;
  bool as_they_are_;  ///< no code is rewritten
  std::vector<std::int64_t> first_of_;
};

}  // namespace moeref::move
