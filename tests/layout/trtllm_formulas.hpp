#pragma once

#include <cstdint>
#include <cstring>

#include "quant/formats.hpp"
#include "quant/scaled_matrix.hpp"
#include "quant/tensor.hpp"

// The TRTLLM-Gen layouts as plain formulas, for tests.

namespace moeref {

/// The row of a block of 32 (16) that the epilogue wants at place i.
inline std::int64_t shuffled(std::int64_t i, std::int64_t block) {
  return i / block * block + i % block % 8 * (block / 8) + i % block / 8;
}

/// Even rows from the first half, odd from the second.
inline std::int64_t alternating(std::int64_t i, std::int64_t rows) {
  return i / 2 + i % 2 * (rows / 2);
}

inline std::int64_t place_128x4(std::int64_t r, std::int64_t c, std::int64_t cols) {
  const std::int64_t stored_cols = (cols + 3) / 4 * 4;
  return (r / 128 * (stored_cols / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}

/// Code `index` of a tensor with elements of `bits`.
inline std::uint32_t stored(const Tensor& tensor, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(tensor.bytes[static_cast<std::size_t>(index / 2)]) >>
               (4 * (index % 2)) &
           15u;
  }
  std::uint32_t code = 0;
  const auto width = static_cast<std::size_t>(bits) / 8;
  std::memcpy(&code, tensor.bytes.data() + static_cast<std::size_t>(index) * width, width);
  return code;
}

/// The stored code of the block scale at (row, col) of the grid.
inline std::uint32_t scale_code(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  const ScaleGrid& grid = *matrix.scales;
  const auto width = static_cast<std::size_t>(info(grid.format).bits) / 8;
  std::uint32_t code = 0;
  std::memcpy(
      &code,
      grid.data + static_cast<std::size_t>(row * grid.row_stride + col * grid.col_stride) * width,
      width);
  return code;
}

}  // namespace moeref
