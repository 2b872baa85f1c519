#include "quant/ue8m0.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/mini_float.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kMantissa = 0x007F'FFFF;
}  // namespace

float nan_max(float left, float right) { return std::isnan(left) || left > right ? left : right; }

float ceil_to_ue8m0(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t exponent = (bits >> 23 & 0xFFu) + ((bits & kMantissa) != 0 ? 1u : 0u);
  return std::bit_cast<float>(std::clamp(exponent, 1u, 254u) << 23);
}

std::uint8_t exponent_byte(float x) {
  return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(x) >> 23);
}

bool is_exponent(float x) {
  return (std::bit_cast<std::uint32_t>(x) & (kF32SignMask | kMantissa)) == 0;
}

}  // namespace moeref
