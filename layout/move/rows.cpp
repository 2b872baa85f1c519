#include "layout/move/rows.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "layout/move/copy.hpp"
#include "layout/move/element.hpp"
#include "layout/move/stream.hpp"

namespace moeref::move {
namespace {

void make_room(std::vector<std::byte>& bytes, std::int64_t size) {
  if (static_cast<std::int64_t>(bytes.size()) < size) bytes.resize(static_cast<std::size_t>(size));
}

template <int Width>
void load_apart(const std::byte* from, std::int64_t stride, std::int64_t count, std::byte* to) {
  for (std::int64_t i = 0; i < count; ++i) std::memcpy(to + i * Width, from + i * stride, Width);
}

}  // namespace

RowReader::RowReader(const Axes& axes, const TensorStack& in, const Recoders& recoders)
    : in_(in), recoders_(recoders) {
  for (std::int64_t out_row = 0; out_row < axes.rows(); ++out_row) {
    Source source{axes.pad_row(out_row)};
    if (source.pad == nullptr) {
      source.in_row = axes.input_row(out_row);
      source.half = source.in_row / in.half_rows;
      source.row = source.in_row % in.half_rows;
    }
    sources_.push_back(source);
  }
}

std::vector<std::int64_t> RowReader::rows_as_stored() const {
  std::vector<std::int64_t> rows(sources_.size());
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  const auto stored = [&](std::int64_t out_row) {
    const Source& source = sources_[static_cast<std::size_t>(out_row)];
    return source.pad != nullptr ? nullptr : in_.planes[plane(source, 0)].data + bit(source, 0) / 8;
  };
  std::stable_sort(rows.begin(), rows.end(), [&](std::int64_t left, std::int64_t right) {
    return std::less<>()(stored(left), stored(right));
  });
  return rows;
}

std::int64_t RowReader::bit(const Source& source, std::int64_t expert) const {
  const Plane& from = in_.planes[plane(source, expert)];
  return (from.origin + source.row * from.row_stride) * in_.element_bits;
}

RowReader::Row RowReader::row(std::int64_t expert, std::int64_t out_row) const {
  const Source& source = sources_[static_cast<std::size_t>(out_row)];
  if (source.pad != nullptr) return {expert, &source, source.pad};
  if (!recoders_.empty()) return {expert, &source, nullptr};
  const Plane& from = in_.planes[plane(source, expert)];
  const std::int64_t first = bit(source, expert);
  const bool side_by_side = from.col_stride == 1 && first % 8 == 0;
  return {expert, &source, side_by_side ? from.data + first / 8 : nullptr};
}

void RowReader::read(const Row& row, const ColumnWindow& window, std::byte* to,
                     RecodeScratch& scratch) const {
  if (row.source->pad != nullptr) {
    copy_bytes(row.bytes + window.byte, to, window.bytes);
    return;
  }
  for (const ColumnPiece& piece : window.pieces) {
    std::byte* at = to + piece.byte;
    if (piece.pad) {
      fill_bytes(at, piece.fill, piece.bytes);
    } else if (row.bytes != nullptr) {
      copy_bytes(row.bytes + piece.in_byte, at, piece.bytes);
    } else {
      read_columns(row, piece.in_col, piece.count, at, scratch);
    }
  }
}

void RowReader::read_columns(const Row& row, std::int64_t col, std::int64_t count, std::byte* to,
                             RecodeScratch& scratch) const {
  if (recoders_.empty()) {
    load(row, col, count, to);
    return;
  }
  int bits = in_.element_bits;
  const std::byte* from = in_.contiguous(row.expert, row.source->in_row, col);
  if (from == nullptr) {
    make_room(scratch.piece, count * bits / 8);
    load(row, col, count, scratch.piece.data());
    from = scratch.piece.data();
  }
  for (std::size_t i = 0; i < recoders_.size(); ++i) {
    const auto& recoder = recoders_[i];
    const bool last = i + 1 == recoders_.size();
    const std::int64_t size = count * recoder->out_bits() / 8;
    if (!last) make_room(scratch.next, size);
    std::byte* next = last ? to : scratch.next.data();
    recoder->rewrite({row.expert, row.source->in_row, col},
                     {from, static_cast<std::size_t>(count * bits / 8)},
                     {next, static_cast<std::size_t>(size)});
    bits = recoder->out_bits();
    if (!last) {
      std::swap(scratch.piece, scratch.next);
      from = scratch.piece.data();
    }
  }
}

void RowReader::load(const Row& row, std::int64_t col, std::int64_t count, std::byte* to) const {
  const Plane& plane = in_.planes[this->plane(*row.source, row.expert)];
  const int width = in_.element_bits / 8;
  if (plane.col_stride == 1 || width == 0) {
    in_.read(row.expert, row.source->in_row, col, count, to);
    return;
  }
  const std::int64_t first =
      plane.origin + row.source->row * plane.row_stride + col * plane.col_stride;
  const std::byte* from = plane.data + first * width;
  const std::int64_t stride = plane.col_stride * width;
  if (width == 1) load_apart<1>(from, stride, count, to);
  if (width == 2) load_apart<2>(from, stride, count, to);
  if (width == 4) load_apart<4>(from, stride, count, to);
}

RowWriter::RowWriter(const IndexMap& map, const Axes& axes, std::span<const std::byte> placed,
                     const Recoders& recoders, std::span<std::byte> out)
    : map_(map),
      axes_(axes),
      placed_(placed),
      recoders_(recoders),
      out_(out),
      bits_(map.element_bits),
      restored_bits_(restored_bits(map, recoders)),
      in_row_bytes_(map.in_cols * bits_ / 8),
      as_they_are_(recoders.empty() || !recoders.back()->invertible()) {
  if (map.out_elements() == 0) return;
  for (std::int64_t row = 0; row < axes.rows(); ++row) {
    const std::int64_t in_row = axes.pad_row(row) == nullptr ? axes.input_row(row) : -1;
    first_of_.push_back(in_row >= 0 && axes.first_row(in_row) == row ? in_row : -1);
  }
}

std::byte* RowWriter::target(std::int64_t expert, std::int64_t in_row, std::int64_t col) const {
  return out_.data() + ((expert * map_.in_rows + in_row) * map_.in_cols + col) * restored_bits_ / 8;
}

void RowWriter::write(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window,
                      const std::byte* from, Scratch& scratch, UndoReport& report) const {
  if (const std::byte* pad = axes_.pad_row(out_row)) {
    check_pads(expert, out_row, window.first_col(), window.bytes * 8 / bits_, from,
               pad + window.byte, report);
    return;
  }
  const std::int64_t in_row = first_of(out_row);
  std::byte* const to = as_they_are_ && in_row >= 0
                            ? out_.data() + (expert * map_.in_rows + in_row) * in_row_bytes_
                            : nullptr;
  for (const ColumnPiece& piece : window.pieces) {
    const std::byte* at = from + piece.byte;
    if (piece.pad && is_filled(at, piece.fill, piece.bytes)) {
      report.pads += piece.count;
    } else if (piece.pad) {
      make_room(scratch.zeros, piece.bytes);
      fill_bytes(scratch.zeros.data(), piece.fill, piece.bytes);
      check_pads(expert, out_row, piece.out_col, piece.count, at, scratch.zeros.data(), report);
    } else if (piece.copy || in_row < 0) {
      check_copies(expert, out_row, window, piece, at, scratch, report);
    } else if (as_they_are_) {
      stream_bytes(at, to + piece.in_byte, piece.bytes);
    } else {
      restore(expert, in_row, piece.in_col, piece.count, at, scratch.recode);
    }
  }
}

void RowWriter::restore(std::int64_t expert, std::int64_t in_row, std::int64_t col,
                        std::int64_t count, const std::byte* from, RecodeScratch& scratch) const {
  std::byte* to = target(expert, in_row, col);
  int bits = bits_;
  auto recoder = recoders_.rbegin();
  for (; recoder != recoders_.rend() && (*recoder)->invertible(); ++recoder) {
    const int before = (*recoder)->in_bits();
    make_room(scratch.next, count * before / 8);
    (*recoder)->restore({expert, in_row, col}, {from, static_cast<std::size_t>(count * bits / 8)},
                        {scratch.next.data(), static_cast<std::size_t>(count * before / 8)});
    std::swap(scratch.piece, scratch.next);
    from = scratch.piece.data();
    bits = before;
  }
  stream_bytes(from, to, count * bits / 8);
}

void RowWriter::write_zeros(std::int64_t expert, std::int64_t in_row, ColumnSpan cols) const {
  fill_bytes(target(expert, in_row, cols.col), std::byte{0}, cols.count * restored_bits_ / 8);
}

void RowWriter::write_dropped_row(std::int64_t expert, std::int64_t in_row) const {
  write_zeros(expert, in_row, {0, map_.in_cols});
}

void RowWriter::write_dropped_cols(std::int64_t expert, std::int64_t out_row) const {
  if (first_of(out_row) < 0) return;
  for (const ColumnSpan& cols : axes_.dropped_cols()) {
    write_zeros(expert, axes_.input_row(out_row), cols);
  }
}

void RowWriter::check_pads(std::int64_t expert, std::int64_t out_row, std::int64_t col,
                           std::int64_t count, const std::byte* from, const std::byte* wanted,
                           UndoReport& report) const {
  report.pads += count;
  if (std::memcmp(from, wanted, static_cast<std::size_t>(count * bits_ / 8)) == 0) return;
  for (std::int64_t i = 0; i < count; ++i) {
    if (element(from, i, bits_) == element(wanted, i, bits_)) continue;
    ++report.wrong_pads;
    const std::int64_t place = expert * map_.out_elements() + axes_.place(out_row, col + i);
    if (report.first_wrong_pad < 0 || place < report.first_wrong_pad) {
      report.first_wrong_pad = place;
    }
  }
}

void RowWriter::check_copies(std::int64_t expert, std::int64_t out_row, const ColumnWindow& window,
                             const ColumnPiece& piece, const std::byte* from, Scratch& scratch,
                             UndoReport& report) const {
  const std::int64_t first_row = axes_.first_row(axes_.input_row(out_row));
  if (scratch.first_expert != expert || scratch.first_row != first_row ||
      scratch.first_byte != window.byte) {
    collect_first(expert, first_row, window, scratch);
  }
  report.copies += piece.count;
  const std::byte* wanted = scratch.first.data() + piece.byte;
  if (std::memcmp(from, wanted, static_cast<std::size_t>(piece.bytes)) == 0) return;
  for (std::int64_t i = 0; i < piece.count; ++i) {
    if (element(from, i, bits_) == element(wanted, i, bits_)) continue;
    ++report.wrong_copies;
    const std::int64_t place =
        expert * map_.out_elements() + axes_.place(out_row, piece.out_col + i);
    if (report.first_wrong_copy < 0 || place < report.first_wrong_copy) {
      report.first_wrong_copy = place;
    }
  }
}

void RowWriter::collect_first(std::int64_t expert, std::int64_t first_row,
                              const ColumnWindow& window, Scratch& scratch) const {
  make_room(scratch.first, window.bytes);
  for (const ColumnPiece& piece : window.pieces) {
    for (std::int64_t i = 0; i < piece.count && !piece.pad; ++i) {
      const std::int64_t place = axes_.place(first_row, axes_.first_col(piece.in_col + i));
      set_element(scratch.first.data() + piece.byte, i, bits_, placed_element(expert, place));
    }
  }
  scratch.first_expert = expert;
  scratch.first_row = first_row;
  scratch.first_byte = window.byte;
}

std::uint32_t RowWriter::placed_element(std::int64_t expert, std::int64_t place) const {
  const std::byte* placed = placed_.data() + expert * map_.out_bytes();
  if (map_.words == nullptr) return element(placed, place, bits_);
  const std::int64_t per_word = 32 / bits_;
  const std::uint32_t word = map_.words->undo(element(placed, place / per_word, 32));
  return element(reinterpret_cast<const std::byte*>(&word), place % per_word, bits_);
}

}  // namespace moeref::move
