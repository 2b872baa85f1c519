#pragma once

#include <cstddef>
#include <cstdint>

// Codes to f32 numbers under block scales: the vectorised loops of dequantizers.

namespace moeref::simd {

/// What codes are, and how they lie in memory.
enum class CodeType : std::uint8_t {
  e2m1,  ///< two a byte, the even one low
  e4m3,
  bf16,
  f16,
};

/// Codes that the loops take side by side; counts and blocks are multiples of it.
inline constexpr std::size_t kDecodeUnit = 16;

/// The loops of dequantizers.
struct DecodeKernels {
  /// out[i] = value of code i times factors[i / block], in one rounding; any NaN is 0x7FC00000.
  /// `clears_minus_zero`: the value -0 is taken for +0. `streams`: the numbers will not be read
  /// soon and need not go through the caches.
  void (*decode)(CodeType type, const std::byte* codes, std::size_t count, std::size_t block,
                 const float* factors, bool clears_minus_zero, bool streams, float* out);
};

}  // namespace moeref::simd
