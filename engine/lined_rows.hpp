#pragma once

#include <cstdint>
#include <vector>

#include "engine/sliced_rows.hpp"
#include "quant/aligned.hpp"
#include "simd/lines.hpp"

namespace moeref {

/// A row in digits, as sums along one weight row take it.
class LinedRow {
 public:
  LinedRow() = default;
  explicit LinedRow(const SlicedRow& row);

  std::int64_t block_cols() const { return block_cols_; }
  const simd::LineChunk* chunks() const { return chunks_.data(); }

 private:
  std::int64_t block_cols_ = 0;
  std::vector<simd::LineChunk> chunks_;
  AlignedVector<std::int8_t> digits_;
  AlignedVector<double> factors_;
  AlignedVector<std::int32_t> starts_;
};

}  // namespace moeref
