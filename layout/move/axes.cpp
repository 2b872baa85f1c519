#include "layout/move/axes.hpp"

#include <algorithm>

#include "layout/move/units.hpp"

namespace moeref::move {
namespace {

/// For each input index the output index whose place comes first; -1 if there is none.
std::vector<std::int64_t> first_outputs(const AxisTable& table, std::int64_t inputs,
                                        const std::vector<std::int64_t>& places) {
  std::vector<std::int64_t> first(static_cast<std::size_t>(inputs), -1);
  for (std::int64_t out = 0; out < table.size(); ++out) {
    if (table[out].is_pad()) continue;
    std::int64_t& known = first[static_cast<std::size_t>(table[out].index())];
    if (known < 0 ||
        places[static_cast<std::size_t>(out)] < places[static_cast<std::size_t>(known)]) {
      known = out;
    }
  }
  return first;
}

/// Whether `next`, one column further, goes on with the run.
bool continues(const ColumnRun& run, const ColumnRun& next) {
  if (run.pad != next.pad) return false;
  if (run.pad) return run.fill == next.fill;
  return run.copy == next.copy && run.in_col + run.count == next.in_col;
}

}  // namespace

Axes::Axes(const IndexMap& map)
    : rows_(map.rows),
      cols_(map.cols),
      bits_(map.element_bits),
      row_bytes_(map.cols.size() * map.element_bits / 8) {
  find_copies(map);
  find_runs();
  draw_pad_rows();
}

void Axes::find_copies(const IndexMap& map) {
  const bool empty = map.out_elements() == 0;
  row_place_.assign(index(rows_.size()), 0);
  col_place_.assign(index(cols_.size()), 0);
  if (!empty) {
    row_place_ = axis_places(map.digits, Axis::row, rows_.size());
    col_place_ = axis_places(map.digits, Axis::col, cols_.size());
  }
  first_row_ = first_outputs(rows_, map.in_rows, row_place_);
  first_col_ = first_outputs(cols_, map.in_cols, col_place_);
  for (std::int64_t row = 0; row < map.in_rows; ++row) {
    if (empty || first_row_[index(row)] < 0) dropped_rows_.push_back(row);
  }
  for (std::int64_t col = 0; col < map.in_cols; ++col) {
    if (first_col_[index(col)] >= 0) continue;
    if (!dropped_cols_.empty() && dropped_cols_.back().col + dropped_cols_.back().count == col) {
      ++dropped_cols_.back().count;
    } else {
      dropped_cols_.push_back({col, 1});
    }
  }
}

void Axes::find_runs() {
  for (std::int64_t col = 0; col < cols_.size(); ++col) {
    const AxisEntry entry = cols_[col];
    ColumnRun next{.out_col = col, .count = 1, .pad = entry.is_pad()};
    if (entry.is_pad()) {
      next.fill = fill_byte(entry.fill(), bits_);
    } else {
      next.in_col = entry.index();
      next.copy = first_col(entry.index()) != col;
    }
    if (!runs_.empty() && continues(runs_.back(), next)) {
      ++runs_.back().count;
    } else {
      runs_.push_back(next);
    }
  }
}

void Axes::draw_pad_rows() {
  for (std::int64_t row = 0; row < rows_.size(); ++row) {
    if (!rows_[row].is_pad()) {
      image_of_row_.push_back(-1);
      continue;
    }
    const int step = rows_[row].pad_step();
    const std::byte fill = fill_byte(rows_[row].fill(), bits_);
    auto image = std::find_if(images_.begin(), images_.end(), [&](const PadImage& drawn) {
      return drawn.step == step && drawn.fill == fill;
    });
    if (image == images_.end()) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(row_bytes_), fill);
      for (std::int64_t col = 0; col < cols_.size(); ++col) {
        if (!cols_[col].is_pad() || cols_[col].pad_step() < step) continue;
        const std::int64_t end = std::max((col + 1) * bits_ / 8, col * bits_ / 8 + 1);
        std::fill(bytes.begin() + col * bits_ / 8, bytes.begin() + end,
                  fill_byte(cols_[col].fill(), bits_));
      }
      images_.push_back({step, fill, std::move(bytes)});
      image = images_.end() - 1;
    }
    image_of_row_.push_back(static_cast<std::int32_t>(image - images_.begin()));
  }
}

ColumnWindow Axes::window(std::int64_t byte, std::int64_t bytes) const {
  const std::int64_t begin = byte * 8 / bits_;
  const std::int64_t end = (byte + bytes) * 8 / bits_;
  const auto first =
      std::upper_bound(runs_.begin(), runs_.end(), begin,
                       [](std::int64_t col, const ColumnRun& run) { return col < run.out_col; }) -
      1;
  ColumnWindow window{byte, bytes, {}};
  for (auto run = first; run != runs_.end() && run->out_col < end; ++run) {
    ColumnPiece piece{*run};
    piece.out_col = std::max(begin, run->out_col);
    piece.count = std::min(end, run->out_col + run->count) - piece.out_col;
    piece.in_col += piece.out_col - run->out_col;
    piece.byte = (piece.out_col - begin) * bits_ / 8;
    piece.in_byte = piece.in_col * bits_ / 8;
    piece.bytes = piece.count * bits_ / 8;
    window.pieces.push_back(piece);
  }
  return window;
}

std::int64_t Axes::bytes_together() const {
  return runs_.front().pad ? row_bytes_ : runs_.front().count * bits_ / 8;
}

}  // namespace moeref::move
