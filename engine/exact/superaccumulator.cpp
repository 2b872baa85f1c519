#include "engine/exact/superaccumulator.hpp"

#include <bit>

namespace moeref::exact {

void Superaccumulator::add(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const auto field = static_cast<int>((bits >> 52) & 0x7FF);
  std::uint64_t significand = bits & 0xFFFFFFFFFFFFFull;
  if (field != 0) significand |= 1ull << 52;
  if (significand == 0) return;
  const int lowest = (field == 0 ? 1 : field) - 1075;  // weight of bit 0
  const int offset = lowest - kLowest;
  const int limb = offset / 32;
  const int shift = offset % 32;
  // 53 bits shifted by at most 31 span three 32-bit digits.
  const unsigned __int128 wide = static_cast<unsigned __int128>(significand) << shift;
  const std::int64_t sign = (bits >> 63) != 0 ? -1 : 1;
  for (int digit = 0; digit < 3; ++digit) {
    const auto part = static_cast<std::int64_t>(static_cast<std::uint32_t>(wide >> (32 * digit)));
    limbs_[static_cast<std::size_t>(limb + digit)] += sign * part;
  }
  if (++additions_ == (std::int64_t{1} << 30)) carry();
}

void Superaccumulator::carry() {
  for (std::size_t i = 0; i + 1 < limbs_.size(); ++i) {
    const std::int64_t moved = limbs_[i] >> 32;  // arithmetic: floor
    limbs_[i] -= moved * (std::int64_t{1} << 32);
    limbs_[i + 1] += moved;
  }
  additions_ = 0;
}

Dyadic Superaccumulator::total() const {
  Dyadic sum;
  for (std::size_t i = 0; i < limbs_.size(); ++i) {
    if (limbs_[i] == 0) continue;
    sum += Dyadic::from_integer(limbs_[i]).scaled(kLowest + 32 * static_cast<std::int64_t>(i));
  }
  return sum;
}

}  // namespace moeref::exact
