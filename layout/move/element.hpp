#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moeref::move {

/// Element `index` of packed ones of 4, 8, 16 or 32 bits. FP4: the even one is the low nibble.
inline std::uint32_t element(const std::byte* data, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(data[index / 2]) >> (4 * (index % 2)) & 15u;
  }
  std::uint32_t value = 0;
  std::memcpy(&value, data + index * (bits / 8), static_cast<std::size_t>(bits / 8));
  return value;
}

inline void set_element(std::byte* data, std::int64_t index, int bits, std::uint32_t value) {
  if (bits == 4) {
    const auto shift = static_cast<unsigned>(4 * (index % 2));
    const auto kept = std::to_integer<std::uint32_t>(data[index / 2]) & ~(15u << shift);
    data[index / 2] = static_cast<std::byte>(kept | value << shift);
    return;
  }
  std::memcpy(data + index * (bits / 8), &value, static_cast<std::size_t>(bits / 8));
}

}  // namespace moeref::move
