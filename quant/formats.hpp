#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "quant/dtype.hpp"
#include "quant/mini_float.hpp"

namespace moeref {

/// What a converter makes of values that the format cannot hold. Finite values that fit are rounded
/// to nearest even by all, in one step from f32; subnormals are kept; -0 and negative underflow
/// give -0 (FNUZ: 0x00). Sources: OCP OFP8 1.0; cuda_fp8.hpp, cuda_fp4.hpp, cuda_bf16.hpp,
/// cuda_fp16.hpp of CUDA Toolkit 13.0; jax-ml/ml_dtypes@b793a6e2864c ml_dtypes/include/float8.h,
/// mxfloat.h; PyTorch 2.11 Tensor.to; Eigen 3.4.0.
///
///                     E4M3            E5M2            FNUZ       E2M1            BF16, FP16
/// ocp_saturate        max max 7F|s    max max 7E|s    -          max max 7       -
/// ocp_nosat           7F|s 7F|s 7F|s  7C|s 7C|s 7E|s  -          -               -
/// cuda_satfinite      max max 7F      max max 7F      -          max max 7       max max 7FFF
/// cuda_nosat          7F|s 7F|s 7F    7C|s 7C|s 7F    -          -               inf inf 7FFF
/// ml_dtypes_saturate  max 7F|s 7F|s   max 7C|s 7E|s   max 80 80  max max (8, 0)  -
/// ml_dtypes_nosat     7F|s 7F|s 7F|s  7C|s 7C|s 7E|s  80 80 80   max max (8, 0)  inf inf qNaN|s
/// torch               7F|s 7F|s 7F|s  7C|s 7C|s 7F|s  80 80 80   -               -
/// eigen               -               -               -          -               inf inf qNaN|s
///
/// Each cell: finite overflow, infinity, NaN. `max`, `inf` and `|s` carry the sign, a bare code
/// does not; (8, 0) = for +NaN, for -NaN; qNaN = 7FC0, 7E00; "-" = the policy does not know the
/// format. OCP MX leaves NaN -> E2M1 open: here as on the GPU.
///
/// UE4M3 takes each policy's E4M3 column for values that are not negative. A negative value has no
/// code: the saturating policies give the nearest one, 0x00, the others NaN, 0x7F; -infinity
/// likewise, under ml_dtypes_saturate NaN. This is what ml_dtypes does for its unsigned format.
/// What rounds to -0 gives 0x00; NaN gives 0x7F.
enum class EncodePolicy : std::uint8_t {
  ocp_saturate,        ///< OCP OFP8, saturating mode
  ocp_nosat,           ///< OCP OFP8, non-saturating mode
  cuda_satfinite,      ///< cvt.rn.satfinite, __NV_SATFINITE
  cuda_nosat,          ///< __NV_NOSAT; __float2bfloat16_rn, __float2half_rn
  ml_dtypes_saturate,  ///< kSaturate = true: saturates finite values only
  ml_dtypes_nosat,     ///< numpy astype
  torch,               ///< Tensor.to(float8_*), which does not saturate
  eigen,               ///< Eigen::bfloat16, Eigen::half, which ml_dtypes wraps
};
inline constexpr int kEncodePolicyCount = 8;

/// Direction of an E8M0 encoder; the other formats know nearest even only.
enum class E8M0Rounding : std::uint8_t {
  toward_zero,      ///< cudaRoundZero: the exponent of |x|
  toward_positive,  ///< cudaRoundPosInf, "RCEIL": + 1 if the significand is above 1
  nearest_even,     ///< ml_dtypes, torch: + 1 if the significand is at least 1.5
};

struct FormatInfo {
  Format format;
  std::string_view name;         ///< "e4m3", as on the command line
  std::string_view description;  ///< one line: bits, bias, maximum, specials
  int bits;                      ///< of a code
  int significand_bits;          ///< precision with the hidden bit
  float max_finite;              ///< these three are infinity, 0, 0 for f64: f32 cannot hold them
  float min_normal;
  float min_subnormal;  ///< the smallest positive value
};

/// Every format, in the order of the enumeration.
std::span<const FormatInfo> all_formats();
const FormatInfo& info(Format format);
inline std::string_view name(Format format) { return info(format).name; }
/// The format of this name or of a common other spelling (e4m3fn, e2m1fn, e8m0fnu, ue8m0, fp16,
/// fp32, fp64), or nothing.
std::optional<Format> parse_format(std::string_view name);
/// How the elements of a format lie in a file: UE4M3 as F8_E4M3, E2M1 as U8 with two codes a byte.
DType stored_dtype(Format format);
/// The format of BF16, F16 and F32 elements; nothing for another dtype.
std::optional<Format> float_format(DType dtype);

/// The value of every code of a format of at most 8 bits (E2M1: 16 codes, repeated), as f32; exact.
/// NaN codes give quiet NaNs with the sign of the code. E8M0: 0x00 = 2^-127, 0xFF = NaN (OCP).
/// UE4M3 decodes as E4M3. Another format is std::invalid_argument.
const std::array<float, 256>& decode_table(Format format);
/// The value of one code; exact. Bits of `code` above the format's are ignored. A NaN keeps its
/// sign and, from 16 and 32 bits, its payload. Not for f64.
float decode(Format format, std::uint32_t code);

/// Encodes f32 values into one format under one policy; what `encode` does, without the look-up per
/// value. Plain data; in the arrays [0] is for positive and [1] for negative values.
struct Encoder {
  MiniFloat format{};
  std::uint32_t max_code = 0;
  std::uint32_t zero[2] = {};
  std::uint32_t overflow[2] = {};
  std::uint32_t infinity[2] = {};
  std::uint32_t nan[2] = {};
  /// A negative number's code: these bits of the code of its magnitude stay, and these are set (the
  /// sign bit, or a whole code in a format without negatives).
  std::uint32_t negative_keep = 0;
  std::uint32_t negative_set = 0;

  /// The code of `value` in one rounding.
  constexpr std::uint32_t operator()(float value) const {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = bits >> 31;
    const std::uint32_t magnitude = bits & ~kF32SignMask;
    if (magnitude >= kF32Infinity) {
      return magnitude == kF32Infinity ? infinity[sign] : nan[sign];
    }
    const std::uint32_t code = round_magnitude(format, magnitude);
    if (code == 0) return zero[sign];
    if (code > max_code) return overflow[sign];
    return sign == 0 ? code : (code & negative_keep) | negative_set;
  }
};

/// Whether `encode` knows this pair.
bool knows(EncodePolicy policy, Format format);
/// The encoder of a format under a policy. Not for E8M0, f32, f64; an unknown pair is
/// std::invalid_argument.
const Encoder& encoder(Format format, EncodePolicy policy);

/// f32 to a code in one rounding. f32 gives the bits of `value`. Not for f64 and E8M0. A policy
/// that the format does not know is std::invalid_argument.
std::uint32_t encode(Format format, float value, EncodePolicy policy);

/// Whether `encode_e8m0` knows this pair: cuda toward zero and positive, ml_dtypes and torch
/// nearest.
bool knows_e8m0(EncodePolicy policy, E8M0Rounding rounding);
/// f32 to an E8M0 code under cuda (rz, rp), ml_dtypes or torch (nearest) rules for zero, negatives,
/// infinity and NaN. Subnormals: toward_zero 00; otherwise 00 up to 2^-127, above it 01.
///
///                                 zero  negative  overflow  infinity  NaN
/// cuda_satfinite toward_zero      00    as |x|    -         FE        FF
/// cuda_nosat toward_zero          00    as |x|    -         FF        FF
/// cuda_satfinite toward_positive  00    as |x|    FE        FE        FF
/// cuda_nosat toward_positive      00    as |x|    FF        FF        FF
/// ml_dtypes_saturate nearest      00    00        FE        FF        FF
/// ml_dtypes_nosat nearest         FF    FF        FF        FF        FF
/// torch nearest                   00    as |x|    FF        FF        FF
///
/// -infinity as infinity. Another pair is std::invalid_argument. Sources: cuda_fp8.hpp
/// __nv_cvt_bfloat16raw_to_e8m0; ml_dtypes float8.h ConvertImpl; PyTorch 2.11.
std::uint8_t encode_e8m0(float value, E8M0Rounding rounding, EncodePolicy policy);

/// How a stack turns an E8M0 byte into a number. They differ in 0x00 and 0xFF only.
enum class E8M0Decoder : std::uint8_t {
  ocp,       ///< OCP MX, CUDA, ml_dtypes: 2^-127, NaN
  shift23,   ///< byte << 23 (FlashInfer, DeepGEMM, SGLang, DeepEP host code): +0, +infinity
  aiter,     ///< aiter e8m0_to_f32: 2^-127, the NaN 0x7F800001
  exp2_f32,  ///< Model-Optimizer exp2(byte - 127) in f32: 2^-127, +infinity
  ct_bf16,   ///< compressed-tensors 2.0 ** bf16: 2^-127, +infinity; every value is a bf16
};
float decode_e8m0(std::uint8_t code, E8M0Decoder decoder);

/// Which NaN a decoder to a wider type writes.
enum class DecodeFlavour : std::uint8_t {
  /// Also Eigen and OCP. Sign kept: 0x7FC00000, bf16 0x7FC0, f16 0x7E00. bf16 -> f32 and f16 -> f32
  /// keep the payload too.
  ml_dtypes,
  /// Sign dropped: 0x7FFFFFFF (from E8M0 0x7FFF0000), bf16 0x7FFF, f16 0x7FFF. bf16 -> f32 keeps
  /// the
  /// bits.
  cuda,
};
/// The bits of the value of a code in `to`, one of f32, bf16, f16 (otherwise
/// std::invalid_argument): exact, or in one rounding to nearest even where `to` cannot hold it
/// (E8M0 -> f16, 16 and 32 bits -> 16 bits). `from`: not f64. Source: cuda_fp8.hpp
/// __nv_cvt_fp8_to_halfraw, __internal_e8m0_to_bf16; ml_dtypes float8.h ConvertImpl.
std::uint32_t decode_bits(Format from, std::uint32_t code, Format to, DecodeFlavour flavour);

/// Where PyTorch runs: the casts agree but for the sign of f16 NaNs.
enum class TorchDevice : std::uint8_t { cpu, cuda };
/// The code of a value that is given as a code of f32, bf16 or f16: `encode` of the widened value,
/// with the two exceptions that depend on the input's type: ml_dtypes f16 -> E5M2
/// (`encode_e5m2_from_f16`), and torch on CUDA drops the sign of an f16 NaN on the way to E4M3 and
/// E5M2. E8M0 has no exception: encode_e8m0(decode(from, code), ...).
std::uint32_t encode_bits(Format from, std::uint32_t code, Format to, EncodePolicy policy,
                          TorchDevice device = TorchDevice::cpu);
/// ml_dtypes' own path from f16 bits to E5M2: the upper byte, rounded to nearest even; infinity
/// stays; a NaN keeps its sign and the top of its payload and is made quiet, so 0x7F occurs beside
/// 0x7E. Source: jax-ml/ml_dtypes@b793a6e2864c ml_dtypes/include/float8.h ConvertImpl<Eigen::half,
/// float8_e5m2>.
std::uint8_t encode_e5m2_from_f16(std::uint16_t f16_bits, bool saturate);

}  // namespace moeref
