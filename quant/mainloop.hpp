#pragma once

#include <cstdint>
#include <string_view>

#include "quant/matrix_unit.hpp"

namespace moeref {

/// How a finished chain p enters the accumulator, where a GEMM has f32 scales along K or keeps its
/// sums apart. Every operation f32, rounded once; fma fused.
enum class Promotion : std::uint8_t {
  none,          ///< the accumulator is the one chain over all of K
  add,           ///< acc = acc + p
  fma_product,   ///< acc = fma(p, row scale * column scale, acc)
  fma_row,       ///< acc = fma(p * row scale, column scale, acc)
  fma_column,    ///< acc = fma(p * column scale, row scale, acc)
  column_groups  ///< acc = p * column scale for the first chain, then fma(p, column scale, acc)
};

/// The sum of a kernel over K: chains of a matrix unit, each from +0, and how they are joined.
struct Mainloop {
  FusedDot unit;
  std::int64_t chain = 0;  ///< k's of one chain; 0 = all
  Promotion promotion = Promotion::none;
  bool flushes = false;  ///< multiplications and fma of the promotion are .ftz
};

}  // namespace moeref
