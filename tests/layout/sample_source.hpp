#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "layout/step.hpp"
#include "layout/transform.hpp"
#include "quant/error.hpp"

// Random tensors and what steps make of them, for tests.

namespace moeref {

using Bytes = std::vector<std::uint8_t>;

/// [experts, rows, cols] elements of `bits`, random bytes or `lowest` .. `highest`.
struct Source {
  std::int64_t experts;
  std::int64_t rows;
  std::int64_t cols;
  int bits;
  Bytes bytes;

  Source(std::int64_t e, std::int64_t r, std::int64_t c, int b, int lowest = 0, int highest = 255)
      : experts(e), rows(r), cols(c), bits(b) {
    std::mt19937 random(static_cast<std::uint32_t>(17 * r + c));
    bytes.resize(static_cast<std::size_t>(e * r * c * b / 8));
    for (auto& byte : bytes) {
      byte = static_cast<std::uint8_t>(
          lowest + static_cast<int>(random() % static_cast<std::uint32_t>(highest - lowest + 1)));
    }
  }

  TensorStack stack() const {
    const DType dtype = bits == 32 ? DType::f32 : bits == 16 ? DType::bf16 : DType::u8;
    const Shape shape{experts, rows, cols * bits / info(dtype).bits};
    return dense_stack({"source", dtype, shape, std::as_bytes(std::span(bytes))},
                       GateOrder::separate, bits);
  }
  std::uint8_t at(std::int64_t e, std::int64_t r, std::int64_t byte) const {
    return bytes[static_cast<std::size_t>((e * rows + r) * (cols * bits / 8) + byte)];
  }
};

inline Bytes applied(const Source& source, const std::vector<Step>& steps,
                     const LayerTensors* layer = nullptr) {
  const TensorStack stack = source.stack();
  const Plan plan = make_plan("made", stack, steps, layer);
  Bytes made(static_cast<std::size_t>(plan.map.experts * plan.map.out_bytes()));
  apply(plan.map, stack, plan.recoders, std::as_writable_bytes(std::span(made)), 1);
  return made;
}

inline Bytes undone(const Source& source, const std::vector<Step>& steps, const Bytes& made) {
  const Plan plan = make_plan("made", source.stack(), steps, nullptr);
  Bytes back(source.bytes.size());
  undo(plan.map, std::as_bytes(std::span(made)), {}, std::as_writable_bytes(std::span(back)), 1);
  return back;
}

}  // namespace moeref
