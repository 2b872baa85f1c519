#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "quant/formats.hpp"

// A second opinion on the narrow formats for the tests: lists of values, found by search. Shares
// nothing with the encoders and decoders under test but the names.

namespace moeref::test {

/// The non-negative finite values of a format; the index is the code, so the values rise.
struct Representable {
  std::vector<double> values;
  double beyond = 0.0;  ///< the value that the next code would have if the format went on
};

inline Representable list_values(int exponent_bits, int mantissa_bits, int bias,
                                 std::uint32_t max_code) {
  const auto value = [&](std::uint32_t code) {
    const std::uint32_t per_binade = 1u << mantissa_bits;
    const std::uint32_t binade = code / per_binade;
    const double fraction = static_cast<double>(code % per_binade) / per_binade;
    return binade == 0 ? std::ldexp(fraction, 1 - bias)
                       : std::ldexp(1.0 + fraction, static_cast<int>(binade) - bias);
  };
  if (max_code >= 1u << (exponent_bits + mantissa_bits)) throw std::logic_error("max_code");
  Representable list;
  for (std::uint32_t code = 0; code <= max_code; ++code) list.values.push_back(value(code));
  list.beyond = value(max_code + 1);
  return list;
}

inline Representable representable(Format format) {
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
      return list_values(4, 3, 7, 0x7E);
    case Format::e4m3fnuz:
      return list_values(4, 3, 8, 0x7F);
    case Format::e5m2:
      return list_values(5, 2, 15, 0x7B);
    case Format::e5m2fnuz:
      return list_values(5, 2, 16, 0x7F);
    case Format::e2m1:
      return list_values(2, 1, 1, 0x7);
    case Format::bf16:
      return list_values(8, 7, 127, 0x7F7F);
    case Format::f16:
      return list_values(5, 10, 15, 0x7BFF);
    default:
      throw std::logic_error("representable: no such list");
  }
}

inline float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t to_bits(float value) { return std::bit_cast<std::uint32_t>(value); }

/// The first f32 bit pattern of a positive number that lies nearer to `upper` than to `lower`, or
/// in the middle if `tie_goes_up`. Comparisons in f64 are exact; the search is by bisection.
inline std::uint32_t first_pattern_above_middle(double lower, double upper, bool tie_goes_up) {
  const double middle = lower + (upper - lower) / 2;  // exact: both have at most 12 bits
  std::uint32_t below = 0;                            // of 0.0f, which is not above any middle
  std::uint32_t above = 0x7F80'0000u;
  while (above - below > 1) {
    const std::uint32_t pattern = below + (above - below) / 2;
    const auto value = static_cast<double>(from_bits(pattern));
    const bool is_above = tie_goes_up ? value >= middle : value > middle;
    (is_above ? above : below) = pattern;
  }
  return above;
}

inline bool is_saturating(EncodePolicy policy) {
  return policy == EncodePolicy::ocp_saturate || policy == EncodePolicy::cuda_satfinite ||
         policy == EncodePolicy::ml_dtypes_saturate;
}

inline bool is_cuda(EncodePolicy policy) {
  return policy == EncodePolicy::cuda_satfinite || policy == EncodePolicy::cuda_nosat;
}

inline bool is_ml_dtypes(EncodePolicy policy) {
  return policy == EncodePolicy::ml_dtypes_saturate || policy == EncodePolicy::ml_dtypes_nosat;
}

inline bool is_fnuz(Format format) {
  return format == Format::e4m3fnuz || format == Format::e5m2fnuz;
}

/// The code of a number with this sign whose magnitude rounds to the code `magnitude`; FNUZ has no
/// -0, UE4M3 no negatives.
inline std::uint32_t signed_code(Format format, EncodePolicy policy, std::uint32_t magnitude,
                                 bool negative) {
  if (!negative) return magnitude;
  if (format == Format::ue4m3) return magnitude == 0 || is_saturating(policy) ? 0x00 : 0x7F;
  if (is_fnuz(format) && magnitude == 0) return 0x00;
  const int sign_bit = format == Format::e2m1 ? 3 : info(format).bits - 1;
  return magnitude | 1u << sign_bit;
}

/// What overflow and infinity become where they do not saturate: infinity, or NaN in formats
/// without one.
inline std::uint32_t beyond_range(Format format) {
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
      return 0x7F;
    case Format::e5m2:
      return 0x7C;
    case Format::e4m3fnuz:
    case Format::e5m2fnuz:
      return 0x80;
    case Format::e2m1:
      return 0x7;
    case Format::bf16:
      return 0x7F80;
    case Format::f16:
      return 0x7C00;
    default:
      throw std::logic_error("beyond_range");
  }
}

inline std::uint32_t expected_overflow(Format format, EncodePolicy policy, bool negative) {
  const auto max_code = static_cast<std::uint32_t>(representable(format).values.size()) - 1;
  if (is_saturating(policy)) return signed_code(format, policy, max_code, negative);
  if (is_fnuz(format)) return 0x80;
  return signed_code(format, policy, beyond_range(format), negative);
}

inline std::uint32_t expected_infinity(Format format, EncodePolicy policy, bool negative) {
  if (policy != EncodePolicy::ml_dtypes_saturate) {
    return expected_overflow(format, policy, negative);
  }
  return expected_overflow(format, EncodePolicy::ml_dtypes_nosat, negative);
}

inline std::uint32_t expected_nan(Format format, EncodePolicy policy, bool negative) {
  if (is_fnuz(format)) return 0x80;
  if (format == Format::e2m1) {
    if (is_ml_dtypes(policy)) return negative ? 0x0 : 0x8;
    return 0x7;
  }
  if (format == Format::ue4m3) return 0x7F;
  const bool keeps_sign = !is_cuda(policy);
  std::uint32_t code = 0;
  switch (format) {
    case Format::e4m3:
      code = 0x7F;
      break;
    case Format::e5m2:
      code = is_cuda(policy) || policy == EncodePolicy::torch ? 0x7F : 0x7E;
      break;
    case Format::bf16:
      code = is_cuda(policy) ? 0x7FFF : 0x7FC0;
      break;
    case Format::f16:
      code = is_cuda(policy) ? 0x7FFF : 0x7E00;
      break;
    default:
      throw std::logic_error("expected_nan");
  }
  return keeps_sign && negative ? code | 1u << (info(format).bits - 1) : code;
}

inline constexpr Format kEncodedFormats[] = {Format::e4m3,     Format::e4m3fnuz, Format::e5m2,
                                             Format::e5m2fnuz, Format::e2m1,     Format::ue4m3,
                                             Format::bf16,     Format::f16};

/// The pairs that the table above EncodePolicy names, spelled again.
inline std::vector<EncodePolicy> known_policies(Format format) {
  using enum EncodePolicy;
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
    case Format::e5m2:
      return {ocp_saturate,       ocp_nosat,       cuda_satfinite, cuda_nosat,
              ml_dtypes_saturate, ml_dtypes_nosat, torch};
    case Format::e4m3fnuz:
    case Format::e5m2fnuz:
      return {ml_dtypes_saturate, ml_dtypes_nosat, torch};
    case Format::e2m1:
      return {ocp_saturate, cuda_satfinite, ml_dtypes_saturate, ml_dtypes_nosat};
    case Format::bf16:
    case Format::f16:
      return {cuda_satfinite, cuda_nosat, ml_dtypes_nosat, eigen};
    default:
      return {};
  }
}

inline const char* policy_name(EncodePolicy policy) {
  static constexpr const char* kNames[] = {
      "ocp_saturate",       "ocp_nosat",       "cuda_satfinite", "cuda_nosat",
      "ml_dtypes_saturate", "ml_dtypes_nosat", "torch",          "eigen"};
  return kNames[static_cast<std::size_t>(policy)];
}

inline const char* rounding_name(E8M0Rounding rounding) {
  static constexpr const char* kNames[] = {"toward_zero", "toward_positive", "nearest_even"};
  return kNames[static_cast<std::size_t>(rounding)];
}

/// The pairs that `encode_e8m0` knows, spelled again.
struct E8M0Case {
  EncodePolicy policy;
  E8M0Rounding rounding;
};
inline constexpr E8M0Case kE8M0Cases[] = {
    {EncodePolicy::cuda_satfinite, E8M0Rounding::toward_zero},
    {EncodePolicy::cuda_nosat, E8M0Rounding::toward_zero},
    {EncodePolicy::cuda_satfinite, E8M0Rounding::toward_positive},
    {EncodePolicy::cuda_nosat, E8M0Rounding::toward_positive},
    {EncodePolicy::ml_dtypes_saturate, E8M0Rounding::nearest_even},
    {EncodePolicy::ml_dtypes_nosat, E8M0Rounding::nearest_even},
    {EncodePolicy::torch, E8M0Rounding::nearest_even},
};

/// The positive f32 pattern from which on the code is at least `code`, 1 <= code <= 255 (255 =
/// overflow): by comparing with powers of two.
inline std::uint32_t first_e8m0_pattern(std::uint32_t code, E8M0Rounding rounding) {
  const double power = std::ldexp(1.0, static_cast<int>(code) - 127);
  // The numbers below go to a lower code. Below 2^-126 the nearest encoders see zero for code 0.
  const double below = code == 1 ? 0.0 : power / 2;
  switch (rounding) {
    case E8M0Rounding::toward_zero:
      return first_pattern_above_middle(power, power, true);
    case E8M0Rounding::toward_positive:
      return first_pattern_above_middle(power / 2, power / 2, false);
    case E8M0Rounding::nearest_even:
      return first_pattern_above_middle(below, power, code > 1);
  }
  throw std::logic_error("first_e8m0_pattern");
}

}  // namespace moeref::test
