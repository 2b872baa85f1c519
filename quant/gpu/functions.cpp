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

}  // namespace moeref::gpu
