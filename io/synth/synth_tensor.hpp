#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/synth/unit_table.hpp"
#include "quant/tensor.hpp"

namespace moeref {

class QuantizedWeight;

/// The tensors that a quantized weight has in a file.
enum class WeightPart : std::uint8_t { codes, scales, global };

/// One tensor of a synthetic checkpoint: its place in the file and the rule that gives each of its
/// bytes. Unit i (see UnitTable) is `tables[(i / run) % tables.size()]` at draw i of the tensor's
/// random stream.
struct SynthTensor {
  std::string name;
  DType dtype = DType::u8;
  Shape shape;
  std::string stream;  ///< the name that the random stream is keyed by: `name`, or another tensor's
                       ///< to repeat its values
  std::vector<UnitTablePointer> tables;
  std::int64_t run = 1;

  /// Ties: the tensor is rows of `row_units`, and in the last `tied_pairs` pairs of rows the second
  /// repeats the first.
  std::int64_t row_units = 1;
  std::int64_t tied_pairs = 0;

  /// I64 [vocabulary, top_k] instead of table units: row t holds distinct ids below `expert_ids` (0
  /// = not such a tensor).
  std::int64_t expert_ids = 0;

  /// Instead of table units: a part of what a quantizer makes of drawn numbers; null = not such a
  /// tensor.
  std::shared_ptr<const QuantizedWeight> weight;
  WeightPart part = WeightPart::codes;

  std::uint64_t byte_count() const;
  /// Random numbers that a byte is made of, at least 1: a measure of the work.
  std::uint64_t draws_per_byte() const;
};

/// Bytes [first, first + out.size()) of the tensor's data; depends on nothing but the arguments.
void make_bytes(const SynthTensor& tensor, std::uint64_t seed, std::uint64_t first,
                std::span<std::byte> out);

}  // namespace moeref
