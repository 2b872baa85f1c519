#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moeref {

/// A bijection of the 32 bits of a little-endian word: the last step of layouts that spread the
/// nibbles of four bytes over a register. Bit j of the result is bit source[j] of the word.
class BitPermutation {
 public:
  /// `source` holds each of 0 .. 31 once (otherwise std::invalid_argument).
  BitPermutation(std::string_view name, const std::array<int, 32>& source);

  std::string_view name() const { return name_; }
  int source(int bit) const { return source_[static_cast<std::size_t>(bit)]; }
  int target(int bit) const { return target_[static_cast<std::size_t>(bit)]; }
  std::uint32_t apply(std::uint32_t word) const { return move(word, forward_); }
  std::uint32_t undo(std::uint32_t word) const { return move(word, backward_); }

  /// The bits under `mask` move `left` places up, or `right` places down; the other is 0.
  struct Group {
    std::uint32_t mask;
    int left;
    int right;
  };
  const std::vector<Group>& groups() const { return forward_; }
  const std::vector<Group>& inverse_groups() const { return backward_; }

 private:
  static std::uint32_t move(std::uint32_t word, const std::vector<Group>& groups) {
    std::uint32_t result = 0;
    for (const Group& group : groups) result |= ((word & group.mask) << group.left) >> group.right;
    return result;
  }

  std::string_view name_;
  std::array<int, 32> source_;
  std::array<int, 32> target_;
  std::vector<Group> forward_;
  std::vector<Group> backward_;
};

}  // namespace moeref
