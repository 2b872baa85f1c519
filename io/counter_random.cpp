#include "io/counter_random.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace moeref {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

constexpr std::uint64_t kDrawsPerBlock = 8;
/// Blocks made together: independent lanes keep the multipliers busy, with vector code or without.
constexpr std::size_t kLanes = 16;

constexpr std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t high(std::uint64_t value) {
  return static_cast<std::uint32_t>(value >> 32);
}

using Group = std::array<std::uint16_t, kLanes * kDrawsPerBlock>;

/// The draws of blocks `block` .. `block + kLanes - 1`: philox4x32_10, one block a lane.
void make_group(std::uint64_t block, std::uint64_t name, PhiloxKey key, std::uint16_t* out) {
  std::array<std::uint32_t, kLanes> c0, c1, c2, c3;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    c0[lane] = low(block + lane);
    c1[lane] = high(block + lane);
    c2[lane] = low(name);
    c3[lane] = high(name);
  }
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const std::uint64_t product0 = std::uint64_t{kMultiplier0} * c0[lane];
      const std::uint64_t product1 = std::uint64_t{kMultiplier1} * c2[lane];
      const std::uint32_t next0 = high(product1) ^ c1[lane] ^ key[0];
      const std::uint32_t next2 = high(product0) ^ c3[lane] ^ key[1];
      c0[lane] = next0;
      c1[lane] = low(product1);
      c2[lane] = next2;
      c3[lane] = low(product0);
    }
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::array<std::uint32_t, 4> words{c0[lane], c1[lane], c2[lane], c3[lane]};
    for (std::size_t word = 0; word < words.size(); ++word) {
      out[kDrawsPerBlock * lane + 2 * word] = static_cast<std::uint16_t>(words[word]);
      out[kDrawsPerBlock * lane + 2 * word + 1] = static_cast<std::uint16_t>(words[word] >> 16);
    }
  }
}

constexpr int kSummands = 12;
constexpr int kFaces = 16;
constexpr int kSums = kSummands * (kFaces - 1) + 1;  // 0..180, variance 12 * 255 / 12 = 255
/// Width of one step of the sum: kNormalUnit / sqrt(255 + 1/12) = 65653.6 / 256; the 1/12 comes
/// from the interpolation.
constexpr std::int64_t kStepNumerator = 65654;
constexpr std::int64_t kStepDenominator = 256;

/// In how many of the 16^12 ways each sum comes up.
std::vector<std::uint64_t> count_sums() {
  std::vector<std::uint64_t> counts{1};
  for (int summand = 0; summand < kSummands; ++summand) {
    std::vector<std::uint64_t> next(counts.size() + kFaces - 1, 0);
    for (std::size_t sum = 0; sum < counts.size(); ++sum) {
      for (std::size_t face = 0; face < kFaces; ++face) next[sum + face] += counts[sum];
    }
    counts = std::move(next);
  }
  return counts;
}

/// Quantile of the upper half, draw 32768 + i at probability (32768 + i + 1/2) / 65536; the lower
/// half mirrors it.
std::vector<std::int32_t> make_normal_table() {
  const std::vector<std::uint64_t> counts = count_sums();
  std::vector<std::int32_t> table(65536);
  std::uint64_t below =
      0;  // ways to get a smaller sum; the whole is 2^48, one draw stands for 2^32 of it
  std::size_t sum = 0;
  for (std::uint64_t draw = 32768; draw < 65536; ++draw) {
    const std::uint64_t target = (draw << 32) + (std::uint64_t{1} << 31);
    while (below + counts[sum] <= target) below += counts[sum++];
    // Position inside the step [sum - 1/2, sum + 1/2), in 1/256 of a step, counted from the middle
    // of the distribution.
    const std::int64_t inside = static_cast<std::int64_t>(((target - below) << 8) / counts[sum]);
    const std::int64_t from_middle =
        (2 * static_cast<std::int64_t>(sum) - (kSums - 1) - 1) * 128 + inside;
    const auto variate =
        static_cast<std::int32_t>(from_middle * kStepNumerator / (256 * kStepDenominator));
    table[draw] = variate;
    table[65535 - draw] = -variate;
  }
  return table;
}

}  // namespace

PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1),
               high(product0) ^ counter[3] ^ key[1], low(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

std::uint64_t name_hash(std::string_view name) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const char character : name) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001B3;
  }
  return hash;
}

std::uint16_t TensorRandom::draw(std::uint64_t index) const {
  const std::uint64_t block = index / kDrawsPerBlock;
  const std::uint64_t half = index % kDrawsPerBlock;
  const PhiloxCounter words =
      philox4x32_10({low(block), high(block), low(name_), high(name_)}, {low(seed_), high(seed_)});
  return static_cast<std::uint16_t>(words[half / 2] >> (16 * (half % 2)));
}

void TensorRandom::draws(std::uint64_t first, std::span<std::uint16_t> out) const {
  const PhiloxKey key{low(seed_), high(seed_)};
  std::uint64_t block = first / kDrawsPerBlock;
  auto skip = static_cast<std::size_t>(first % kDrawsPerBlock);
  std::size_t done = 0;
  Group group;
  while (done < out.size()) {
    const std::size_t count = std::min(out.size() - done, group.size() - skip);
    if (count == group.size()) {
      make_group(block, name_, key, out.data() + done);
    } else {
      make_group(block, name_, key, group.data());
      std::memcpy(out.data() + done, group.data() + skip, count * sizeof(std::uint16_t));
    }
    done += count;
    skip = 0;
    block += kLanes;
  }
}

std::int32_t normal_variate(std::uint16_t draw) {
  static const std::vector<std::int32_t> table = make_normal_table();
  return table[draw];
}

}  // namespace moeref
