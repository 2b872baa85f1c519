#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "quant/cast.hpp"
#include "quant/formats.hpp"
#include "quant/scaled_matrix.hpp"
#include "quant/tensor.hpp"

// Reading the codes of a ScaledMatrix: one at a time, and rows of them as f32 values.

namespace moeref {

inline std::uint32_t read_nibble(const std::byte* data, NibbleOrder order, std::int64_t number) {
  const bool is_high = ((number & 1) != 0) == (order == NibbleOrder::low_first);
  return static_cast<std::uint32_t>(data[number >> 1] >> (is_high ? 4 : 0)) & 0xFu;
}

/// Code number `number` of a buffer.
inline std::uint32_t read_code(const std::byte* data, Format format, NibbleOrder order,
                               std::int64_t number) {
  switch (info(format).bits) {
    case 4:
      return read_nibble(data, order, number);
    case 8:
      return static_cast<std::uint32_t>(data[number]);
    case 16:
      return load<std::uint16_t>(data + 2 * number);
    default:
      return load<std::uint32_t>(data + 4 * number);
  }
}

inline std::int64_t element_number(const CodeGrid& codes, std::int64_t row, std::int64_t col) {
  return codes.origin + row * codes.row_stride + col * codes.col_stride;
}

inline bool is_transposed(const CodeGrid& codes) {
  return std::abs(codes.col_stride) > std::abs(codes.row_stride);
}

/// Rows decoded at a time where storage is transposed: whole cache lines of codes, and of results
/// in kColTile columns.
inline constexpr std::int64_t kRowTile = 64;
inline constexpr std::int64_t kColTile = 16;

inline std::int64_t row_tile(const ScaledMatrix& matrix) {
  return is_transposed(matrix.codes) ? std::min(kRowTile, matrix.rows) : 1;
}

/// out[r * cols + c] = read(number of element (first_row + r, c)), walking along the storage.
template <typename Read>
void gather(const ScaledMatrix& matrix, std::int64_t first_row, std::int64_t rows, Read read,
            float* out) {
  const CodeGrid& codes = matrix.codes;
  const std::int64_t cols = matrix.cols;
  if (!is_transposed(codes)) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t first = element_number(codes, first_row + row, 0);
      float* out_row = out + row * cols;
      if (codes.col_stride == 1) {
        for (std::int64_t col = 0; col < cols; ++col) out_row[col] = read(first + col);
      } else {
        for (std::int64_t col = 0; col < cols; ++col) {
          out_row[col] = read(first + col * codes.col_stride);
        }
      }
    }
    return;
  }
  // By way of a small buffer: rows of `out` may lie a power of two apart and would push each other
  // out of the cache.
  assert(rows <= kRowTile);
  std::array<std::array<float, kColTile>, kRowTile> buffer;
  for (std::int64_t tile = 0; tile < cols; tile += kColTile) {
    const std::int64_t tile_cols = std::min(kColTile, cols - tile);
    for (std::int64_t col = 0; col < tile_cols; ++col) {
      const std::int64_t first = element_number(codes, first_row, tile + col);
      for (std::int64_t row = 0; row < rows; ++row) {
        buffer[static_cast<std::size_t>(row)][static_cast<std::size_t>(col)] =
            read(first + row * codes.row_stride);
      }
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(buffer[static_cast<std::size_t>(row)].data(), tile_cols, out + row * cols + tile);
    }
  }
}

/// Decodes rows of a matrix; the tables are made once a matrix.
class RowDecoder {
 public:
  /// `clears_minus_zero`: E2M1 code 8 gives +0.
  RowDecoder(const ScaledMatrix& matrix, bool clears_minus_zero) : matrix_(matrix) {
    if (info(matrix.codes.format).bits > 8) return;
    values_ = decode_table(matrix.codes.format);
    if (matrix.codes.format != Format::e2m1) return;
    if (clears_minus_zero) {
      for (std::size_t code = 8; code < values_.size(); code += 16) values_[code] = 0.0f;
    }
    if (matrix.codes.col_stride != 1) return;
    const bool low_first = matrix.codes.nibbles == NibbleOrder::low_first;
    for (std::size_t byte = 0; byte < pairs_.size(); ++byte) {
      pairs_[byte] = {values_[low_first ? byte & 15 : byte >> 4],
                      values_[low_first ? byte >> 4 : byte & 15]};
    }
  }

  /// Decodes rows [first_row, first_row + rows) into out [rows, cols].
  void operator()(std::int64_t first_row, std::int64_t rows, float* out) const {
    const CodeGrid& codes = matrix_.codes;
    const std::byte* data = codes.data;
    switch (codes.format) {
      case Format::e2m1:
        if (codes.col_stride == 1) {
          for (std::int64_t row = 0; row < rows; ++row) {
            decode_packed(element_number(codes, first_row + row, 0), out + row * matrix_.cols);
          }
          return;
        }
        return gather(
            matrix_, first_row, rows,
            [&](std::int64_t i) { return values_[read_nibble(data, codes.nibbles, i)]; }, out);
      case Format::bf16:
        return gather(
            matrix_, first_row, rows,
            [=](std::int64_t i) {
              return std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(data + 2 * i)} << 16);
            },
            out);
      case Format::f16:
        return gather(
            matrix_, first_row, rows,
            [=](std::int64_t i) { return widen_f16(load<std::uint16_t>(data + 2 * i)); }, out);
      case Format::f32:
        return gather(
            matrix_, first_row, rows, [=](std::int64_t i) { return load<float>(data + 4 * i); },
            out);
      default:
        return gather(
            matrix_, first_row, rows,
            [&](std::int64_t i) { return values_[static_cast<std::size_t>(data[i])]; }, out);
    }
  }

 private:
  /// One row of nibbles that lie side by side from number `first`, which may be the second of a
  /// byte.
  void decode_packed(std::int64_t first, float* out) const {
    const CodeGrid& codes = matrix_.codes;
    const std::int64_t cols = matrix_.cols;
    std::int64_t col = 0;
    if ((first & 1) != 0 && cols > 0) {
      out[col++] = values_[read_nibble(codes.data, codes.nibbles, first)];
    }
    const std::byte* bytes = codes.data + ((first + col) >> 1);
    for (; col + 1 < cols; col += 2) {
      std::memcpy(out + col, &pairs_[static_cast<std::size_t>(*bytes++)], sizeof pairs_[0]);
    }
    if (col < cols) out[col] = values_[read_nibble(codes.data, codes.nibbles, first + col)];
  }

  const ScaledMatrix& matrix_;
  std::array<float, 256> values_{};
  /// The two values of a byte, in the order of their numbers.
  std::array<std::array<float, 2>, 256> pairs_{};
};

}  // namespace moeref
