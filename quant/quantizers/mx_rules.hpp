#pragma once

#include <cstdint>
#include <string>

#include "quant/dtype.hpp"

namespace moeref::quantizers {

/// How the amax of an MX block becomes its E8M0 scale; emax, max = the largest exponent and value
/// of the elements.
enum class MxRule : std::uint8_t {
  floor,  ///< OCP MX 1.0: floor(log2 amax) - emax; values above max 2^e saturate
  rceil,  ///< NVIDIA, aiter RoundUp: the power of two at or above amax / max
  even,   ///< Quark: amax rounded to the mantissa bits of the elements, then floor
  ceil,   ///< torchao: the power of two at or above amax / 2^emax
};

/// floor(log2 max): E2M1 2, E4M3 8, E4M3FNUZ 7, E5M2 15.
int mx_emax(Format codes);

/// The byte of an amax, with true divisions (PyTorch on the CPU): exponent field of amax / 2^emax
/// (floor, even) or field + (mantissa != 0) of amax / max or / 2^emax. Infinity and NaN give 0xFF;
/// a subnormal quotient 0 or 1; `even` rolls NaN payloads from 0x7FE00000 (FP4) over to 0.
/// Source: aiter@e4048607a535 aiter/utility/fp4_utils.py f32_to_mx_e8m0_scale
std::uint8_t mx_scale_byte(float amax, MxRule rule, Format codes);

/// What microxcaling makes of an element of a block with this amax: in units of the block's scale,
/// and in the end. rounding: nearest, even, floor; `flush`: flush_fp32_subnorms.
/// Source: microxcaling@7bc41952de39 mx/mx_ops.py _quantize_mx
float microxcaling_in_units(float x, float amax, Format codes, const std::string& rounding,
                            bool flush);
float microxcaling_value(float x, float amax, Format codes, const std::string& rounding,
                         bool flush);

}  // namespace moeref::quantizers
