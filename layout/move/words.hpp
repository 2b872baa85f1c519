#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "layout/bit_permutation.hpp"

namespace moeref::move {

/// Two 64-bit words, moved as one (a vector type of gcc and clang).
using WordPair = std::uint64_t __attribute__((vector_size(16)));

/// Moves the bits of the 32-bit words in `pairs`.
template <std::size_t Count>
void move_bits(const std::vector<BitPermutation::Group>& groups, WordPair (&pairs)[Count]) {
  WordPair after[Count] = {};
  for (const BitPermutation::Group& group : groups) {
    const std::uint64_t bits = group.mask | std::uint64_t{group.mask} << 32;
    const WordPair mask = {bits, bits};
    if (group.right == 0) {
      for (std::size_t i = 0; i < Count; ++i) after[i] |= (pairs[i] & mask) << group.left;
    } else {
      for (std::size_t i = 0; i < Count; ++i) after[i] |= (pairs[i] & mask) >> group.right;
    }
  }
  for (std::size_t i = 0; i < Count; ++i) pairs[i] = after[i];
}

/// Moves the bits of whole 32-bit words. `from` and `to` are the same or do not overlap.
inline void move_words(const std::vector<BitPermutation::Group>& groups, const std::byte* from,
                       std::byte* to, std::int64_t bytes) {
  WordPair pairs[6] = {};
  constexpr std::int64_t kBatch = sizeof pairs;
  for (std::int64_t at = 0; at < bytes; at += kBatch) {
    const auto size = static_cast<std::size_t>(std::min(kBatch, bytes - at));
    if (size == kBatch) {
      std::memcpy(pairs, from + at, kBatch);
    } else {
      std::memcpy(pairs, from + at, size);
    }
    move_bits(groups, pairs);
    if (size == kBatch) {
      std::memcpy(to + at, pairs, kBatch);
    } else {
      std::memcpy(to + at, pairs, size);
    }
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
