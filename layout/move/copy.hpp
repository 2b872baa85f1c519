#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moeref::move {

/// memcpy for pieces that are often short: without a call up to some KB. The last bytes
/// of a piece may be copied twice.
inline void copy_bytes(const std::byte* from, std::byte* to, std::int64_t bytes) {
  if (bytes >= 16 && bytes < 2048) {
    for (std::int64_t at = 0; at + 16 <= bytes; at += 16) std::memcpy(to + at, from + at, 16);
    std::memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else if (bytes >= 4 && bytes < 8) {
    std::memcpy(to, from, 4);
    std::memcpy(to + bytes - 4, from + bytes - 4, 4);
  } else if (bytes >= 8 && bytes < 16) {
    std::memcpy(to, from, 8);
    std::memcpy(to + bytes - 8, from + bytes - 8, 8);
  } else {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
}

/// memset for pieces that are often a few bytes.
inline void fill_bytes(std::byte* to, std::byte value, std::int64_t bytes) {
  if (bytes >= 16) {
    std::memset(to, std::to_integer<int>(value), static_cast<std::size_t>(bytes));
    return;
  }
  const std::uint64_t values = std::to_integer<std::uint64_t>(value) * 0x0101010101010101u;
  if ((bytes & 8) != 0) std::memcpy(to, &values, 8);
  if ((bytes & 4) != 0) std::memcpy(to + (bytes & 8), &values, 4);
  if ((bytes & 2) != 0) std::memcpy(to + (bytes & 12), &values, 2);
  if ((bytes & 1) != 0) std::memcpy(to + (bytes & 14), &values, 1);
}

/// Whether all bytes are `value`.
inline bool is_filled(const std::byte* from, std::byte value, std::int64_t bytes) {
  std::byte difference{0};
  for (std::int64_t i = 0; i < bytes; ++i) difference |= from[i] ^ value;
  return difference == std::byte{0};
}

/// Starts reading a piece (of a long one the beginning, the processor does the rest by itself).
/// Nothing for nullptr.
inline void prefetch(const std::byte* from, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  constexpr std::int64_t kBeginning = 4096;
  if (from == nullptr) return;
  for (std::int64_t at = 0; at < bytes && at < kBeginning; at += kLine) {
    __builtin_prefetch(from + at);
  }
}

}  // namespace moeref::move
