#include "quant/element_rule.hpp"

#include <bit>
#include <cmath>

#include "quant/cast.hpp"
#include "quant/gpu/approx.hpp"

namespace moeref {
namespace {

float joined(ElementOp op, float x, float factor) {
  switch (op) {
    case ElementOp::multiply:
      return gpu::canonical(x * factor);
    case ElementOp::multiply_ftz:
      return gpu::mul_ftz(x, factor);
    case ElementOp::divide:
      return gpu::canonical(x / factor);
    case ElementOp::divide_full:
      return gpu::div_full(x, factor);
  }
  return x;
}

float rounded(Format format, float y) {
  if (format == Format::bf16) return cast<Format::bf16>(y);
  return format == Format::f16 ? cast<Format::f16>(y) : y;
}

float clamped(ElementClamp clamp, float y, float limit) {
  switch (clamp) {
    case ElementClamp::none:
      break;
    case ElementClamp::low_first:
      return gpu::min_num(gpu::max_num(y, -limit), limit);
    case ElementClamp::high_first:
      return gpu::max_num(gpu::min_num(y, limit), -limit);
    case ElementClamp::keep_nan:
      return y != y ? y : std::fmax(std::fmin(y, limit), -limit);
  }
  return y;
}

/// The number of midpoints between codes that |y| exceeds, or reaches; NaN none.
std::uint32_t midpoints_below(float magnitude, bool or_equal) {
  std::uint32_t code = 0;
  for (const float midpoint : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
    if (magnitude > midpoint || (or_equal && magnitude == midpoint)) ++code;
  }
  return code;
}

/// A NaN's bits rounded to one mantissa bit and rebased as if they were a number's.
std::uint32_t rounded_nan(float y) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(y) & ~kF32SignMask;
  return (bits + 0x001F'FFFFu + (bits >> 22 & 1u) - (126u << 23)) >> 22 & 0x7u;
}

bool has_sign(Fp4Sign sign, float y, std::uint32_t code) {
  switch (sign) {
    case Fp4Sign::bit:
      return std::signbit(y);
    case Fp4Sign::negative:
      return y < 0.0f;
    case Fp4Sign::nonzero:
      return y < 0.0f && code != 0;
    case Fp4Sign::not_positive:
      return !(y > 0.0f);
  }
  return false;
}

}  // namespace

float ElementCoder::scaled(float x, float factor) const {
  const float y = rounded(rule_.quotient, joined(rule_.op, x, factor));
  return clamped(rule_.clamp, rule_.adds_zero ? y + 0.0f : y, rule_.limit);
}

std::uint32_t ElementCoder::code(float y) const {
  const bool plain =
      rule_.sign == Fp4Sign::bit && rule_.ties == Fp4Ties::even && rule_.nan == Fp4Nan::encoder;
  if (rule_.codes != Format::e2m1 || plain) return (*encoder_)(y);
  const float magnitude = std::fabs(y);
  std::uint32_t code = 0;
  if (y != y && rule_.nan != Fp4Nan::encoder) {
    code = rule_.nan == Fp4Nan::bits ? rounded_nan(y) : rule_.nan == Fp4Nan::largest ? 7u : 0u;
  } else if (rule_.ties == Fp4Ties::even) {
    code = (*encoder_)(magnitude);
  } else {
    code = midpoints_below(magnitude, rule_.ties == Fp4Ties::away);
  }
  return has_sign(rule_.sign, y, code) ? code | 8u : code;
}

}  // namespace moeref
