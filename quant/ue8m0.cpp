#include "quant/ue8m0.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/error.hpp"
#include "quant/mini_float.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kMantissa = 0x007F'FFFF;
constexpr float kSmallestAmax = 1e-4f;

std::uint8_t fp4_code_ties_down(float scaled) {
  const float magnitude = std::fabs(scaled);
  std::uint8_t code = 0;
  for (const float boundary : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
    if (magnitude > boundary) ++code;
  }
  return scaled < 0.0f && code != 0 ? static_cast<std::uint8_t>(code | 8u) : code;
}

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

Fp4Rows per_token_cast_to_fp4(std::span<const float> values, std::int64_t rows, std::int64_t cols,
                              std::int64_t gran_k, bool ue8m0) {
  const simd::DefaultFloatEnvironment environment;
  if (cols % 2 != 0) fail("per_token_cast_to_fp4", "{} columns; FP4 packs an even number", cols);
  Fp4Rows result;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t begin = 0; begin < cols; begin += gran_k) {
      const auto group = values.subspan(static_cast<std::size_t>(row * cols + begin),
                                        static_cast<std::size_t>(std::min(gran_k, cols - begin)));
      float amax = 0.0f;
      for (const float x : group) amax = nan_max(amax, std::fabs(x));
      const float exact = nan_max(amax, kSmallestAmax) / 6.0f;
      const float scale = ue8m0 ? ceil_to_ue8m0(exact) : exact;
      const float factor = 1.0f / scale;
      result.scales.push_back(scale);
      for (std::size_t i = 0; i < group.size(); ++i) {
        const std::uint8_t code = fp4_code_ties_down(group[i] * factor);
        const std::int64_t col = begin + static_cast<std::int64_t>(i);
        if (col % 2 == 0) {
          result.codes.push_back(code);
        } else {
          result.codes.back() = static_cast<std::uint8_t>(result.codes.back() | code << 4);
        }
      }
    }
  }
  return result;
}

}  // namespace moeref
