#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "tests/layout/layout_support.hpp"

// Layers through the backends of aiter, and what their kernels read of them.

namespace moeref::testing {

/// A backend, its options and the weights that it takes.
struct Backed {
  std::string_view backend;
  std::vector<std::string> options;
  std::string format;
};

inline MoeLayer layer_of(const std::string& format, std::int64_t experts, std::int64_t hidden,
                         std::int64_t intermediate, bool gated = true, bool bias = false) {
  return sample_layer({.experts = experts,
                       .hidden = hidden,
                       .intermediate = intermediate,
                       .gated = gated,
                       .bias = bias,
                       .weight_format = format,
                       .seed = 11});
}

inline PreparedLayer prepared(const Backed& backed, const MoeLayer& layer, const Shard& rank = {}) {
  const Backend& backend = find_backend(backed.backend);
  return plan_layer(backend, parse_options(backend, backed.options), layer, rank);
}

inline std::uint32_t element(const Bytes& bytes, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(bytes[static_cast<std::size_t>(index / 2)]) >>
               (4 * (index % 2)) &
           15u;
  }
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + index * bits / 8, static_cast<std::size_t>(bits / 8));
  return value;
}

/// Sizes of a tensor in the kernel's view.
struct KernelMatrix {
  int halves = 1;
  std::int64_t half_rows = 0;
  std::int64_t cols = 0;
};

inline KernelMatrix kernel_matrix(const PreparedLayer& layer, Slot slot) {
  const KernelReading& kernel = layer.recipe.kernel;
  const int halves = layer.source->shape.halves();
  const auto blocks = [](std::int64_t size, std::int64_t block) { return ceil_div(size, block); };
  switch (slot) {
    case Slot::w13:
      return {halves, kernel.intermediate, kernel.hidden};
    case Slot::w13_scale:
      return {halves, blocks(kernel.intermediate, kernel.block_rows),
              blocks(kernel.hidden, kernel.block_cols)};
    case Slot::w13_bias:
      return {halves, kernel.intermediate, 1};
    case Slot::w2:
      return {1, kernel.hidden, kernel.intermediate};
    case Slot::w2_scale:
      return {1, blocks(kernel.hidden, kernel.block_rows),
              blocks(kernel.intermediate, kernel.block_cols)};
    case Slot::w2_bias:
      return {1, kernel.hidden, 1};
  }
  return {};
}

/// The prepared tensor with the kernel's own steps undone, dense.
inline Bytes as_kernel_reads(const PreparedLayer& layer, const TensorRecipe& recipe) {
  const KernelMatrix matrix = kernel_matrix(layer, recipe.from);
  return as_kernel_reads(layer, recipe.name, matrix.halves, matrix.halves * matrix.half_rows,
                         matrix.cols);
}

/// Every element of the kernel's matrices is the loaded one, recoded, and 0 outside.
inline void expect_kernel_reads_layer(const PreparedLayer& layer) {
  for (const TensorRecipe& recipe : layer.recipe.tensors) {
    const PreparedTensor& tensor = find(layer, recipe.name);
    SCOPED_TRACE(recipe.name);
    const TensorStack& stack = *tensor.from;
    const KernelMatrix matrix = kernel_matrix(layer, recipe.from);
    const Bytes dense = as_kernel_reads(layer, recipe);
    const int bits = tensor.plan.map.element_bits;
    std::int64_t wrong = 0;
    for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
      for (std::int64_t row = 0; row < matrix.halves * matrix.half_rows; ++row) {
        const std::int64_t half = row / matrix.half_rows;
        const std::int64_t inside = row % matrix.half_rows;
        const bool real = inside < stack.half_rows;
        const Bytes loaded =
            real ? recoded_row(tensor, expert, half * stack.half_rows + inside) : Bytes{};
        for (std::int64_t col = 0; col < matrix.cols; ++col) {
          const std::int64_t at =
              (expert * matrix.halves * matrix.half_rows + row) * matrix.cols + col;
          const std::uint32_t expected = real && col < stack.cols ? element(loaded, col, bits) : 0u;
          wrong += element(dense, at, bits) != expected;
        }
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

}  // namespace moeref::testing
