#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "quant/dtype.hpp"

namespace moeref::recode {

// What kernels make of the prepared bytes, element by element. `unit`: the factor that the kernel
// leaves in the weight codes when it moves their exponent bits.

using MarlinDecoder = std::function<std::vector<float>(std::span<const std::byte>)>;

/// S0E5M3. f16: the FP16 with bits byte << 7; 0xF8 is infinity. bf16: the BF16 with bits
/// (byte & 0x80) << 7 | (byte & 0x7F) << 4; 0xF8 is 65536; a byte below 0x80 stands for less than
/// 2^-111, with which every product of a code (at most 6 * 2^-126) is 0 in BF16: 0 here.
/// Source: vLLM marlin dequant.h dequant_fp8_scales
MarlinDecoder decode_s0e5m3(DType params);
/// E8M0: the BF16 with bits byte << 7; 0x00 is 0 and 0xFF infinity. Times `unit`.
/// Source: vLLM marlin dequant.h dequant_fp8_scales<nv_bfloat162, kFE8M0fnu>
MarlinDecoder decode_marlin_e8m0(float unit);
/// BF16 or F16 scales times `unit`.
MarlinDecoder decode_marlin_floats(DType params, float unit);

}  // namespace moeref::recode
