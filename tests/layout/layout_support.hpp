#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "layout/step.hpp"

// Random matrices through steps, and prepared tensors read back as a kernel would.

namespace moeref::testing {

using Bytes = std::vector<std::byte>;

inline Bytes random_bytes(std::int64_t count, std::uint32_t seed) {
  std::mt19937 engine(seed);
  Bytes bytes(static_cast<std::size_t>(count));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(engine() & 0xFFu);
  return bytes;
}

inline int bit_of(std::span<const std::byte> bytes, std::int64_t bit) {
  const auto byte = std::to_integer<int>(bytes[static_cast<std::size_t>(bit / 8)]);
  return byte >> (bit % 8) & 1;
}

inline int nibble(std::span<const std::byte> bytes, std::int64_t index) {
  return std::to_integer<int>(bytes[static_cast<std::size_t>(index / 2)]) >> (4 * (index % 2)) & 15;
}

/// Matrices of random elements, dense, one half.
struct Matrices {
  Bytes bytes;
  TensorStack stack;

  Matrices(std::int64_t experts, std::int64_t rows, std::int64_t cols, int bits,
           std::uint32_t seed = 1)
      : bytes(random_bytes(experts * rows * cols * bits / 8, seed)) {
    const DType dtype = bits == 16 ? DType::bf16 : bits == 32 ? DType::f32 : DType::u8;
    const std::int64_t stored = bits == 4 ? cols / 2 : cols;
    stack =
        dense_stack({"matrix", dtype, {experts, rows, stored}, bytes}, GateOrder::separate, bits);
  }
};

inline Plan plan_of(const Matrices& matrices, const std::vector<Step>& steps) {
  return make_plan("matrix", matrices.stack, steps, nullptr);
}

inline Bytes apply_plan(const Plan& plan, const TensorStack& stack) {
  Bytes out(static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes()));
  apply(plan.map, stack, plan.recoders, out, 1);
  return out;
}

inline Bytes run(const Matrices& matrices, const std::vector<Step>& steps) {
  return apply_plan(plan_of(matrices, steps), matrices.stack);
}

/// What undo gives of what apply made, and its report.
inline Bytes there_and_back(const Matrices& matrices, const std::vector<Step>& steps,
                            UndoReport& report) {
  const Plan plan = plan_of(matrices, steps);
  const Bytes made = apply_plan(plan, matrices.stack);
  const int bits = restored_bits(plan.map, plan.recoders);
  Bytes back(
      static_cast<std::size_t>(plan.map.experts * plan.map.in_rows * plan.map.in_cols * bits / 8));
  report = undo(plan.map, made, plan.recoders, back, 1);
  return back;
}

inline const PreparedTensor& find(const PreparedLayer& layer, std::string_view name) {
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::out_of_range("no tensor " + std::string(name));
}

/// A row of the tensor that a prepared one is made from, after its recoders.
inline Bytes recoded_row(const PreparedTensor& tensor, std::int64_t expert, std::int64_t row) {
  const TensorStack& stack = *tensor.from;
  Bytes piece(static_cast<std::size_t>(stack.cols * stack.element_bits / 8));
  stack.read(expert, row, 0, stack.cols, piece.data());
  for (const auto& recoder : tensor.plan.recoders) {
    Bytes rewritten(static_cast<std::size_t>(stack.cols * recoder->out_bits() / 8));
    recoder->rewrite({expert, row, 0}, piece, rewritten);
    piece = std::move(rewritten);
  }
  return piece;
}

/// A prepared matrix, its kernel's own order undone over the [rows, cols] that the kernel takes it
/// for.
inline Bytes as_kernel_reads(const PreparedLayer& layer, std::string_view name, int halves,
                             std::int64_t rows, std::int64_t cols, std::int64_t block_rows = 1,
                             std::int64_t block_cols = 1) {
  const PreparedTensor& tensor = find(layer, name);
  const TensorRecipe* recipe = nullptr;
  for (const TensorRecipe& one : layer.recipe.tensors) {
    if (one.name == name) recipe = &one;
  }
  TensorStack stack;
  stack.name = std::string(name);
  stack.dtype = tensor.plan.map.element_bits == 4 ? DType::u8 : tensor.dtype;
  stack.element_bits = tensor.plan.map.element_bits;
  stack.experts = tensor.plan.map.experts;
  stack.halves = halves;
  stack.half_rows = rows / halves;
  stack.cols = cols;
  stack.block_rows = block_rows;
  stack.block_cols = block_cols;
  const std::vector<Step> kernel(
      recipe->steps.end() - static_cast<std::ptrdiff_t>(recipe->kernel_steps), recipe->steps.end());
  const Plan plan = make_plan(std::string(name), stack, kernel, nullptr);
  const Bytes made = make(tensor, 1).bytes;
  if (static_cast<std::int64_t>(made.size()) != plan.map.experts * plan.map.out_bytes()) {
    throw std::length_error("the kernel expects another size of " + std::string(name));
  }
  Bytes read(static_cast<std::size_t>(stack.experts * rows * cols * stack.element_bits / 8));
  undo(plan.map, made, {}, read, 1);
  return read;
}

/// A layer's matrix as the file has it, dense: gate rows, then up rows.
inline Bytes logical(const LayerTensors& layer, Slot slot) {
  const TensorStack& stack = layer.at(slot);
  const std::int64_t row_bytes = stack.cols * stack.element_bits / 8;
  Bytes bytes(static_cast<std::size_t>(stack.experts * stack.rows() * row_bytes));
  for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
    for (std::int64_t row = 0; row < stack.rows(); ++row) {
      stack.read(expert, row, 0, stack.cols,
                 bytes.data() + (expert * stack.rows() + row) * row_bytes);
    }
  }
  return bytes;
}

inline PreparedLayer prepare(std::string_view backend, const std::vector<std::string>& options,
                             const MoeLayer& layer, const Shard& rank = {}) {
  const Backend& found = find_backend(backend);
  return plan_layer(found, parse_options(found, options), layer, rank);
}

inline std::vector<float> floats(const Bytes& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace moeref::testing
