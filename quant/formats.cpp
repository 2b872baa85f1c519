#include "quant/formats.hpp"

#include <fmt/format.h>

#include <limits>
#include <stdexcept>
#include <utility>

namespace moeref {
namespace {

constexpr int kFormatCount = static_cast<int>(Format::f64) + 1;

constexpr std::size_t index(Format format) { return static_cast<std::size_t>(format); }
constexpr std::size_t index(EncodePolicy policy) { return static_cast<std::size_t>(policy); }

constexpr float value_of(Format format, std::uint32_t code) {
  return std::bit_cast<float>(decode_to_f32_bits(mini_float(format), code));
}

constexpr FormatInfo narrow_info(Format format, std::string_view name,
                                 std::string_view description) {
  const MiniFloat layout = mini_float(format);
  const int bits = (layout.has_sign ? 1 : 0) + layout.exponent_bits + layout.mantissa_bits;
  const bool has_zero = layout.specials != Specials::exponent_only;
  const std::uint32_t min_subnormal = has_zero ? 1 : 0;
  const std::uint32_t min_normal = has_zero ? 1u << layout.mantissa_bits : 0;
  return {format,
          name,
          description,
          bits,
          layout.mantissa_bits + 1,
          value_of(format, layout.max_code()),
          value_of(format, min_normal),
          value_of(format, min_subnormal)};
}

using F32Limits = std::numeric_limits<float>;

constexpr std::array<FormatInfo, kFormatCount> kFormats{{
    narrow_info(Format::e4m3, "e4m3",
                "OCP E4M3 (E4M3FN): 1-4-3, bias 7, max 448, no infinity, NaN 0x7F and 0xFF"),
    narrow_info(Format::e4m3fnuz, "e4m3fnuz",
                "AMD E4M3FNUZ: 1-4-3, bias 8, max 240, no infinity, no -0, NaN 0x80"),
    narrow_info(Format::e5m2, "e5m2",
                "OCP E5M2: 1-5-2, bias 15, max 57344, infinity 0x7C, NaN above it"),
    narrow_info(Format::e5m2fnuz, "e5m2fnuz",
                "AMD E5M2FNUZ: 1-5-2, bias 16, max 57344, no infinity, no -0, NaN 0x80"),
    narrow_info(Format::e2m1, "e2m1",
                "OCP FP4 E2M1: 1-2-1, bias 1, max 6, no infinity, no NaN; two codes a byte"),
    narrow_info(Format::e8m0, "e8m0",
                "OCP MX scale E8M0: 2^(code - 127), no sign, no zero, NaN 0xFF"),
    narrow_info(Format::ue4m3, "ue4m3",
                "NVFP4 block scale UE4M3: E4M3 with a clear sign bit, max 448, NaN 0x7F"),
    narrow_info(Format::bf16, "bf16", "bfloat16: 1-8-7, bias 127, max 3.3895e38, as IEEE 754"),
    narrow_info(Format::f16, "f16", "IEEE 754 binary16: 1-5-10, bias 15, max 65504"),
    FormatInfo{Format::f32, "f32", "IEEE 754 binary32: 1-8-23, bias 127, max 3.4028e38", 32, 24,
               F32Limits::max(), F32Limits::min(), F32Limits::denorm_min()},
    FormatInfo{Format::f64, "f64", "IEEE 754 binary64: 1-11-52, bias 1023, max 1.7977e308", 64, 53,
               F32Limits::infinity(), 0.0f, 0.0f},
}};

constexpr std::array<std::pair<std::string_view, Format>, 7> kOtherNames{{
    {"e4m3fn", Format::e4m3},
    {"e2m1fn", Format::e2m1},
    {"e8m0fnu", Format::e8m0},
    {"ue8m0", Format::e8m0},
    {"fp16", Format::f16},
    {"fp32", Format::f32},
    {"fp64", Format::f64},
}};

constexpr std::array<float, 256> make_decode_table(Format format) {
  const MiniFloat layout = mini_float(format);
  const std::uint32_t mask = layout.sign_mask() | layout.magnitude_mask();
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) {
    table[code] = std::bit_cast<float>(decode_to_f32_bits(layout, code & mask));
  }
  return table;
}

constexpr int kByteFormatCount = static_cast<int>(Format::ue4m3) + 1;

constexpr auto kDecodeTables = [] {
  std::array<std::array<float, 256>, kByteFormatCount> tables{};
  for (int i = 0; i < kByteFormatCount; ++i) {
    tables[static_cast<std::size_t>(i)] = make_decode_table(static_cast<Format>(i));
  }
  return tables;
}();

/// What becomes of a NaN's sign.
enum class NanSign : std::uint8_t { kept, dropped, minus_zero_for_plus };

/// One cell of the table above `EncodePolicy`: codes for positive values.
struct PolicyRow {
  Format format;
  EncodePolicy policy;
  std::uint32_t overflow;
  std::uint32_t infinity;
  std::uint32_t nan;
  NanSign nan_sign;
};

using enum EncodePolicy;
constexpr std::array kPolicyRows = std::to_array<PolicyRow>({
    {Format::e4m3, ocp_saturate, 0x7E, 0x7E, 0x7F, NanSign::kept},
    {Format::e4m3, ocp_nosat, 0x7F, 0x7F, 0x7F, NanSign::kept},
    {Format::e4m3, cuda_satfinite, 0x7E, 0x7E, 0x7F, NanSign::dropped},
    {Format::e4m3, cuda_nosat, 0x7F, 0x7F, 0x7F, NanSign::dropped},
    {Format::e4m3, ml_dtypes_saturate, 0x7E, 0x7F, 0x7F, NanSign::kept},
    {Format::e4m3, ml_dtypes_nosat, 0x7F, 0x7F, 0x7F, NanSign::kept},
    {Format::e4m3, torch, 0x7F, 0x7F, 0x7F, NanSign::kept},

    {Format::e5m2, ocp_saturate, 0x7B, 0x7B, 0x7E, NanSign::kept},
    {Format::e5m2, ocp_nosat, 0x7C, 0x7C, 0x7E, NanSign::kept},
    {Format::e5m2, cuda_satfinite, 0x7B, 0x7B, 0x7F, NanSign::dropped},
    {Format::e5m2, cuda_nosat, 0x7C, 0x7C, 0x7F, NanSign::dropped},
    {Format::e5m2, ml_dtypes_saturate, 0x7B, 0x7C, 0x7E, NanSign::kept},
    {Format::e5m2, ml_dtypes_nosat, 0x7C, 0x7C, 0x7E, NanSign::kept},
    {Format::e5m2, torch, 0x7C, 0x7C, 0x7F, NanSign::kept},

    {Format::e4m3fnuz, ml_dtypes_saturate, 0x7F, 0x80, 0x80, NanSign::kept},
    {Format::e4m3fnuz, ml_dtypes_nosat, 0x80, 0x80, 0x80, NanSign::kept},
    {Format::e4m3fnuz, torch, 0x80, 0x80, 0x80, NanSign::kept},
    {Format::e5m2fnuz, ml_dtypes_saturate, 0x7F, 0x80, 0x80, NanSign::kept},
    {Format::e5m2fnuz, ml_dtypes_nosat, 0x80, 0x80, 0x80, NanSign::kept},
    {Format::e5m2fnuz, torch, 0x80, 0x80, 0x80, NanSign::kept},

    {Format::e2m1, ocp_saturate, 0x7, 0x7, 0x7, NanSign::dropped},
    {Format::e2m1, cuda_satfinite, 0x7, 0x7, 0x7, NanSign::dropped},
    {Format::e2m1, ml_dtypes_saturate, 0x7, 0x7, 0x8, NanSign::minus_zero_for_plus},
    {Format::e2m1, ml_dtypes_nosat, 0x7, 0x7, 0x8, NanSign::minus_zero_for_plus},

    {Format::bf16, cuda_satfinite, 0x7F7F, 0x7F7F, 0x7FFF, NanSign::dropped},
    {Format::bf16, cuda_nosat, 0x7F80, 0x7F80, 0x7FFF, NanSign::dropped},
    {Format::bf16, ml_dtypes_nosat, 0x7F80, 0x7F80, 0x7FC0, NanSign::kept},
    {Format::bf16, eigen, 0x7F80, 0x7F80, 0x7FC0, NanSign::kept},
    {Format::f16, cuda_satfinite, 0x7BFF, 0x7BFF, 0x7FFF, NanSign::dropped},
    {Format::f16, cuda_nosat, 0x7C00, 0x7C00, 0x7FFF, NanSign::dropped},
    {Format::f16, ml_dtypes_nosat, 0x7C00, 0x7C00, 0x7E00, NanSign::kept},
    {Format::f16, eigen, 0x7C00, 0x7C00, 0x7E00, NanSign::kept},
});

constexpr Encoder make_encoder(const PolicyRow& row) {
  const MiniFloat layout = mini_float(row.format);
  const std::uint32_t sign = layout.sign_mask();
  Encoder encoder;
  encoder.format = layout;
  encoder.max_code = layout.max_code();
  encoder.zero[1] = layout.specials == Specials::fnuz ? 0u : sign;
  encoder.overflow[0] = row.overflow;
  encoder.overflow[1] = row.overflow | sign;  // FNUZ: 0x80 has the bit already
  encoder.infinity[0] = row.infinity;
  encoder.infinity[1] = row.infinity | sign;
  encoder.nan[0] = row.nan;
  switch (row.nan_sign) {
    case NanSign::kept:
      encoder.nan[1] = row.nan | sign;
      break;
    case NanSign::dropped:
      encoder.nan[1] = row.nan;
      break;
    case NanSign::minus_zero_for_plus:
      encoder.nan[1] = 0;
      break;
  }
  encoder.negative_keep = layout.magnitude_mask();
  encoder.negative_set = sign;
  return encoder;
}

/// The E4M3 encoder of a policy, with what the policy does to negative values in a format that has
/// none.
constexpr Encoder without_sign(Encoder encoder) {
  constexpr std::uint32_t kNan = 0x7F;
  const bool saturates = encoder.overflow[0] == encoder.max_code;
  const bool infinity_saturates = encoder.infinity[0] == encoder.max_code;
  encoder.zero[1] = 0;
  encoder.overflow[1] = saturates ? 0 : kNan;
  encoder.infinity[1] = infinity_saturates ? 0 : kNan;
  encoder.nan[1] = kNan;
  encoder.negative_keep = 0;
  encoder.negative_set = encoder.overflow[1];
  return encoder;
}

/// max_code 0 marks the pairs that do not exist.
constexpr auto kEncoders = [] {
  std::array<std::array<Encoder, kEncodePolicyCount>, kFormatCount> encoders{};
  for (const PolicyRow& row : kPolicyRows) {
    encoders[index(row.format)][index(row.policy)] = make_encoder(row);
    if (row.format == Format::e4m3) {
      encoders[index(Format::ue4m3)][index(row.policy)] = without_sign(make_encoder(row));
    }
  }
  return encoders;
}();

constexpr std::array<std::string_view, kEncodePolicyCount> kPolicyNames{
    "ocp_saturate",       "ocp_nosat",       "cuda_satfinite", "cuda_nosat",
    "ml_dtypes_saturate", "ml_dtypes_nosat", "torch",          "eigen"};

/// One row of the table above `encode_e8m0`.
struct E8M0Rule {
  EncodePolicy policy;
  E8M0Rounding rounding;
  std::uint8_t zero;
  bool uses_magnitude;  ///< of negative values; otherwise `negative`
  std::uint8_t negative;
  std::uint8_t overflow;
  std::uint8_t infinity;
};

using enum E8M0Rounding;
constexpr std::array kE8M0Rules = std::to_array<E8M0Rule>({
    {cuda_satfinite, toward_zero, 0x00, true, 0x00, 0xFE, 0xFE},
    {cuda_nosat, toward_zero, 0x00, true, 0x00, 0xFF, 0xFF},
    {cuda_satfinite, toward_positive, 0x00, true, 0x00, 0xFE, 0xFE},
    {cuda_nosat, toward_positive, 0x00, true, 0x00, 0xFF, 0xFF},
    {ml_dtypes_saturate, nearest_even, 0x00, false, 0x00, 0xFE, 0xFF},
    {ml_dtypes_nosat, nearest_even, 0xFF, false, 0xFF, 0xFF, 0xFF},
    {torch, nearest_even, 0x00, true, 0x00, 0xFF, 0xFF},
});

constexpr std::size_t kE8M0RoundingCount = 3;

/// Indices into kE8M0Rules, or its size where there is no rule.
constexpr auto kE8M0RuleOf = [] {
  std::array<std::array<std::size_t, kEncodePolicyCount>, kE8M0RoundingCount> rule_of{};
  for (auto& row : rule_of) row.fill(kE8M0Rules.size());
  for (std::size_t i = 0; i < kE8M0Rules.size(); ++i) {
    const E8M0Rule& rule = kE8M0Rules[i];
    rule_of[static_cast<std::size_t>(rule.rounding)][index(rule.policy)] = i;
  }
  return rule_of;
}();

const E8M0Rule* find_e8m0_rule(EncodePolicy policy, E8M0Rounding rounding) {
  const std::size_t i = kE8M0RuleOf[static_cast<std::size_t>(rounding)][index(policy)];
  return i < kE8M0Rules.size() ? &kE8M0Rules[i] : nullptr;
}

/// The code of a finite positive value; 0xFF on overflow.
constexpr std::uint32_t round_exponent(std::uint32_t magnitude, E8M0Rounding rounding) {
  const std::uint32_t exponent = magnitude >> 23;
  const std::uint32_t mantissa = magnitude & 0x007F'FFFFu;
  if (rounding == toward_zero) return exponent;
  // Below 2^-126 the nearest encoders take code 0 for zero: units of 2^-126, and the midpoint
  // 2^-127 = 0x00400000 goes to the even code 0. Rounding up has the same boundary, because code 0
  // is 2^-127.
  if (exponent == 0) return mantissa > 0x0040'0000u ? 1 : 0;
  const std::uint32_t threshold = rounding == toward_positive ? 1 : 0x0040'0000u;
  return exponent + (mantissa >= threshold ? 1 : 0);
}

constexpr int kE8M0DecoderCount = 5;
/// The f32 bits of the codes 0x00 and 0xFF.
constexpr std::uint32_t kE8M0Ends[kE8M0DecoderCount][2] = {
    {0x0040'0000u, kF32QuietNan},  // ocp
    {0x0000'0000u, kF32Infinity},  // shift23
    {0x0040'0000u, 0x7F80'0001u},  // aiter
    {0x0040'0000u, kF32Infinity},  // exp2_f32
    {0x0040'0000u, kF32Infinity},  // ct_bf16
};

}  // namespace

std::span<const FormatInfo> all_formats() { return kFormats; }

const FormatInfo& info(Format format) { return kFormats.at(index(format)); }

std::optional<Format> parse_format(std::string_view name) {
  for (const FormatInfo& candidate : kFormats) {
    if (candidate.name == name) return candidate.format;
  }
  for (const auto& [other_name, format] : kOtherNames) {
    if (other_name == name) return format;
  }
  return std::nullopt;
}

DType stored_dtype(Format format) {
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
      return DType::f8_e4m3;
    case Format::e4m3fnuz:
      return DType::f8_e4m3fnuz;
    case Format::e5m2:
      return DType::f8_e5m2;
    case Format::e5m2fnuz:
      return DType::f8_e5m2fnuz;
    case Format::e8m0:
      return DType::f8_e8m0;
    case Format::e2m1:
      return DType::u8;
    case Format::bf16:
      return DType::bf16;
    case Format::f16:
      return DType::f16;
    case Format::f32:
      return DType::f32;
    case Format::f64:
      return DType::f64;
  }
  return DType::u8;
}

std::optional<Format> float_format(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return Format::bf16;
    case DType::f16:
      return Format::f16;
    case DType::f32:
      return Format::f32;
    default:
      return std::nullopt;
  }
}

const std::array<float, 256>& decode_table(Format format) {
  if (index(format) >= kDecodeTables.size()) {
    throw std::invalid_argument(
        fmt::format("decode_table: {} has more than 256 codes", info(format).name));
  }
  return kDecodeTables[index(format)];
}

float decode(Format format, std::uint32_t code) {
  switch (format) {
    case Format::bf16:
      return std::bit_cast<float>(code << 16);
    case Format::f16:
      return std::bit_cast<float>(decode_to_f32_bits(mini_float(Format::f16), code & 0xFFFFu));
    case Format::f32:
      return std::bit_cast<float>(code);
    case Format::f64:
      throw std::invalid_argument("decode: an f64 code does not fit 32 bits");
    default:
      return kDecodeTables[index(format)][code & 0xFFu];
  }
}

bool knows(EncodePolicy policy, Format format) {
  return kEncoders.at(index(format)).at(index(policy)).max_code != 0;
}

const Encoder& encoder(Format format, EncodePolicy policy) {
  const Encoder& found = kEncoders.at(index(format)).at(index(policy));
  if (found.max_code == 0) {
    throw std::invalid_argument(fmt::format("encode: policy {} does not know the format {}",
                                            kPolicyNames[index(policy)], info(format).name));
  }
  return found;
}

std::uint32_t encode(Format format, float value, EncodePolicy policy) {
  if (format == Format::f32) return std::bit_cast<std::uint32_t>(value);
  return encoder(format, policy)(value);
}

bool knows_e8m0(EncodePolicy policy, E8M0Rounding rounding) {
  return find_e8m0_rule(policy, rounding) != nullptr;
}

std::uint8_t encode_e8m0(float value, E8M0Rounding rounding, EncodePolicy policy) {
  const E8M0Rule* rule = find_e8m0_rule(policy, rounding);
  if (rule == nullptr) {
    throw std::invalid_argument(
        fmt::format("encode_e8m0: policy {} does not round this way; cuda_* knows toward_zero and "
                    "toward_positive, ml_dtypes_* and torch nearest_even",
                    kPolicyNames[index(policy)]));
  }
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & ~kF32SignMask;
  if (magnitude > kF32Infinity) return 0xFF;
  if (magnitude == kF32Infinity) return rule->infinity;
  if (magnitude == 0) return rule->zero;
  if (magnitude != bits && !rule->uses_magnitude) return rule->negative;
  const std::uint32_t code = round_exponent(magnitude, rounding);
  return code == 0xFF ? rule->overflow : static_cast<std::uint8_t>(code);
}

float decode_e8m0(std::uint8_t code, E8M0Decoder decoder) {
  const auto& ends = kE8M0Ends[static_cast<std::size_t>(decoder)];
  if (code == 0x00) return std::bit_cast<float>(ends[0]);
  if (code == 0xFF) return std::bit_cast<float>(ends[1]);
  return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 23);
}

std::uint32_t decode_bits(Format from, std::uint32_t code, Format to, DecodeFlavour flavour) {
  if (to != Format::f32 && to != Format::bf16 && to != Format::f16) {
    throw std::invalid_argument(
        fmt::format("decode_bits: the target is f32, bf16 or f16, not {}", info(to).name));
  }
  const float value = decode(from, code);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool is_nan = (bits & ~kF32SignMask) > kF32Infinity;
  const bool is_cuda = flavour == DecodeFlavour::cuda;
  if (to == Format::f32) {
    const bool is_copy = from == Format::f32 || from == Format::bf16;  // the same bits, moved
    if (!is_nan || !is_cuda || is_copy) return bits;
    return from == Format::e8m0 ? 0x7FFF'0000u : 0x7FFF'FFFFu;  // E8M0 goes through bf16
  }
  if (to == from) return code;
  return encoder(to, is_cuda ? cuda_nosat : eigen)(value);
}

std::uint32_t encode_bits(Format from, std::uint32_t code, Format to, EncodePolicy policy,
                          TorchDevice device) {
  if (from == Format::f16 && to == Format::e5m2 &&
      (policy == ml_dtypes_saturate || policy == ml_dtypes_nosat)) {
    return encode_e5m2_from_f16(static_cast<std::uint16_t>(code), policy == ml_dtypes_saturate);
  }
  const std::uint32_t result = encode(to, decode(from, code), policy);
  const bool is_f16_nan = from == Format::f16 && (code & 0x7FFFu) > 0x7C00u;
  const bool has_ocp_nan = to == Format::e4m3 || to == Format::e5m2;
  if (policy == torch && device == TorchDevice::cuda && is_f16_nan && has_ocp_nan) return 0x7F;
  return result;
}

std::uint8_t encode_e5m2_from_f16(std::uint16_t f16_bits, bool saturate) {
  const std::uint32_t sign = (f16_bits >> 8) & 0x80u;
  const std::uint32_t magnitude = f16_bits & 0x7FFFu;
  if (magnitude > 0x7C00u) {
    return static_cast<std::uint8_t>((f16_bits >> 8) | 0x02u);  // 0x02: the quiet bit
  }
  // RNE by adding: half a unit less one, plus the last bit that stays. Infinity has no bits to
  // round.
  const std::uint32_t rounded = (magnitude + 0x7Fu + ((magnitude >> 8) & 1u)) >> 8;
  const bool overflows = magnitude < 0x7C00u && rounded > 0x7Bu;
  return static_cast<std::uint8_t>(sign | (saturate && overflows ? 0x7Bu : rounded));
}

}  // namespace moeref
