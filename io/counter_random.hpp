#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace moeref {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// Philox4x32-10, the counter-based generator: 128 random bits that are a function of counter and
/// key alone. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
/// 2011, section 4.3.
PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key);

/// FNV-1a, 64 bits: the number that stands for a tensor's name in a random stream.
std::uint64_t name_hash(std::string_view name);

/// The random numbers of one tensor: draw i is a function of (seed, name, i) and of nothing else,
/// so that any tensor or any slice of it can be made alone, in any order and on any thread.
/// Integers only: the same on every machine. Draw i = half-word i % 8 (low half of word 0 first) of
/// philox(counter {i / 8, name hash}, key = seed).
class TensorRandom {
 public:
  TensorRandom(std::uint64_t seed, std::string_view name) : seed_(seed), name_(name_hash(name)) {}

  /// Draw `index`, uniform over 16 bits.
  std::uint16_t draw(std::uint64_t index) const;
  /// Draws first, first + 1, ...
  void draws(std::uint64_t first, std::span<std::uint16_t> out) const;

 private:
  std::uint64_t seed_;
  std::uint64_t name_;
};

/// One standard deviation of `normal_variate`.
inline constexpr std::int32_t kNormalUnit = 4096;

/// A normal-like variate from 16 uniform bits: the inverse of an integer distribution function, so
/// no libm takes part. Mean 0, standard deviation kNormalUnit to within 0.1 %, at most 4.02 of
/// them; rises with `draw`, odd about the middle. The distribution is that of the sum of twelve
/// uniform integers in [0, 16), interpolated linearly between its steps.
std::int32_t normal_variate(std::uint16_t draw);

}  // namespace moeref
