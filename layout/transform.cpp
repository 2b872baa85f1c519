#include "layout/transform.hpp"

#include <algorithm>
#include <memory>

#include "layout/move/axes.hpp"
#include "layout/move/copy.hpp"
#include "layout/move/placement.hpp"
#include "layout/move/rows.hpp"
#include "layout/move/stream.hpp"
#include "layout/move/words.hpp"
#include "quant/error.hpp"
#include "quant/parallel.hpp"

namespace moeref {
namespace {

using move::Box;

/// A map compiled for one shape. Keeps the map by reference.
struct Moves {
  explicit Moves(const IndexMap& index_map)
      : map(index_map),
        axes(index_map),
        units(move::unit_digits(index_map)),
        placement(move::make_placement(units, index_map.words.get(),
                                       axes.bytes_together() * 8 / units.unit_bits)) {
    box_rows =
        placement ? placement->shape().rows : std::max<std::int64_t>(1, 65536 / axes.row_bytes());
    box_rows = std::min(box_rows, units.rows);
    box_cols = placement ? placement->shape().cols : units.cols;
    bands = ceil_div(units.rows, box_rows);
  }

  std::int64_t bytes(std::int64_t cols) const { return cols * units.unit_bits / 8; }
  /// Calls with_box(box) for the boxes of a band, from left to right.
  template <typename WithBox>
  void for_boxes(std::int64_t band, WithBox with_box) const {
    const std::int64_t row = band * box_rows;
    const std::int64_t rows = std::min(box_rows, units.rows - row);
    for (std::int64_t col = 0; col < units.cols; col += box_cols) {
      with_box(Box{row, rows, col, std::min(box_cols, units.cols - col)});
    }
  }

  const IndexMap& map;
  move::Axes axes;
  move::UnitDigits units;
  std::unique_ptr<move::Placement> placement;  ///< null: rows follow each other
  std::int64_t box_rows;
  std::int64_t box_cols;
  std::int64_t bands;
};

struct ApplyScratch {
  std::vector<std::byte> packed;  ///< rows of a box
  std::vector<const std::byte*> rows;
  move::RecodeScratch recode;
  move::PlacementScratch placement;
};

struct UndoScratch {
  std::vector<std::byte> packed;
  std::vector<std::byte> words;
  move::RowWriter::Scratch rows;
  move::PlacementScratch placement;
};

/// Whether the bits of a map without placement can be moved row by row.
bool rows_are_words(const Moves& moves) { return moves.axes.row_bytes() % 4 == 0; }

/// Rows that follow each other go straight where they belong, in the order in which they are read:
/// a band is that of `rows`.
void apply_rows(const Moves& moves, const move::RowReader& reader,
                const std::vector<std::int64_t>& rows, std::int64_t expert, std::int64_t band,
                std::byte* placed, ApplyScratch& scratch) {
  const std::int64_t row_bytes = moves.axes.row_bytes();
  const move::ColumnWindow window = moves.axes.window(0, row_bytes);
  scratch.packed.resize(static_cast<std::size_t>(row_bytes));
  std::byte* const packed = scratch.packed.data();
  const std::int64_t end = std::min((band + 1) * moves.box_rows, moves.units.rows);
  for (std::int64_t i = band * moves.box_rows; i < end; ++i) {
    const std::int64_t out_row = rows[static_cast<std::size_t>(i)];
    const move::RowReader::Row row = reader.row(expert, out_row);
    const std::byte* bytes = move::RowReader::find(row, window);
    if (bytes == nullptr) {
      reader.read(row, window, packed, scratch.recode);
      bytes = packed;
    }
    if (moves.map.words != nullptr && rows_are_words(moves)) {
      move::move_words(moves.map.words->groups(), bytes, packed, row_bytes);
      bytes = packed;
    }
    move::stream_bytes(bytes, placed + out_row * row_bytes, row_bytes);
  }
}

/// Rows of a box are packed, if the placement wants it so or they are not stored as they are; then
/// put to their places.
void apply_boxes(const Moves& moves, const move::RowReader& reader, std::int64_t expert,
                 std::int64_t band, std::byte* placed, ApplyScratch& scratch) {
  const move::BoxShape& shape = moves.placement->shape();
  scratch.packed.resize(static_cast<std::size_t>(moves.box_rows * shape.pitch));
  scratch.rows.resize(static_cast<std::size_t>(moves.box_rows));
  moves.for_boxes(band, [&](const Box& box) {
    const auto window = moves.axes.window(moves.bytes(box.col), moves.bytes(box.cols));
    move::RowReader::Row next = reader.row(expert, box.row);
    for (std::int64_t i = 0; i < box.rows; ++i) {
      const move::RowReader::Row row = next;
      const std::byte* bytes = move::RowReader::find(row, window);
      if (i + 1 < box.rows) next = reader.row(expert, box.row + i + 1);
      if (bytes == nullptr || !shape.rows_anywhere) {
        move::prefetch(move::RowReader::find(next, window), window.bytes);
        std::byte* const packed = scratch.packed.data() + i * shape.pitch;
        reader.read(row, window, packed, scratch.recode);
        bytes = packed;
      }
      scratch.rows[static_cast<std::size_t>(i)] = bytes;
    }
    moves.placement->put(box, scratch.rows.data(), placed, scratch.placement);
  });
}

void undo_rows(const Moves& moves, const move::RowWriter& writer, std::int64_t expert,
               std::int64_t band, const std::byte* placed, UndoScratch& scratch,
               UndoReport& report) {
  const std::int64_t row_bytes = moves.axes.row_bytes();
  const move::ColumnWindow window = moves.axes.window(0, row_bytes);
  const std::int64_t end = std::min((band + 1) * moves.box_rows, moves.units.rows);
  for (std::int64_t row = band * moves.box_rows; row < end; ++row) {
    const std::byte* from = placed + row * row_bytes;
    if (moves.map.words != nullptr) {
      from = move::undo_words(*moves.map.words, placed, row * row_bytes, row_bytes, scratch.words);
    }
    writer.write(expert, row, window, from, scratch.rows, report);
  }
}

void undo_boxes(const Moves& moves, const move::RowWriter& writer, std::int64_t expert,
                std::int64_t band, const std::byte* placed, UndoScratch& scratch,
                UndoReport& report) {
  const std::int64_t pitch = moves.placement->shape().pitch;
  scratch.packed.resize(static_cast<std::size_t>(moves.box_rows * pitch));
  moves.for_boxes(band, [&](const Box& box) {
    const auto window = moves.axes.window(moves.bytes(box.col), moves.bytes(box.cols));
    moves.placement->take(box, placed, scratch.packed.data(), scratch.placement);
    for (std::int64_t row = 0; row < box.rows; ++row) {
      writer.write(expert, box.row + row, window, scratch.packed.data() + row * pitch, scratch.rows,
                   report);
    }
  });
}

void merge(UndoReport& total, const UndoReport& part) {
  const auto earlier = [](std::int64_t left, std::int64_t right) {
    return left < 0 ? right : right < 0 ? left : std::min(left, right);
  };
  total.pads += part.pads;
  total.wrong_pads += part.wrong_pads;
  total.first_wrong_pad = earlier(total.first_wrong_pad, part.first_wrong_pad);
  total.copies += part.copies;
  total.wrong_copies += part.wrong_copies;
  total.first_wrong_copy = earlier(total.first_wrong_copy, part.first_wrong_copy);
}

/// Where the pairs of FP4 codes stay together along an axis: entry 2i + 1 follows entry 2i.
bool keeps_pairs(const AxisTable& cols) {
  if (cols.size() % 2 != 0) return false;
  for (std::int64_t col = 0; col < cols.size(); col += 2) {
    const AxisEntry even = cols[col];
    const AxisEntry odd = cols[col + 1];
    if (even.is_pad() != odd.is_pad()) return false;
    if (even.is_pad()) {
      if (even.pad_step() != odd.pad_step() || even.fill() != odd.fill()) return false;
    } else if (even.index() % 2 != 0 || odd.index() != even.index() + 1) {
      return false;
    }
  }
  return true;
}

}  // namespace

void check_movable(std::string_view tensor, const IndexMap& map, const Recoders& recoders,
                   int in_bits) {
  if (map.words != nullptr && map.out_bytes() % 4 != 0) {
    fail(tensor,
         "{} moves bits inside 32-bit words, the layout has {} bytes; pad to a multiple of 4",
         map.words->name(), map.out_bytes());
  }
  bool nibbles = in_bits == 4;
  for (const auto& recoder : recoders) nibbles = nibbles || recoder->out_bits() == 4;
  if (!nibbles) return;
  if (map.in_cols % 2 != 0) {
    fail(tensor, "has {} columns of FP4 codes, two a byte; needed is an even number", map.in_cols);
  }
  if (!keeps_pairs(map.cols)) {
    fail(tensor,
         "its columns are cut or padded at an odd FP4 code, two are a byte; pad to an even number");
  }
  if (map.element_bits != 4 || map.out_elements() == 0) return;
  const PlacedDigit* innermost = nullptr;
  for (const PlacedDigit& digit : map.digits) {
    if (digit.size > 1) innermost = &digit;
    const bool lowest = digit.axis == Axis::col && digit.weight == 1 && digit.size > 1;
    if (lowest && digit.size % 2 != 0) innermost = &digit;
    if (lowest && digit.size % 2 != 0) break;
  }
  if (innermost != nullptr && innermost->size % 2 != 0) {
    fail(tensor, "the layout keeps {} FP4 codes together, two are a byte; needed is an even number",
         innermost->size);
  }
}

void apply(const IndexMap& map, const TensorStack& in, const Recoders& recoders,
           std::span<std::byte> out, int threads) {
  check_movable(in.name, map, recoders, in.element_bits);
  if (map.experts == 0 || map.out_elements() == 0) return;
  const Moves moves(map);
  const move::RowReader reader(moves.axes, in, recoders);
  const auto rows = moves.placement ? std::vector<std::int64_t>{} : reader.rows_as_stored();
  parallel_for<ApplyScratch>(map.experts * moves.bands, threads,
                             [&](std::int64_t item, ApplyScratch& scratch) {
                               const std::int64_t expert = item / moves.bands;
                               std::byte* placed = out.data() + expert * map.out_bytes();
                               const std::int64_t band = item % moves.bands;
                               if (moves.placement) {
                                 apply_boxes(moves, reader, expert, band, placed, scratch);
                               } else {
                                 apply_rows(moves, reader, rows, expert, band, placed, scratch);
                               }
                               move::end_streams();
                             });
  const bool words_are_done =
      moves.placement ? moves.placement->puts_words() : rows_are_words(moves);
  if (map.words != nullptr && !words_are_done) {
    parallel_for<ApplyScratch>(map.experts, threads, [&](std::int64_t expert, ApplyScratch&) {
      std::byte* placed = out.data() + expert * map.out_bytes();
      move::move_words(map.words->groups(), placed, placed, map.out_bytes());
    });
  }
}

int restored_bits(const IndexMap& map, const Recoders& recoders) {
  int bits = map.element_bits;
  for (auto recoder = recoders.rbegin(); recoder != recoders.rend(); ++recoder) {
    if (!(*recoder)->invertible()) break;
    bits = (*recoder)->in_bits();
  }
  return bits;
}

UndoReport undo(const IndexMap& map, std::span<const std::byte> in, const Recoders& recoders,
                std::span<std::byte> out, int threads) {
  check_movable("undo", map, recoders,
                recoders.empty() ? map.element_bits : recoders.front()->in_bits());
  UndoReport total;
  std::vector<UndoReport> reports;
  const move::Axes axes(map);
  const move::RowWriter writer(map, axes, in, recoders, out);
  if (map.out_elements() > 0) {
    const Moves moves(map);
    reports.resize(static_cast<std::size_t>(map.experts * moves.bands));
    parallel_for<UndoScratch>(
        map.experts * moves.bands, threads, [&](std::int64_t item, UndoScratch& scratch) {
          const std::int64_t expert = item / moves.bands;
          const std::int64_t band = item % moves.bands;
          const std::byte* placed = in.data() + expert * map.out_bytes();
          const auto undo_band = moves.placement ? undo_boxes : undo_rows;
          undo_band(moves, writer, expert, band, placed, scratch,
                    reports[static_cast<std::size_t>(item)]);
          const bool drops = !axes.dropped_cols().empty();
          const std::int64_t end = std::min((band + 1) * moves.box_rows, moves.units.rows);
          for (std::int64_t row = band * moves.box_rows; drops && row < end; ++row) {
            writer.write_dropped_cols(expert, row);
          }
          move::end_streams();
        });
  }
  parallel_for<UndoScratch>(map.experts, threads, [&](std::int64_t expert, UndoScratch&) {
    for (const std::int64_t row : axes.dropped_rows()) writer.write_dropped_row(expert, row);
  });
  for (const UndoReport& report : reports) merge(total, report);
  return total;
}

}  // namespace moeref
