#include <bit>
#include <cstring>

#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr std::uint32_t kQuietNan = 0x7FC0'0000u;

std::uint32_t code_at(CodeType type, const std::byte* codes, std::size_t i) {
  if (type == CodeType::e2m1) {
    return std::to_integer<std::uint32_t>(codes[i / 2]) >> (i % 2 == 0 ? 0 : 4) & 0xFu;
  }
  if (type == CodeType::e4m3) return std::to_integer<std::uint32_t>(codes[i]);
  std::uint16_t half;
  std::memcpy(&half, codes + 2 * i, sizeof half);
  return half;
}

float e2m1_value(std::uint32_t code) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitudes[code & 7u];
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

float e4m3_value(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7Fu;
  if (magnitude == 0x7Fu) return std::bit_cast<float>(kQuietNan);
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f
                                    : std::bit_cast<float>((magnitude << 20) + (120u << 23));
  return (code & 0x80u) != 0 ? -value : value;
}

/// As the encoder's loops read it: the factor 2^112 is the difference of the biases.
float half_value(std::uint32_t code) {
  const std::uint32_t magnitude = (code & 0x7FFFu) << 13;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0F80'0000u) bits = magnitude | 0x7F80'0000u;
  return std::bit_cast<float>(bits | (code & 0x8000u) << 16);
}

float value_of(CodeType type, std::uint32_t code) {
  switch (type) {
    case CodeType::e2m1:
      return e2m1_value(code);
    case CodeType::e4m3:
      return e4m3_value(code);
    case CodeType::bf16:
      return std::bit_cast<float>(code << 16);
    case CodeType::f16:
      return half_value(code);
  }
  return 0.0f;
}

void decode(CodeType type, const std::byte* codes, std::size_t count, std::size_t block,
            const float* factors, bool clears_minus_zero, bool, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    float value = value_of(type, code_at(type, codes, i));
    if (clears_minus_zero) value = value + 0.0f;
    const float product = value * factors[i / block];
    out[i] = product == product ? product : std::bit_cast<float>(kQuietNan);
  }
}

}  // namespace

const DecodeKernels decode_kernels{decode};

}  // namespace moeref::simd::scalar
