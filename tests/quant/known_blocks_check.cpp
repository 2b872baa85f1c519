#include "tests/quant/known_blocks_check.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include "quant/cast.hpp"
#include "quant/known_blocks.hpp"
#include "quant/vector_rule.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::size_t kBlock = 32;

/// A block whose largest magnitude is `amax` (bits): zeros, numbers of all magnitudes, and those
/// next to where the codes of FP4 change.
std::vector<std::uint16_t> block_under(std::uint32_t amax, Format input, const ElementCoder& coder,
                                       float factor, std::mt19937& random) {
  constexpr float kMidpoints[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const bool divides =
      coder.rule().op == ElementOp::divide || coder.rule().op == ElementOp::divide_full;
  std::vector<std::uint16_t> block{static_cast<std::uint16_t>(amax), 0, 0x8000};
  const auto add = [&](std::uint32_t magnitude) {
    const auto sign = static_cast<std::uint32_t>(random() & 1u) << 15;
    block.push_back(static_cast<std::uint16_t>(std::min(magnitude, amax) | sign));
  };
  for (const float midpoint : kMidpoints) {
    const float near = divides ? midpoint * factor : midpoint / factor;
    const std::uint32_t bits = encode(input, near, EncodePolicy::eigen) & 0x7FFFu;
    for (const std::uint32_t step : {0u, 1u, 2u}) add(bits + step - std::min(bits, 1u));
  }
  add(1);
  while (block.size() < kBlock) add(static_cast<std::uint32_t>(random() % (amax + 1)));
  return block;
}

}  // namespace

void check_known_blocks(const QuantizerCase& chosen, std::uint32_t stride) {
  const QuantizePlan plan = chosen.plan();
  const ElementCoder coder(plan.element);
  const std::optional<VectorRule> rule = VectorRule::of(plan.element);
  const bool fp4 = plan.element.codes == Format::e2m1;
  const std::size_t scale_bytes = static_cast<std::size_t>(info(plan.form.scales).bits) / 8;
  const char* const fastest = simd::active_kernels()->isa;
  for (const float global : {1.0f, 0.0073f, 2688.0f}) {
    const ScaleOfAmax scale = plan.scale({global, 0.0f});
    std::mt19937 random(14);
    for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
      ASSERT_TRUE(simd::use_kernels(*isa));
      KnownBlocks known(coder, rule, scale, chosen.input);
      int known_count = 0;
      for (auto amax = static_cast<std::uint32_t>(random() % stride); amax < 0x8000;
           amax += stride) {
        const float value = decode(chosen.input, amax);
        if (!std::isfinite(value)) continue;
        const BlockScale expected = scale(value);
        const std::vector<std::uint16_t> block =
            block_under(amax, chosen.input, coder, expected.factor, random);
        std::vector<std::uint8_t> codes(kBlock);
        std::uint32_t stored = 0;
        const KnownRow row{
            .type = chosen.input == Format::bf16 ? simd::NumberType::bf16 : simd::NumberType::f16,
            .numbers = reinterpret_cast<const std::byte*>(block.data()),
            .blocks = 1,
            .block = kBlock,
            .codes = codes.data(),
            .scales = reinterpret_cast<std::byte*>(&stored),
            .scale_bytes = scale_bytes};
        if (!known.encode(row)) continue;
        ++known_count;
        ASSERT_EQ(stored, expected.code) << chosen.name() << ", amax " << amax;
        for (std::size_t i = 0; i < kBlock; ++i) {
          const std::uint32_t code =
              fp4 ? static_cast<std::uint32_t>(codes[i / 2]) >> (i % 2 * 4) & 0xFu : codes[i];
          ASSERT_EQ(code, coder(decode(chosen.input, block[i]), expected.factor))
              << fmt::format("{}, {}: number {:04x} under amax {:04x}, global scale {}",
                             chosen.name(), *isa, block[i], amax, global);
        }
      }
      EXPECT_GT(known_count, 0) << chosen.name();
    }
    if (plan.form.global == GlobalScaleOf::none) break;
  }
  simd::use_kernels(fastest);
}

std::vector<QuantizerCase> known_block_cases() {
  std::vector<QuantizerCase> cases;
  for (const QuantizerCase& chosen : offered_quantizer_cases()) {
    if (chosen.input == Format::f32 || chosen.input == Format::e4m3) continue;
    const QuantizePlan plan = chosen.plan();
    const int scale_bits = info(plan.form.scales).bits;
    const bool known = plan.form.block_rows == 1 && plan.scale && !plan.before && !plan.block &&
                       plan.form.global != GlobalScaleOf::row &&
                       (scale_bits == 8 || scale_bits == 32) &&
                       (plan.element.codes == Format::e2m1 || VectorRule::of(plan.element));
    if (known) cases.push_back(chosen);
  }
  return cases;
}

}  // namespace moeref
