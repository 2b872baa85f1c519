#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

#include "layout/backend.hpp"
#include "layout/recode/max_requantize.hpp"
#include "quant/error.hpp"
#include "quant/tensor.hpp"

// Frameworks that give the halves of w13 the loader's rows and, when they requantize, count the
// rank's own I / T. Source: sglang@02d5e1b5edc2 compressed_tensors_w8a8_fp8_moe.py
// process_weights_after_loading, sglang layers/quantization/fp8.py Fp8MoEMethod

namespace moeref::backends {

/// Rows of a half, as upstream counts them.
inline std::int64_t counted_rows(const LayerShape& shape) {
  return ceil_div(shape.full_intermediate, shape.tp_size);
}

/// The requantization of w13, of which a half has room for `half_rows`, at the places that upstream
/// counts. Error (names the backend and the option that asks for it): a layer without a gate.
inline Recode misplaced_requantization(std::string_view backend, std::string_view option,
                                       const LayerShape& shape, std::int64_t half_rows, bool fnuz) {
  if (!shape.gated) {
    fail(backend, "{} has a gate and an up half; {} is not gated", option, shape.model);
  }
  return recode::misplaced(recode::max_requantize_w13(fnuz), half_rows, counted_rows(shape));
}

/// Says so where the two differ. The rows need no padding of their own for that: of 1536 rows each
/// of the first 6 of 8 ranks gets 256, upstream counts 192.
inline void note_misplaced_rows(Recipe& recipe, const LayerShape& shape, std::int64_t half_rows) {
  if (half_rows == counted_rows(shape)) return;
  recipe.notes.push_back(
      fmt::format("upstream defect: rows are requantized as if the up half began at row {} of the "
                  "rank, it begins at row {}",
                  counted_rows(shape), half_rows));
}

}  // namespace moeref::backends
