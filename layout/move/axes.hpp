#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout/index_map.hpp"

namespace moeref::move {

/// Output columns that stand side by side in the input too, or neighbours that are the same pad.
/// Counts are elements.
struct ColumnRun {
  std::int64_t out_col = 0;
  std::int64_t count = 0;
  std::int64_t in_col = 0;  ///< of the first, if it is not a pad
  bool pad = false;
  bool copy = false;              ///< the output holds these input columns at an earlier place too
  std::byte fill = std::byte{0};  ///< pads: of a row that is not padding itself
};

/// Some columns of the input.
struct ColumnSpan {
  std::int64_t col;
  std::int64_t count;
};

/// Part of a column run, and where it is in bytes.
struct ColumnPiece : ColumnRun {
  std::int64_t byte = 0;  ///< from the window's first
  std::int64_t in_byte =
      0;  ///< from the first column of an input row whose codes are not rewritten
  std::int64_t bytes = 0;
};

/// Bytes [byte, byte + bytes) of a packed output row and the runs under them.
struct ColumnWindow {
  std::int64_t byte = 0;
  std::int64_t bytes = 0;
  std::vector<ColumnPiece> pieces;

  std::int64_t first_col() const { return pieces.front().out_col; }
  /// Whether input columns fill it that stand side by side.
  bool is_one_run() const { return pieces.size() == 1 && !pieces.front().pad; }
};

/// The axes of a map made ready for moving: columns as runs, rows of padding as bytes, which copy
/// comes first. As large as the axes.
class Axes {
 public:
  explicit Axes(const IndexMap& map);

  std::int64_t rows() const { return rows_.size(); }  ///< of the output
  std::int64_t row_bytes() const { return row_bytes_; }
  /// `bytes` > 0.
  ColumnWindow window(std::int64_t byte, std::int64_t bytes) const;
  /// Bytes of the first run if it begins at the first column of an output row, otherwise all.
  std::int64_t bytes_together() const;
  /// All bytes of an output row that is padding, or nullptr.
  const std::byte* pad_row(std::int64_t out_row) const {
    const std::int32_t image = image_of_row_[static_cast<std::size_t>(out_row)];
    return image < 0 ? nullptr : images_[static_cast<std::size_t>(image)].bytes.data();
  }
  std::int64_t input_row(std::int64_t out_row) const { return rows_[out_row].index(); }

  /// The output row (column) that holds an input row (column) first in the output; -1: none.
  std::int64_t first_row(std::int64_t in_row) const { return first_row_[index(in_row)]; }
  std::int64_t first_col(std::int64_t in_col) const { return first_col_[index(in_col)]; }
  /// Input rows and columns that the layout drops.
  const std::vector<std::int64_t>& dropped_rows() const { return dropped_rows_; }
  const std::vector<ColumnSpan>& dropped_cols() const { return dropped_cols_; }
  /// Place of an element in an expert's output.
  std::int64_t place(std::int64_t out_row, std::int64_t out_col) const {
    return row_place_[index(out_row)] + col_place_[index(out_col)];
  }

 private:
  /// Rows of the same padding step and fill look alike.
  struct PadImage {
    int step;
    std::byte fill;
    std::vector<std::byte> bytes;
  };
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  void find_copies(const IndexMap& map);
  void find_runs();
  void draw_pad_rows();

  const AxisTable& rows_;
  const AxisTable& cols_;
  int bits_;
  std::int64_t row_bytes_;
  std::vector<ColumnRun> runs_;
  std::vector<PadImage> images_;
  std::vector<std::int32_t> image_of_row_;
  std::vector<std::int64_t> row_place_;
  std::vector<std::int64_t> col_place_;
  std::vector<std::int64_t> first_row_;  ///< by input row
  std::vector<std::int64_t> first_col_;
  std::vector<std::int64_t> dropped_rows_;
  std::vector<ColumnSpan> dropped_cols_;
};

/// The byte that a fill makes of each byte of the output: FP4 takes its low nibble twice.
inline std::byte fill_byte(std::byte fill, int bits) {
  const auto nibble = std::to_integer<unsigned>(fill) & 15u;
  return bits == 4 ? static_cast<std::byte>(nibble * 17u) : fill;
}

}  // namespace moeref::move
