#include "quant/known_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd/kernels.hpp"

namespace moeref {
namespace {

/// The largest of 0 .. last at which `reached` does not hold, 0x7FFF if it holds nowhere, twice in
/// a word. It does not hold at 0, and does not end once it holds. `guess`: where to begin.
template <typename Reached>
std::uint32_t last_below(std::uint32_t last, std::uint32_t guess, const Reached& reached) {
  if (!reached(last)) return 0x7FFF'7FFFu;
  // Steps away from the guess that grow, until the place lies between two of them.
  std::uint32_t below = 0;
  std::uint32_t at = last;
  std::uint32_t step = 1;
  for (std::uint32_t probe = std::clamp(guess, 1u, last); at - below > 1; step *= 4) {
    if (reached(probe)) {
      at = probe;
      if (at - below <= step) break;
      probe = at - step;
    } else {
      below = probe;
      if (at - below <= step) break;
      probe = below + step;
    }
  }
  while (at - below > 1) {
    const std::uint32_t middle = (below + at) / 2;
    (reached(middle) ? at : below) = middle;
  }
  return below | below << 16;
}

simd::Fp4SignRule sign_rule(const ElementRule& rule) {
  switch (rule.sign) {
    case Fp4Sign::bit:
      if (rule.adds_zero) return simd::Fp4SignRule::negative;
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
std::optional<simd::Fp4Block> fp4_block(const ElementCoder& coder, Format numbers,
                                        std::uint32_t amax, float factor) {
  simd::Fp4Block block;
  const bool divides =
      coder.rule().op == ElementOp::divide || coder.rule().op == ElementOp::divide_full;
  if (!std::isfinite(factor) || std::signbit(factor) || (divides && factor == 0.0f)) {
    return std::nullopt;
  }
  const auto y = [&](std::uint32_t bits) { return coder.scaled(decode(numbers, bits), factor); };
  const auto magnitude = [&](std::uint32_t bits) { return coder.code(y(bits)) & 7u; };
  if (y(0) != 0.0f || magnitude(0) != 0 || y(amax) != y(amax)) return std::nullopt;
  block.below[0] = last_below(amax, 1, [&](std::uint32_t bits) { return y(bits) != 0.0f; });
  constexpr float kMidpoints[8] = {0.0f, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  for (std::uint32_t k = 1; k < 8; ++k) {
    const float near = divides ? kMidpoints[k] * factor : kMidpoints[k] / factor;
    const std::uint32_t guess = encode(numbers, near, EncodePolicy::eigen) & 0x7FFFu;
    block.below[k] =
        last_below(amax, guess, [&](std::uint32_t bits) { return magnitude(bits) >= k; });
  }
  return block;
}

constexpr std::size_t kAmaxCount = std::size_t{1} << 15;

}  // namespace

template <typename Scale>
bool KnownBlocks::look_up(const KnownRow& row) {
  row_factors_.resize(row.blocks);
  // In locals: a store of bytes could otherwise be one to the vectors themselves.
  const std::uint16_t* place_of = place_of_.data();
  const std::uint32_t* scale_of = scales_.data();
  const float* factor_of = factors_.data();
  const std::uint32_t* amax = row_amax_.data();
  float* factors = row_factors_.data();
  std::byte* scales = row.scales;
  const std::size_t blocks = row.blocks;
  bool known = true;
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::uint16_t place = place_of[amax[block]];
    known = known && place != 0;
    factors[block] = factor_of[place];
    const auto scale = static_cast<Scale>(scale_of[place]);
    std::memcpy(scales + block * sizeof(Scale), &scale, sizeof(Scale));
  }
  return known;
}

bool KnownBlocks::encode(const KnownRow& row) {
  if (place_of_.empty()) {
    place_of_.resize(kAmaxCount);
    scales_.resize(1);
    fp4_.resize(1);
    factors_.resize(1);
  }
  return coder_->rule().codes == Format::e2m1 ? encode_fp4(row) : encode_bytes(row);
}

bool KnownBlocks::encode_fp4(const KnownRow& row) {
  const simd::EncodeKernels& kernels = *simd::active_kernels()->encode;
  const simd::Fp4SignRule sign = sign_rule(coder_->rule());
  for (std::size_t done = 0; done < row.blocks;) {
    const std::byte* numbers = row.numbers + 2 * done * row.block;
    done += kernels.encode_fp4(numbers, row.blocks - done, row.block, place_of_.data(), fp4_.data(),
                               sign, row.codes + done * row.block / 2,
                               row.scales + done * row.scale_bytes, row.scale_bytes);
    if (done == row.blocks) break;
    std::uint32_t amax = 0;
    kernels.block_amax(row.type, row.numbers + 2 * done * row.block, 1, row.block, &amax);
    if (!learn(amax)) return false;
  }
  return true;
}

bool KnownBlocks::encode_bytes(const KnownRow& row) {
  const simd::EncodeKernels& kernels = *simd::active_kernels()->encode;
  row_amax_.resize(row.blocks);
  kernels.block_amax(row.type, row.numbers, row.blocks, row.block, row_amax_.data());
  const auto known = [&] {
    return row.scale_bytes == 1 ? look_up<std::uint8_t>(row) : look_up<std::uint32_t>(row);
  };
  if (!known()) {
    const bool learned = std::all_of(row_amax_.begin(), row_amax_.end(),
                                     [this](std::uint32_t amax) { return learn(amax); });
    if (!learned) return false;
    known();
  }
  kernels.encode_bytes(row.type, row.numbers, row.blocks * row.block, row.block,
                       row_factors_.data(), (*rule_)->loops(), row.codes);
  return true;
}

bool KnownBlocks::learn(std::uint32_t amax) {
  if (place_of_[amax] != 0) return true;
  const float value = decode(numbers_, amax);
  if (!std::isfinite(value)) return false;
  const BlockScale scale = (*scale_)(value);
  if (coder_->rule().codes == Format::e2m1) {
    auto block = fp4_block(*coder_, numbers_, amax, scale.factor);
    if (!block) return false;
    block->scale = scale.code;
    fp4_.push_back(*block);
  } else {
    const auto factor = *rule_ ? (*rule_)->factor(value, scale.factor) : std::nullopt;
    if (!factor) return false;
    factors_.push_back(*factor);
  }
  scales_.push_back(scale.code);
  place_of_[amax] = static_cast<std::uint16_t>(scales_.size() - 1);
  return true;
}

}  // namespace moeref
