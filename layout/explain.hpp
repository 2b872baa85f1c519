#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "layout/prepare.hpp"

namespace moeref {

/// One element of a logical layer.
struct LogicalElement {
  Slot slot = Slot::w13;
  std::int64_t expert = 0;      ///< global id
  std::string_view projection;  ///< "gate", "up", "down"; empty: a single tensor without halves
  std::int64_t row = 0;  ///< of the tensor, in the whole model (shards are counted from its start)
  std::int64_t col = 0;
  std::int64_t block_rows = 1;  ///< scales: weight rows [row * block_rows, (row + 1) * block_rows)
  std::int64_t block_cols = 1;
};

/// Some bits of a prepared tensor and what they are. A byte may hold parts of several elements.
struct Meaning {
  std::int64_t bit = 0;  ///< first bit, from the start of the tensor
  int bits = 8;
  bool pad = false;
  std::string pad_step;  ///< pads: the step that made it, "pad_halves"
  std::byte fill = std::byte{0};
  LogicalElement element;  ///< not a pad
  int element_bit = 0;     ///< the lowest bit of the element that stands here
};

/// Sizes of one projection's tensor in the whole model, in its own rows and columns (scales:
/// blocks).
struct LogicalExtent {
  std::int64_t experts = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t block_rows = 1;
  std::int64_t block_cols = 1;
};
LogicalExtent logical_extent(const PreparedLayer& layer, const PreparedTensor& tensor);
/// Which tensor of the logical layer a matrix is made from.
/// Error: `tensor` holds scalars, no matrix.
Slot source_slot(const PreparedLayer& layer, const PreparedTensor& tensor);

/// What bits [first, first + count) of a prepared matrix hold, from the lowest bit up; neighbouring
/// bits of one element, or of pads by one step, are one Meaning.
/// Error: outside the tensor; `tensor` holds scalars.
std::vector<Meaning> explain_bits(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  std::int64_t first, std::int64_t count);
/// What byte `byte` of a prepared matrix holds, from its lowest bit up.
/// Error: outside the tensor.
std::vector<Meaning> explain_byte(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  std::int64_t byte);
/// Where an element of the logical layer stands: none if the rank does not own it, several if it is
/// copied or its bits are spread. None if the tensor is made from another slot. Error: no such
/// element.
std::vector<Meaning> find_element(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  const LogicalElement& element);
/// The bits of the element at `place` (before the bit permutation) of local expert `expert`; only
/// bit, bits and element_bit are set.
std::vector<Meaning> bits_of_place(const IndexMap& map, std::int64_t expert, std::int64_t place);

/// "expert 3, gate row 17, column 5" or "padding by pad_halves, 0x00".
std::string describe(const LogicalElement& element);
std::string describe(const Meaning& meaning);

}  // namespace moeref
