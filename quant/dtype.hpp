#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace moeref {

/// How elements lie in a file: the safetensors spellings. Says nothing about meaning: E8M0 scales
/// appear as `u8` (GPT-OSS) and as `f8_e8m0` (DeepSeek-V4), packed FP4 as `u8` and as `i8`.
enum class DType : std::uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f4,       ///< two E2M1 codes a byte, the even one in the low nibble
  f6_e2m3,  ///< four codes in three bytes
  f6_e3m2,  ///< four codes in three bytes
  c64,      ///< two f32: real, imaginary
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;  ///< the spelling in a safetensors header, e.g. "F8_E4M3"
  int bits;               ///< of one element
};

/// Every dtype, in the order of the enumeration.
std::span<const DTypeInfo> all_dtypes();
const DTypeInfo& info(DType dtype);
inline std::string_view name(DType dtype) { return info(dtype).name; }
/// The dtype with this safetensors spelling, or nothing.
std::optional<DType> parse_dtype(std::string_view name);

/// What the bits of one code mean (`spec`: OCP OFP8 1.0, OCP MX 1.0, IEEE 754). A table for each is
/// in `quant/formats.hpp`.
enum class Format : std::uint8_t {
  e4m3,      ///< OCP E4M3 (E4M3FN): max 448, no infinity
  e4m3fnuz,  ///< AMD: bias 8, max 240, no infinity, one NaN (0x80), no -0
  e5m2,      ///< OCP E5M2: max 57344, infinities
  e5m2fnuz,  ///< AMD: bias 16, max 57344
  e2m1,      ///< FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives
  e8m0,      ///< 2^(code - 127), 0xFF = NaN; no zero, no sign
  ue4m3,     ///< E4M3 with a clear sign bit: NVFP4 block scales
  bf16,
  f16,
  f32,
  f64,
};

}  // namespace moeref
