#include "quant/gpu/functions.hpp"

#include <algorithm>

namespace moeref::gpu {

ExpParts exp_parts(float x) {
  constexpr float kLog2EOver252 = 0x1.77313ap-8f;  // 0x3BBB989D
  constexpr float kLog2ELow = 0x1.4ae0cp-26f;      // 0x32A57060
  const float scaled = std::fma(x, kLog2EOver252, 0.5f);
  const float saturated = scaled == scaled ? std::clamp(scaled, 0.0f, 1.0f) : 0.0f;
  const auto step = static_cast<int>(252.0 * static_cast<double>(saturated));
  const auto exponent = static_cast<float>(step - 126);
  const float rest = std::fma(x, kLog2ELow, std::fma(x, kLog2E, -exponent));
  // The GPU shifts the integer's low bits into the exponent field: step + 1, which is at least 1.
  return {ex2_approx_ftz(rest), from_bits(static_cast<std::uint32_t>(step + 1) << 23)};
}

float log1pf_precise(float x) {
  if (bits_of(x) >= kF32Infinity) return canonical(x);
  // The exponent of 4/3 (1 + x), 1 + x rounded toward zero.
  const double sum = 1.0 + static_cast<double>(x);
  auto toward_zero = static_cast<float>(sum);
  if (static_cast<double>(toward_zero) > sum) toward_zero = from_bits(bits_of(toward_zero) - 1);
  const std::uint32_t shift = (bits_of(toward_zero) - 0x3F40'0000u) & 0xFF80'0000u;  // k << 23
  const float scaled = from_bits(bits_of(x) - shift);                                // x 2^-k
  const float power = from_bits(0x4080'0000u - shift);                               // 4 2^-k
  const float rest = std::fma(0.25f, power, -1.0f) + scaled;
  const float exponent = static_cast<float>(static_cast<std::int32_t>(shift)) * 0x1p-23f;
  constexpr float kLn2 = 0x1.62e43p-1f;  // 0x3F317218
  constexpr std::uint32_t kCoefficients[] = {0xBD39BF78u, 0x3DD80012u, 0xBE0778E0u,
                                             0x3E146475u, 0xBE2A68DDu, 0x3E4CAF9Eu,
                                             0xBE800042u, 0x3EAAAAE6u, 0xBF000000u};
  float polynomial = 0.0f;
  for (const std::uint32_t bits : kCoefficients) {
    polynomial = std::fma(polynomial, rest, from_bits(bits));
  }
  const float log = std::fma(rest * polynomial, rest, rest);
  return std::fma(exponent, kLn2, log);
}

}  // namespace moeref::gpu
