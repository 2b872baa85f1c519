#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/prepare.hpp"

namespace moeref {

/// One element of a logical layer.
struct LogicalElement {
  Slot slot = Slot::w13;
  std::int64_t expert = 0;      ///< global id
  std::string_view projection;  ///< "gate", "up", "down"
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

/// What byte `byte` of a prepared matrix holds, from its lowest bit up.
/// Error: outside the tensor.
std::vector<Meaning> explain_byte(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  std::int64_t byte);
/// Where an element of the logical layer stands: none if the rank does not own it, several if it is
/// copied or its bits are spread. Error: no such element.
std::vector<Meaning> find_element(const PreparedLayer& layer, const PreparedTensor& tensor,
                                  const LogicalElement& element);
/// "expert 3, gate row 17, column 5" or "padding by pad_halves, 0x00".
std::string describe(const Meaning& meaning);

}  // namespace moeref
