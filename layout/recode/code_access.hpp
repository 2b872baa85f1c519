#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace moeref::recode {

/// Code `index` of a run of codes of `bits`, 8, 16 or 32.
inline std::uint32_t load_code(std::span<const std::byte> from, std::size_t index, int bits) {
  const std::size_t width = static_cast<std::size_t>(bits) / 8;
  std::uint32_t code = 0;
  std::memcpy(&code, from.data() + index * width, width);
  return code;
}

inline void store_code(std::span<std::byte> to, std::size_t index, int bits, std::uint32_t code) {
  const std::size_t width = static_cast<std::size_t>(bits) / 8;
  std::memcpy(to.data() + index * width, &code, width);
}

}  // namespace moeref::recode
