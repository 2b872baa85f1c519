#include "quant/vector_rule.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/gpu/approx.hpp"

namespace moeref {
namespace {

/// Whether .ftz cannot show in a code: above, a subnormal number, which it takes for zero, could
/// have a code of its own; below, the factor itself is taken for zero.
bool is_same_without_ftz(float factor) {
  const float magnitude = std::fabs(factor);
  return magnitude == 0.0f || (magnitude >= gpu::kSmallestNormal && magnitude <= 0x1p100f);
}

}  // namespace

std::optional<VectorRule> VectorRule::of(const ElementRule& rule) {
  const bool rounds = rule.quotient != Format::f32;
  if ((rounds && rule.quotient != Format::bf16) || rule.ties == Fp4Ties::away) return std::nullopt;
  // With these, a y that .ftz takes for zero has another code than one near zero.
  const bool asks_for_zero =
      rule.adds_zero || rule.sign == Fp4Sign::negative || rule.sign == Fp4Sign::not_positive;
  if (rule.op == ElementOp::multiply_ftz && asks_for_zero) return std::nullopt;
  const MiniFloat format = mini_float(rule.codes);
  VectorRule result(rule);
  simd::EncodeRule& loops = result.loops_;
  loops.divides = rule.op == ElementOp::divide;
  loops.rounds_to_bf16 = rounds;
  loops.mantissa_bits = format.mantissa_bits;
  loops.min_normal = static_cast<std::uint32_t>(128 - format.bias) << 23;
  float largest = info(rule.codes).max_finite;
  if (rule.clamp != ElementClamp::none) largest = std::min(largest, rule.limit);
  loops.largest = std::bit_cast<std::uint32_t>(largest);
  loops.drops_sign_of_zero = format.specials == Specials::fnuz;
  if (rule.adds_zero) loops.addend = 0.0f;
  if (rule.codes == Format::e2m1) {
    loops.ties_toward_zero = rule.ties == Fp4Ties::toward_zero;
    if (rule.sign == Fp4Sign::negative) loops.addend = 0.0f;
    if (rule.sign == Fp4Sign::nonzero) loops.drops_sign_of_zero = true;
    if (rule.sign == Fp4Sign::not_positive) loops.sign_unless_positive = true;
  }
  return result;
}

std::optional<float> VectorRule::factor(float amax, float factor) const {
  if (!std::isfinite(amax) || !std::isfinite(factor)) return std::nullopt;
  const ElementOp op = coder_.rule().op;
  if (op == ElementOp::multiply_ftz && !is_same_without_ftz(factor)) return std::nullopt;
  if (op == ElementOp::divide && factor == 0.0f) return std::nullopt;
  if (op == ElementOp::divide_full &&
      !(std::fabs(factor) >= gpu::kSmallestNormal && std::fabs(factor) <= 0x1p126f)) {
    return std::nullopt;
  }
  const Format codes = coder_.rule().codes;
  if (!std::isfinite(decode(codes, coder_(amax, factor)))) return std::nullopt;
  return op == ElementOp::divide_full ? gpu::rcp_approx_ftz(factor) : factor;
}

}  // namespace moeref
