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

  /// An output row. `bytes`: of padding, or of the input row where no code is rewritten and its
  /// columns lie side by side; otherwise nullptr.
  struct Row {
    std::int64_t expert = 0;
    std::int64_t in_row = 0;
    bool pad = false;
    const std::byte* bytes = nullptr;
  };
  Row row(std::int64_t expert, std::int64_t out_row) const;
  /// The window's bytes if they lie somewhere as they are, or nullptr.
  static const std::byte* find(const Row& row, const ColumnWindow& window) {
    if (row.pad) return row.bytes + window.byte;
    const bool as_it_is = row.bytes != nullptr && window.is_one_run();
    return as_it_is ? row.bytes + window.pieces.front().in_byte : nullptr;
  }
  void read(const Row& row, const ColumnWindow& window, std::byte* to,
            RecodeScratch& scratch) const;

 private:
  const Plane& plane(std::int64_t expert, std::int64_t& row) const;
  void read_columns(const Row& row, std::int64_t col, std::int64_t count, std::byte* to,
                    RecodeScratch& scratch) const;
  void load(const Row& row, std::int64_t col, std::int64_t count, std::byte* to) const;

  const Axes& axes_;
  const TensorStack& in_;
  const Recoders& recoders_;
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
  /// Where the window of an output row goes as it is, with nothing to check, or nullptr.
  std::byte* find(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window) const;
  /// Writes the elements of a packed window and checks the rest.
  void write(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window,
             const std::byte* from, Scratch& scratch, UndoReport& report) const;
  /// Writes what the layout dropped: whole rows, and columns of the rows that it kept.
  void write_dropped_row(std::int64_t expert, std::int64_t in_row, Scratch& scratch) const;
  void write_dropped_cols(std::int64_t expert, std::int64_t out_row, Scratch& scratch) const;

 private:
  bool is_first(std::int64_t out_row) const;
  std::byte* target(std::int64_t expert, std::int64_t in_row, std::int64_t col) const;
  void restore(std::int64_t expert, std::int64_t in_row, std::int64_t col, std::int64_t count,
               const std::byte* from, RecodeScratch& scratch) const;
  void write_zeros(std::int64_t expert, std::int64_t in_row, ColumnSpan cols,
                   Scratch& scratch) const;
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
};

}  // namespace moeref::move
