#include "io/scale_checks.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/error.hpp"

namespace moeref {
namespace {

float widen_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Exact: every f16 value is a small integer times a power of two.
float widen_f16(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<float>::infinity()
                         : std::numeric_limits<float>::quiet_NaN();
  }
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25));
}

}  // namespace

Format float_format(DType dtype) {
  return dtype == DType::bf16 ? Format::bf16 : dtype == DType::f16 ? Format::f16 : Format::f32;
}

float float_at(const TensorView& tensor, std::int64_t index) {
  switch (tensor.dtype) {
    case DType::bf16:
      return widen_bf16(tensor.at<std::uint16_t>(index));
    case DType::f16:
      return widen_f16(tensor.at<std::uint16_t>(index));
    default:
      return tensor.at<float>(index);
  }
}

void check_finite_scales(const std::string& subject, const TensorView& scales) {
  for (std::int64_t i = 0; i < scales.size(); ++i) {
    const float value = float_at(scales, i);
    if (std::isfinite(value)) continue;
    fail(subject,
         "scale {} of {} is {}, needs a finite number; the checkpoint is damaged, export it again",
         i, to_string(scales.shape), std::isnan(value) ? "NaN" : "infinite");
  }
}

void check_ue4m3_scales(const std::string& subject, std::span<const std::byte> codes) {
  constexpr std::byte kNan{0x7F};  // and everything above has the sign bit
  std::size_t bad = 0;             // counted without a branch: most layers have none of millions
  for (const std::byte code : codes) bad += code >= kNan ? 1u : 0u;
  if (bad == 0) return;
  const auto first =
      std::find_if(codes.begin(), codes.end(), [&](std::byte code) { return code >= kNan; });
  fail(subject,
       "block scale {} is 0x{:02X}, {} ({} such codes), needs E4M3 codes 0x00 to 0x7E; the "
       "checkpoint is "
       "damaged, export it again",
       first - codes.begin(), static_cast<unsigned>(*first),
       (*first & kNan) == kNan ? "a NaN" : "with the sign bit set", bad);
}

void check_e8m0_scales(const std::string& subject, std::span<const std::byte> codes) {
  if (codes.empty()) return;
  const void* found = std::memchr(codes.data(), 0xFF, codes.size());
  if (found == nullptr) return;
  fail(subject,
       "E8M0 scale {} is 0xFF, a NaN, needs 0x00 to 0xFE; the checkpoint is damaged, export it "
       "again",
       static_cast<const std::byte*>(found) - codes.data());
}

}  // namespace moeref
