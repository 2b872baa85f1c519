#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "layout/bit_permutation.hpp"

namespace moeref::move {

/// Moves the bits of whole 32-bit words. `from` and `to` are the same or do not overlap.
inline void move_words(const std::vector<BitPermutation::Group>& groups, const std::byte* from,
                       std::byte* to, std::int64_t bytes) {
  constexpr std::int64_t kBatch = 32;
  const std::int64_t words = bytes / 4;
  std::int64_t word = 0;
  for (; word + kBatch <= words; word += kBatch) {
    std::uint32_t before[kBatch];
    std::uint32_t after[kBatch] = {};
    std::memcpy(before, from + word * 4, sizeof before);
    for (const BitPermutation::Group& group : groups) {
      for (std::int64_t i = 0; i < kBatch; ++i) {
        after[i] |= ((before[i] & group.mask) << group.left) >> group.right;
      }
    }
    std::memcpy(to + word * 4, after, sizeof after);
  }
  for (; word < words; ++word) {
    std::uint32_t before;
    std::uint32_t after = 0;
    std::memcpy(&before, from + word * 4, 4);
    for (const BitPermutation::Group& group : groups) {
      after |= ((before & group.mask) << group.left) >> group.right;
    }
    std::memcpy(to + word * 4, &after, 4);
  }
}

/// Bytes [begin, begin + bytes) of an expert's output before its words' bits were moved: whole
/// words around them are undone into `words`. Returns where the first byte is.
inline const std::byte* undo_words(const BitPermutation& bits, const std::byte* placed,
                                   std::int64_t begin, std::int64_t bytes,
                                   std::vector<std::byte>& words) {
  const std::int64_t first = begin / 4 * 4;
  const std::int64_t size = (begin + bytes + 3) / 4 * 4 - first;
  if (static_cast<std::int64_t>(words.size()) < size) words.resize(static_cast<std::size_t>(size));
  move_words(bits.inverse_groups(), placed + first, words.data(), size);
  return words.data() + (begin - first);
}

}  // namespace moeref::move
