#include "layout/bit_permutation.hpp"

#include <algorithm>
#include <stdexcept>

namespace moeref {
namespace {

/// Bits that move by the same distance go together.
std::vector<BitPermutation::Group> group_by_distance(const std::array<int, 32>& source) {
  std::vector<BitPermutation::Group> groups;
  for (int to = 0; to < 32; ++to) {
    const int from = source[static_cast<std::size_t>(to)];
    const int left = std::max(0, to - from);
    const int right = std::max(0, from - to);
    const auto same = [&](const BitPermutation::Group& group) {
      return group.left == left && group.right == right;
    };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {0, left, right});
    group->mask |= std::uint32_t{1} << from;
  }
  return groups;
}

}  // namespace

BitPermutation::BitPermutation(std::string_view name, const std::array<int, 32>& source)
    : name_(name), source_(source) {
  target_.fill(-1);
  for (int to = 0; to < 32; ++to) {
    const int from = source[static_cast<std::size_t>(to)];
    if (from < 0 || from > 31 || target_[static_cast<std::size_t>(from)] >= 0) {
      throw std::invalid_argument("BitPermutation: not a permutation of 32 bits");
    }
    target_[static_cast<std::size_t>(from)] = to;
  }
  forward_ = group_by_distance(source_);
  backward_ = group_by_distance(target_);
}

}  // namespace moeref
