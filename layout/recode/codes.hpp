#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "quant/dtype.hpp"

namespace moeref::recode {

/// Whether elements of a scale tensor may be E8M0 bytes: U8, I8 or F8_E8M0.
inline bool is_e8m0_bytes(DType dtype) {
  return dtype == DType::u8 || dtype == DType::i8 || dtype == DType::f8_e8m0;
}

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
