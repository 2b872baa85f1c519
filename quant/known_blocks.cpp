#include "quant/known_blocks.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "simd/kernels.hpp"

namespace moeref {
namespace {

/// The largest of 0 .. last at which `reached` does not hold; 0x7FFF if it holds nowhere. It does
/// not hold at 0, and does not end once it holds.
template <typename Reached>
std::int16_t last_below(std::uint32_t last, const Reached& reached) {
  if (!reached(last)) return 0x7FFF;
  std::uint32_t below = 0;
  std::uint32_t at = last;
  while (at - below > 1) {
    const std::uint32_t middle = (below + at) / 2;
    (reached(middle) ? at : below) = middle;
  }
  return static_cast<std::int16_t>(below);
}

simd::Fp4SignRule sign_rule(Fp4Sign sign) {
  switch (sign) {
    case Fp4Sign::bit:
      break;
    case Fp4Sign::negative:
      return simd::Fp4SignRule::negative;
    case Fp4Sign::nonzero:
      return simd::Fp4SignRule::nonzero;
    case Fp4Sign::not_positive:
      return simd::Fp4SignRule::not_positive;
  }
  return simd::Fp4SignRule::bit;
}

/// What a block of bf16 or f16 numbers with this amax becomes, by searching for the numbers at
/// which the code changes: a code never falls while a magnitude grows. Not known where that does
/// not describe it: a factor that is negative, infinite or NaN, a division by 0.
simd::Fp4Block fp4_block(const ElementCoder& coder, Format numbers, std::uint32_t amax,
                         const BlockScale& scale) {
  simd::Fp4Block block;
  block.scale = scale.code;
  const float factor = scale.factor;
  const bool divides =
      coder.rule().op == ElementOp::divide || coder.rule().op == ElementOp::divide_full;
  if (!std::isfinite(factor) || std::signbit(factor) || (divides && factor == 0.0f)) return block;
  const auto y = [&](std::uint32_t bits) { return coder.scaled(decode(numbers, bits), factor); };
  const auto magnitude = [&](std::uint32_t bits) { return coder.code(y(bits)) & 7u; };
  if (y(0) != 0.0f || magnitude(0) != 0 || y(amax) != y(amax)) return block;
  block.below[0] = last_below(amax, [&](std::uint32_t bits) { return y(bits) != 0.0f; });
  for (std::uint32_t k = 1; k < 8; ++k) {
    block.below[k] = last_below(amax, [&](std::uint32_t bits) { return magnitude(bits) >= k; });
  }
  block.is_known = true;
  return block;
}

constexpr std::size_t kAmaxCount = std::size_t{1} << 15;

}  // namespace

bool KnownBlocks::encode(const ElementCoder& coder, const std::optional<VectorRule>& rule,
                         const KnownRow& row) {
  const simd::EncodeKernels& kernels = *simd::active_kernels()->encode;
  if (coder.rule().codes == Format::e2m1) {
    if (fp4_.empty()) return false;
    return kernels.encode_known_fp4(row.numbers, row.blocks, row.block, fp4_.data(),
                                    sign_rule(coder.rule().sign), row.codes, row.scales,
                                    row.scale_bytes) == row.blocks;
  }
  if (bytes_.empty() || !rule) return false;
  amax_.resize(row.blocks);
  factors_.resize(row.blocks);
  kernels.block_amax(row.type, row.numbers, row.blocks, row.block, amax_.data());
  if (!look_up(row)) return false;
  kernels.encode_bytes(row.type, row.numbers, row.blocks * row.block, row.block, factors_.data(),
                       rule->loops(), row.codes);
  return true;
}

bool KnownBlocks::look_up(const KnownRow& row) {
  bool known = true;
  for (std::size_t block = 0; block < row.blocks; ++block) {
    const ByteBlock& found = bytes_[amax_[block]];
    known = known && found.factor == found.factor;
    factors_[block] = found.factor;
    if (row.scale_bytes == 1) {
      row.scales[block] = static_cast<std::byte>(found.scale);
    } else {
      std::memcpy(row.scales + 4 * block, &found.scale, 4);
    }
  }
  return known;
}

void KnownBlocks::remember(const ElementCoder& coder, const std::optional<VectorRule>& rule,
                           Format numbers, std::uint32_t amax, const BlockScale& scale) {
  if (coder.rule().codes == Format::e2m1) {
    if (fp4_.empty()) fp4_.resize(kAmaxCount);
    if (!fp4_[amax].is_known) fp4_[amax] = fp4_block(coder, numbers, amax, scale);
    return;
  }
  const auto factor = rule ? rule->factor(decode(numbers, amax), scale.factor) : std::nullopt;
  if (!factor) return;
  if (bytes_.empty()) bytes_.assign(kAmaxCount, {std::numeric_limits<float>::quiet_NaN(), 0});
  bytes_[amax] = {*factor, scale.code};
}

}  // namespace moeref
