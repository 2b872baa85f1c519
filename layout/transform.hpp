#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "layout/index_map.hpp"
#include "layout/recoder.hpp"
#include "layout/tensor_stack.hpp"

namespace moeref {

using Recoders = std::vector<std::shared_ptr<const Recoder>>;

/// What no layout may ask, whatever the tensor holds. `in_bits`: of the stack's elements.
/// Error (names `tensor`): FP4 codes in odd numbers: an odd number of columns, columns or pads that
/// begin at an odd one, an order with an odd number of codes side by side; bits of 32-bit words
/// moved where the output has no whole ones.
void check_movable(std::string_view tensor, const IndexMap& map, const Recoders& recoders,
                   int in_bits);

/// Rewrites, moves and pads a tensor: `out` receives [experts][map.out_bytes()]. Every output byte
/// is written once. The stack has the map's experts, rows and columns; the recoders lead from its
/// element size to the map's. `threads` 0 = all; the bytes do not depend on it.
/// Beside source and destination each thread takes less than 10 MB.
/// Error: check_movable, named as the stack.
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
/// 0. Of several copies the first in output order counts. Error: check_movable.
UndoReport undo(const IndexMap& map, std::span<const std::byte> in, const Recoders& recoders,
                std::span<std::byte> out, int threads);

/// Bits of the elements that undo gives: those before the last recoder that cannot be inverted, or
/// after it.
int restored_bits(const IndexMap& map, const Recoders& recoders);

}  // namespace moeref
