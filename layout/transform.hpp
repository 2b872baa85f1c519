#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "layout/index_map.hpp"
#include "layout/recoder.hpp"
#include "layout/tensor_stack.hpp"

namespace moeref {

using Recoders = std::vector<std::shared_ptr<const Recoder>>;

/// Rewrites, moves and pads a tensor: `out` receives [experts][map.out_bytes()]. Every output byte
/// is written once. The stack has the map's experts, rows and columns; the recoders lead from its
/// element size to the map's. `threads` 0 = all; the bytes do not depend on it.
void apply(const IndexMap& map, const TensorStack& in, const Recoders& recoders,
           std::span<std::byte> out, int threads);

/// What undo found besides the elements.
struct UndoReport {
  std::int64_t pads = 0;        ///< padding elements
  std::int64_t wrong_pads = 0;  ///< that do not hold their fill
  std::int64_t first_wrong_pad =
      -1;                   ///< place in the tensor, in elements: expert * out_elements + place
  std::int64_t copies = 0;  ///< elements that are a second copy of another
  std::int64_t wrong_copies = 0;  ///< that differ from the first
  std::int64_t first_wrong_copy = -1;
};

/// The way back: `out` receives the dense input [experts][in_rows][in_cols], packed, restored by
/// the recoders (last first) as far as they are invertible; from the first that is not, the codes
/// stay as rewritten and have that recoder's element size. Input elements that the layout drops are
/// 0. Of several copies the first in output order counts.
UndoReport undo(const IndexMap& map, std::span<const std::byte> in, const Recoders& recoders,
                std::span<std::byte> out, int threads);

/// Bits of the elements that undo gives: those before the last recoder that cannot be inverted, or
/// after it.
int restored_bits(const IndexMap& map, const Recoders& recoders);

}  // namespace moeref
