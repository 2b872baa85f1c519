#pragma once

#include "layout/transform.hpp"

// Judges of apply and undo: element by element, through IndexMap::origin, with the whole expert in
// memory.

namespace moeref::judge {

/// What moeref::apply must give.
void slow_apply(const IndexMap& map, const TensorStack& in, const Recoders& recoders,
                std::span<std::byte> out);
/// What moeref::undo must give.
UndoReport slow_undo(const IndexMap& map, std::span<const std::byte> in, const Recoders& recoders,
                     std::span<std::byte> out);

}  // namespace moeref::judge
