#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "quant/dtype.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// Which of two FP4 codes in a byte comes first. Every stack known here packs the even element into
/// the low nibble.
enum class NibbleOrder : std::uint8_t { low_first, high_first };

/// The codes of a matrix inside a larger buffer. Element (row, col) is number `origin + row *
/// row_stride + col * col_stride` of the buffer, counted in elements (in nibbles for E2M1); this
/// expresses interleaved gate/up rows, transposed storage and shards without moving a byte.
struct CodeGrid {
  const std::byte* data = nullptr;
  Format format = Format::bf16;
  NibbleOrder nibbles = NibbleOrder::low_first;
  std::int64_t origin = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
};

/// One scale for each block of `block_rows` x `block_cols` elements; the last block of a side may
/// be ragged. Element (row, col) has the scale number `((row_begin + row) / block_rows) *
/// row_stride + ((col_begin + col) / block_cols) * col_stride` of the buffer. A per-channel scale
/// has blocks of 1 x all columns, a per-tensor scale one block; a block size above every index with
/// stride 0 says "the same for all".
struct ScaleGrid {
  const std::byte* data = nullptr;
  Format format = Format::f32;
  std::int64_t block_rows = 1;
  std::int64_t block_cols = 1;
  std::int64_t row_begin =
      0;  ///< of this matrix inside the grid of blocks: shards start inside a block
  std::int64_t col_begin = 0;
  std::int64_t row_stride = 0;  ///< in scales, from one block row to the next
  std::int64_t col_stride = 0;
};

/// How a factor of a whole tensor enters: ModelOpt's `weight_scale_2` multiplies,
/// compressed-tensors' `weight_global_scale` divides.
enum class GlobalScaleRule : std::uint8_t { none, multiply, divide };

/// A logical matrix [rows, cols], row = output (or token), col = contraction index K, as stored:
/// codes and what scales them. Value of (r, c) = code * block scale * (or /) global scale, exact,
/// before any rounding. A view: the buffers belong to a mapped file or a Tensor.
struct ScaledMatrix {
  std::string name;  ///< the tensor of the codes, for messages
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  CodeGrid codes;
  std::optional<ScaleGrid> scales;
  GlobalScaleRule global_rule = GlobalScaleRule::none;
  float global_scale = 1.0f;

  /// True if this matrix holds anything (a default-constructed one is "absent").
  explicit operator bool() const { return codes.data != nullptr; }
};

/// Error (names the matrix): no codes, f64 codes, scales of a format or block size that cannot be,
/// a global scale that is not finite or divides by zero.
void check_storage(const ScaledMatrix& matrix);

/// Rows [begin, begin + count) of the same matrix.
ScaledMatrix row_slice(ScaledMatrix matrix, std::int64_t begin, std::int64_t count);
/// Columns [begin, begin + count) of the same matrix; the scales are still looked up by the column
/// of the whole.
ScaledMatrix col_slice(ScaledMatrix matrix, std::int64_t begin, std::int64_t count);

}  // namespace moeref
