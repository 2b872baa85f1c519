#pragma once

#include <bit>
#include <cmath>

#include "quant/dtype.hpp"
#include "quant/formats.hpp"
#include "quant/gpu/approx.hpp"

namespace moeref {

/// An f32 result of a kernel as it stores it, as f32: cvt.rn to bf16 or f16, whose NaN is 0x7FFF.
inline float kernel_rounded(Format output, float value) {
  if (output == Format::f32) return value;
  if (std::isnan(value)) return gpu::nan();
  if (output == Format::bf16) {
    const std::uint32_t bits = gpu::bits_of(value);
    return gpu::from_bits((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF'0000u);
  }
  return decode(output, encode(output, value, EncodePolicy::cuda_nosat));
}

}  // namespace moeref
