// The loops of quantizers: every instruction set gives the bytes of the scalar one, and the scalar
// one the code of the encoder.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/element_rule.hpp"
#include "quant/formats.hpp"
#include "quant/vector_rule.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr std::byte kGuard{0xA5};
constexpr std::size_t kGuardBytes = 64;
/// Offsets of the input: aligned, and at odd addresses.
constexpr std::size_t kOffsets[] = {0, 1, 2, 14};

std::size_t width(simd::NumberType type) { return type == simd::NumberType::f32 ? 4 : 2; }
Format format_of(simd::NumberType type) {
  if (type == simd::NumberType::bf16) return Format::bf16;
  return type == simd::NumberType::f16 ? Format::f16 : Format::f32;
}

/// Numbers as bits. Of 16 bits: every finite one. Of 32: both signs of random ones in every binade,
/// those around the ends of the formats and their midpoints.
std::vector<std::uint32_t> finite_numbers(simd::NumberType type) {
  std::vector<std::uint32_t> numbers;
  if (type != simd::NumberType::f32) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      if (std::isfinite(decode(format_of(type), bits))) numbers.push_back(bits);
    }
  } else {
    std::mt19937 random(31);
    for (std::uint32_t binade = 0; binade < 0xFF; ++binade) {
      for (const std::uint32_t mantissa : {0u, 1u, 0x7F'FFFFu, 0x40'0000u, 0x3F'FFFFu, 0x10'0000u,
                                           0x0F'FFFFu, 0x08'0000u, 0x08'0001u, 0x07'FFFFu}) {
        numbers.push_back(binade << 23 | mantissa);
        numbers.push_back(0x8000'0000u | binade << 23 | mantissa);
      }
      for (int i = 0; i < 100; ++i) {
        const auto bits = static_cast<std::uint32_t>(random());
        numbers.push_back((bits & 0x807F'FFFFu) | binade << 23);
      }
    }
  }
  while (numbers.size() % simd::kEncodeUnit != 0) numbers.push_back(0);
  return numbers;
}

/// Numbers as they lie in memory from `offset` on.
std::vector<std::byte> in_memory(simd::NumberType type, const std::vector<std::uint32_t>& numbers,
                                 std::size_t offset) {
  std::vector<std::byte> bytes(offset + numbers.size() * width(type));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::memcpy(bytes.data() + offset + i * width(type), &numbers[i], width(type));
  }
  return bytes;
}

/// Element rules that the vector loops know, one for each of their branches.
std::vector<ElementRule> rules() {
  std::vector<ElementRule> rules;
  for (const Format codes : {Format::e4m3, Format::e5m2, Format::e4m3fnuz, Format::e2m1}) {
    const EncodePolicy policy =
        codes == Format::e4m3fnuz ? EncodePolicy::torch : EncodePolicy::cuda_satfinite;
    for (const ElementOp op : {ElementOp::multiply, ElementOp::multiply_ftz, ElementOp::divide,
                               ElementOp::divide_full}) {
      for (const Format quotient : {Format::f32, Format::bf16}) {
        for (const bool adds_zero : {false, true}) {
          if (adds_zero && op == ElementOp::multiply_ftz) continue;
          rules.push_back({.op = op,
                           .quotient = quotient,
                           .adds_zero = adds_zero,
                           .codes = codes,
                           .policy = policy});
        }
      }
    }
  }
  for (const ElementClamp clamp :
       {ElementClamp::low_first, ElementClamp::high_first, ElementClamp::keep_nan}) {
    for (const float limit : {224.0f, 240.0f, 1000.0f}) {
      rules.push_back({.clamp = clamp,
                       .limit = limit,
                       .codes = Format::e4m3fnuz,
                       .policy = EncodePolicy::torch});
    }
  }
  for (const Fp4Sign sign :
       {Fp4Sign::bit, Fp4Sign::negative, Fp4Sign::nonzero, Fp4Sign::not_positive}) {
    for (const Fp4Ties ties : {Fp4Ties::even, Fp4Ties::toward_zero}) {
      rules.push_back({.codes = Format::e2m1, .sign = sign, .ties = ties});
    }
  }
  return rules;
}

TEST(VectorRule, LeavesWhatTheLoopsCannotSay) {
  for (const ElementRule& rule :
       {ElementRule{.quotient = Format::f16},
        ElementRule{.codes = Format::e2m1, .ties = Fp4Ties::away},
        ElementRule{
            .op = ElementOp::multiply_ftz, .codes = Format::e2m1, .sign = Fp4Sign::negative},
        ElementRule{
            .op = ElementOp::multiply_ftz, .codes = Format::e2m1, .sign = Fp4Sign::not_positive}}) {
    EXPECT_FALSE(VectorRule::of(rule));
  }
  const auto torch = VectorRule::of({.codes = Format::e4m3fnuz, .policy = EncodePolicy::torch});
  ASSERT_TRUE(torch);
  EXPECT_TRUE(torch->factor(240.0f, 1.0f));
  EXPECT_FALSE(torch->factor(300.0f, 1.0f)) << "NaN, whose code 0x80 has no magnitude";
  const auto ftz = VectorRule::of({.op = ElementOp::multiply_ftz});
  ASSERT_TRUE(ftz);
  EXPECT_TRUE(ftz->factor(1.0f, 0x1p-126f));
  EXPECT_FALSE(ftz->factor(1.0f, 0x1p-127f)) << "the factor is taken for zero";
}

class EveryNumberType : public testing::TestWithParam<simd::NumberType> {};

TEST_P(EveryNumberType, EncodesAsTheCoderDoes) {
  const simd::NumberType type = GetParam();
  const std::vector<std::uint32_t> numbers = finite_numbers(type);
  const simd::EncodeKernels& scalar = *simd::find_kernels("scalar")->encode;
  for (const ElementRule& rule : rules()) {
    const auto vector = VectorRule::of(rule);
    ASSERT_TRUE(vector);
    const ElementCoder coder(rule);
    const MiniFloat format = mini_float(rule.codes);
    for (const float factor : {1.0f, 0.0078125f, 3.7e-5f, 1e-20f, 37.3f, 1e-41f, 4e30f}) {
      // Blocks of 16 with one factor, those of which the rule says that the loops may have them.
      const std::vector<std::byte> bytes = in_memory(type, numbers, 0);
      for (std::size_t begin = 0; begin < numbers.size(); begin += simd::kEncodeUnit) {
        float amax = 0.0f;
        for (std::size_t i = 0; i < simd::kEncodeUnit; ++i) {
          amax = std::max(amax, std::fabs(decode(format_of(type), numbers[begin + i])));
        }
        const auto loop_factor = vector->factor(amax, factor);
        if (!loop_factor) continue;
        std::array<std::uint8_t, simd::kEncodeUnit> codes{};
        scalar.encode_bytes(type, bytes.data() + begin * width(type), simd::kEncodeUnit,
                            simd::kEncodeUnit, &*loop_factor, vector->loops(), codes.data());
        for (std::size_t i = 0; i < simd::kEncodeUnit; ++i) {
          const std::uint32_t expected = coder(decode(format_of(type), numbers[begin + i]), factor);
          // FP4's sign is bit 3 of its code, and bit 7 of a byte of the loops.
          const std::uint32_t sign = codes[i] & 0x80u;
          const std::uint32_t made = (codes[i] & 0x7Fu) | (sign != 0 ? format.sign_mask() : 0);
          ASSERT_EQ(made, expected) << fmt::format(
              "{} number {:x}, factor {}, op {}, sign {}", name(rule.codes), numbers[begin + i],
              factor, static_cast<int>(rule.op), static_cast<int>(rule.sign));
        }
      }
    }
  }
}

TEST_P(EveryNumberType, HasTheSameCodesOnEveryInstructionSet) {
  const simd::NumberType type = GetParam();
  std::vector<std::uint32_t> numbers = finite_numbers(type);
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937(7));
  const simd::EncodeKernels& scalar = *simd::find_kernels("scalar")->encode;
  std::mt19937 random(8);
  for (const std::size_t block : {16u, 32u, 48u, 128u}) {
    const std::size_t count = numbers.size();  // the last block may be short
    std::vector<float> factors((count + block - 1) / block);
    for (float& factor : factors) {
      factor = std::ldexp(1.0f + static_cast<float>(random() % 1024) / 1024.0f,
                          static_cast<int>(random() % 200) - 120);
    }
    for (const ElementRule& rule : rules()) {
      const simd::EncodeRule loops = VectorRule::of(rule)->loops();
      const bool nibbles = rule.codes == Format::e2m1;
      const std::size_t size = nibbles ? count / 2 : count;
      for (const std::size_t offset : kOffsets) {
        const std::vector<std::byte> bytes = in_memory(type, numbers, offset);
        const auto encode = [&](const simd::EncodeKernels& kernels) {
          std::vector<std::uint8_t> codes(offset + size + kGuardBytes,
                                          std::to_integer<std::uint8_t>(kGuard));
          (nibbles ? kernels.encode_nibbles : kernels.encode_bytes)(type, bytes.data() + offset,
                                                                    count, block, factors.data(),
                                                                    loops, codes.data() + offset);
          return codes;
        };
        const std::vector<std::uint8_t> expected = encode(scalar);
        for (std::size_t i = offset + size; i < expected.size(); ++i) {
          ASSERT_EQ(std::byte{expected[i]}, kGuard);
        }
        for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
          ASSERT_EQ(encode(*simd::find_kernels(*isa)->encode), expected)
              << *isa << ", block " << block << ", offset " << offset << ", " << name(rule.codes);
        }
      }
    }
  }
}

TEST_P(EveryNumberType, FindsTheLargestMagnitudeOfEveryBlock) {
  const simd::NumberType type = GetParam();
  std::vector<std::uint32_t> numbers = finite_numbers(type);
  // Infinities and NaN of every kind are magnitudes too.
  const std::uint32_t infinity =
      encode(format_of(type), std::numeric_limits<float>::infinity(), EncodePolicy::eigen);
  const std::uint32_t sign = type == simd::NumberType::f32 ? 0x8000'0000u : 0x8000u;
  for (std::uint32_t i = 0; i < 64; ++i) {
    numbers.push_back(infinity + i);
    numbers.push_back(sign | (infinity + i));
  }
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937(9));
  for (const std::size_t block : {16u, 32u, 48u, 128u, 4096u}) {
    const std::size_t blocks = numbers.size() / block;
    std::vector<std::uint32_t> expected(blocks);
    for (std::size_t i = 0; i < blocks * block; ++i) {
      expected[i / block] = std::max(expected[i / block], numbers[i] & ~sign);
    }
    for (const std::size_t offset : kOffsets) {
      const std::vector<std::byte> bytes = in_memory(type, numbers, offset);
      for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
        std::vector<std::uint32_t> amax(blocks);
        simd::find_kernels(*isa)->encode->block_amax(type, bytes.data() + offset, blocks, block,
                                                     amax.data());
        ASSERT_EQ(amax, expected) << *isa << ", block " << block << ", offset " << offset;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryNumberType,
                         testing::Values(simd::NumberType::bf16, simd::NumberType::f16,
                                         simd::NumberType::f32),
                         [](const auto& type) { return std::string(name(format_of(type.param))); });

TEST(EncodeFp4, HasTheSameBytesOnEveryInstructionSetAndStopsWhereABlockIsNotKnown) {
  std::mt19937 random(10);
  const auto next = [&random] { return static_cast<std::uint32_t>(random()); };
  // Places 1 .. 64 with thresholds that grow, among them all and none.
  std::vector<simd::Fp4Block> table(65);
  for (simd::Fp4Block& known : table) {
    std::array<std::uint32_t, 8> below{};
    for (std::uint32_t& bits : below) bits = next() % 0x8000;
    if (next() % 4 == 0) below[7] = 0x7FFF;
    if (next() % 4 == 0) below[0] = 0;
    std::sort(below.begin(), below.end());
    for (std::size_t k = 0; k < 8; ++k) known.below[k] = below[k] | below[k] << 16;
    known.scale = next();
  }
  std::vector<std::uint16_t> place_of(std::size_t{1} << 15);
  for (std::uint16_t& place : place_of) place = static_cast<std::uint16_t>(1 + next() % 64);

  std::vector<std::uint32_t> numbers(12288);
  for (std::uint32_t& bits : numbers) {
    bits = next() % 0x10000;
    // Around a threshold, so that equality is met.
    if (next() % 2 == 0) {
      const std::uint32_t below = table[1 + next() % 64].below[next() % 8] & 0x7FFFu;
      bits = std::min(0x7FFFu, below + (next() & 1u)) | (next() & 1u) << 15;
    }
  }
  constexpr simd::Fp4SignRule kSigns[] = {simd::Fp4SignRule::bit, simd::Fp4SignRule::negative,
                                          simd::Fp4SignRule::nonzero,
                                          simd::Fp4SignRule::not_positive};
  for (const std::size_t block : {16u, 32u, 48u, 64u, 128u}) {
    for (const bool stops : {false, true}) {
      const std::size_t blocks = numbers.size() / block;
      std::vector<std::uint16_t> places = place_of;
      if (stops) {
        std::uint32_t amax = 0;
        const std::size_t last = blocks * 2 / 3 * block;
        for (std::size_t i = last; i < last + block; ++i) {
          amax = std::max(amax, numbers[i] & 0x7FFFu);
        }
        places[amax] = 0;
      }
      for (const simd::Fp4SignRule sign : kSigns) {
        for (const std::size_t scale_bytes : {1u, 4u}) {
          for (const std::size_t offset : kOffsets) {
            const std::vector<std::byte> bytes = in_memory(simd::NumberType::bf16, numbers, offset);
            struct Result {
              std::size_t done = 0;
              std::vector<std::uint8_t> codes;
              std::vector<std::byte> scales;
            };
            const auto encode = [&](const char* isa) {
              const std::size_t size = blocks * block / 2;
              Result result{0, std::vector<std::uint8_t>(offset + size + kGuardBytes, 0xA5),
                            std::vector<std::byte>(blocks * scale_bytes + kGuardBytes, kGuard)};
              result.done = simd::find_kernels(isa)->encode->encode_fp4(
                  bytes.data() + offset, blocks, block, places.data(), table.data(), sign,
                  result.codes.data() + offset, result.scales.data(), scale_bytes);
              return result;
            };
            const Result expected = encode("scalar");
            ASSERT_EQ(expected.done == blocks, !stops);
            for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
              const Result made = encode(*isa);
              ASSERT_EQ(made.done, expected.done) << *isa;
              ASSERT_TRUE(std::equal(
                  made.codes.begin(),
                  made.codes.begin() + static_cast<std::ptrdiff_t>(offset + made.done * block / 2),
                  expected.codes.begin()))
                  << *isa << ", block " << block << ", sign rule " << static_cast<int>(sign);
              ASSERT_TRUE(std::equal(
                  made.scales.begin(),
                  made.scales.begin() + static_cast<std::ptrdiff_t>(made.done * scale_bytes),
                  expected.scales.begin()))
                  << *isa << ", block " << block;
              for (std::size_t i = made.codes.size() - kGuardBytes; i < made.codes.size(); ++i) {
                ASSERT_EQ(made.codes[i], 0xA5) << *isa;
              }
              for (std::size_t i = made.scales.size() - kGuardBytes; i < made.scales.size(); ++i) {
                ASSERT_EQ(made.scales[i], kGuard) << *isa;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moeref
