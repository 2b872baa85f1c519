#include <bit>
#include <cstring>

#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

std::size_t width_of(NumberType type) { return type == NumberType::f32 ? 4 : 2; }

/// The bits of number i.
std::uint32_t bits_at(NumberType type, const std::byte* numbers, std::size_t i) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, numbers + i * width_of(type), width_of(type));
  return bits;
}

float value_of(NumberType type, std::uint32_t bits) {
  if (type == NumberType::f32) return std::bit_cast<float>(bits);
  if (type == NumberType::bf16) return std::bit_cast<float>(bits << 16);
  // The factor 2^112 is the difference of the biases.
  const float magnitude = std::bit_cast<float>((bits & 0x7FFFu) << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | (bits & 0x8000u) << 16);
}

void block_amax(NumberType type, const std::byte* numbers, std::size_t blocks, std::size_t block,
                std::uint32_t* amax) {
  const std::uint32_t mask = type == NumberType::f32 ? 0x7FFF'FFFFu : 0x7FFFu;
  for (std::size_t b = 0; b < blocks; ++b) {
    std::uint32_t largest = 0;
    for (std::size_t i = b * block; i < (b + 1) * block; ++i) {
      const std::uint32_t magnitude = bits_at(type, numbers, i) & mask;
      largest = magnitude > largest ? magnitude : largest;
    }
    amax[b] = largest;
  }
}

std::uint32_t encode(float number, float factor, const EncodeRule& rule, int sign_shift) {
  float y = rule.divides ? number / factor : number * factor;
  if (rule.rounds_to_bf16) {
    const auto bits = std::bit_cast<std::uint32_t>(y);
    y = std::bit_cast<float>((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF'0000u);
  }
  y = y + rule.addend;
  const auto bits = std::bit_cast<std::uint32_t>(y);
  std::uint32_t magnitude = bits & 0x7FFF'FFFFu;
  magnitude = magnitude < rule.largest ? magnitude : rule.largest;
  // A power of two so large that the sum's last bit is the unit of the format at |y|.
  const int dropped = 23 - rule.mantissa_bits;
  const std::uint32_t binade = magnitude & 0x7F80'0000u;
  const std::uint32_t clipped = binade > rule.min_normal ? binade : rule.min_normal;
  const std::uint32_t unit_bits = clipped + (static_cast<std::uint32_t>(dropped) << 23);
  const auto unit = std::bit_cast<float>(unit_bits);
  const float sum = std::bit_cast<float>(magnitude) + unit;
  std::uint32_t code = std::bit_cast<std::uint32_t>(sum) - unit_bits;
  if (rule.ties_toward_zero) {
    const float rounded_by = (sum - unit) - std::bit_cast<float>(magnitude);
    code -= rounded_by == unit * 0x1p-24f ? 1u : 0u;
  }
  code += (clipped - rule.min_normal) >> dropped;
  std::uint32_t sign = bits & 0x8000'0000u;
  if (rule.drops_sign_of_zero && code == 0) sign = 0;
  if (rule.sign_unless_positive && magnitude == 0) sign = 0x8000'0000u;
  return code | sign >> sign_shift;
}

void encode_bytes(NumberType type, const std::byte* numbers, std::size_t count, std::size_t block,
                  const float* factors, const EncodeRule& rule, std::uint8_t* codes) {
  for (std::size_t i = 0; i < count; ++i) {
    codes[i] = static_cast<std::uint8_t>(
        encode(value_of(type, bits_at(type, numbers, i)), factors[i / block], rule, 24));
  }
}

void encode_nibbles(NumberType type, const std::byte* numbers, std::size_t count, std::size_t block,
                    const float* factors, const EncodeRule& rule, std::uint8_t* codes) {
  for (std::size_t i = 0; i < count; i += 2) {
    const float factor = factors[i / block];
    const std::uint32_t low = encode(value_of(type, bits_at(type, numbers, i)), factor, rule, 28);
    const std::uint32_t high =
        encode(value_of(type, bits_at(type, numbers, i + 1)), factor, rule, 28);
    codes[i / 2] = static_cast<std::uint8_t>(low | high << 4);
  }
}

std::uint32_t fp4_code(std::uint32_t bits, const Fp4Block& known, Fp4SignRule rule) {
  const std::uint32_t magnitude = bits & 0x7FFFu;
  const auto above = [&](int k) { return magnitude > (known.below[k] & 0xFFFFu); };
  std::uint32_t code = 0;
  for (int k = 1; k < 8; ++k) code += above(k) ? 1u : 0u;
  const bool is_zero = !above(0);
  bool sign = (bits & 0x8000u) != 0;
  if (rule == Fp4SignRule::negative) sign = sign && !is_zero;
  if (rule == Fp4SignRule::nonzero) sign = sign && code != 0;
  if (rule == Fp4SignRule::not_positive) sign = sign || is_zero;
  return code | (sign ? 8u : 0u);
}

std::size_t encode_fp4(const std::byte* numbers, std::size_t blocks, std::size_t block,
                       const std::uint16_t* place_of, const Fp4Block* table, Fp4SignRule sign,
                       std::uint8_t* codes, std::byte* scales, std::size_t scale_bytes) {
  for (std::size_t b = 0; b < blocks; ++b) {
    std::uint32_t amax = 0;
    block_amax(NumberType::bf16, numbers + 2 * b * block, 1, block, &amax);
    if (place_of[amax] == 0) return b;
    const Fp4Block& known = table[place_of[amax]];
    std::memcpy(scales + b * scale_bytes, &known.scale, scale_bytes);
    for (std::size_t i = b * block; i < (b + 1) * block; i += 2) {
      const std::uint32_t low = fp4_code(bits_at(NumberType::bf16, numbers, i), known, sign);
      const std::uint32_t high = fp4_code(bits_at(NumberType::bf16, numbers, i + 1), known, sign);
      *codes++ = static_cast<std::uint8_t>(low | high << 4);
    }
  }
  return blocks;
}

}  // namespace

const EncodeKernels encode_kernels{block_amax, encode_bytes, encode_nibbles, encode_fp4};

}  // namespace moeref::simd::scalar
