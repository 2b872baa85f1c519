#include "layout/bit_permutation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

namespace moeref {
namespace {

using Source = std::array<int, 32>;

Source identity() {
  Source source;
  std::iota(source.begin(), source.end(), 0);
  return source;
}

/// Bit by bit: bit j of the result is bit source[j] of the word.
std::uint32_t move_each(const Source& source, std::uint32_t word) {
  std::uint32_t result = 0;
  for (std::size_t to = 0; to < 32; ++to) result |= (word >> source[to] & 1u) << to;
  return result;
}

TEST(BitPermutation, MovesEachBitAsTheSourceSays) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    Source source = identity();
    std::shuffle(source.begin(), source.end(), random);
    const BitPermutation bits("random", source);
    for (int bit = 0; bit < 32; ++bit) {
      EXPECT_EQ(bits.source(bit), source[static_cast<std::size_t>(bit)]);
      EXPECT_EQ(bits.target(bits.source(bit)), bit);
      EXPECT_EQ(bits.apply(std::uint32_t{1} << bits.source(bit)), std::uint32_t{1} << bit);
    }
    for (const std::uint32_t word : {0u, ~0u, 0x80000001u, static_cast<std::uint32_t>(random())}) {
      EXPECT_EQ(bits.apply(word), move_each(source, word));
      EXPECT_EQ(bits.undo(bits.apply(word)), word);
      EXPECT_EQ(bits.apply(bits.undo(word)), word);
    }
  }
}

TEST(BitPermutation, GroupsBitsThatMoveEquallyFar) {
  const BitPermutation still("identity", identity());
  ASSERT_EQ(still.groups().size(), 1u);
  EXPECT_EQ(still.groups().front().mask, ~0u);

  Source halves = identity();
  std::rotate(halves.begin(), halves.begin() + 16, halves.end());
  const BitPermutation swapped("halves", halves);
  ASSERT_EQ(swapped.groups().size(), 2u);
  EXPECT_EQ(swapped.apply(0x12345678u), 0x56781234u);
  std::uint32_t covered = 0;
  for (const BitPermutation::Group& group : swapped.groups()) {
    EXPECT_EQ(covered & group.mask, 0u);
    EXPECT_TRUE(group.left == 0 || group.right == 0);
    covered |= group.mask;
  }
  EXPECT_EQ(covered, ~0u);
}

TEST(BitPermutation, KeepsItsName) {
  EXPECT_EQ(BitPermutation("nibbles", identity()).name(), "nibbles");
}

TEST(BitPermutation, RejectsWhatIsNoPermutation) {
  Source twice = identity();
  twice[3] = 4;
  EXPECT_THROW(BitPermutation("twice", twice), std::invalid_argument);
  Source outside = identity();
  outside[0] = 32;
  EXPECT_THROW(BitPermutation("outside", outside), std::invalid_argument);
  outside[0] = -1;
  EXPECT_THROW(BitPermutation("negative", outside), std::invalid_argument);
}

}  // namespace
}  // namespace moeref
