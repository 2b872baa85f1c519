// The loops of dequantizers: every instruction set gives the values of the formats times the
// factors, bit for bit.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

struct Type {
  simd::CodeType code;
  Format format;
};

class EveryCodeType : public testing::TestWithParam<Type> {};

/// Every code, in an order without pattern; as bytes.
std::vector<std::byte> all_codes(Format format, std::size_t count, std::mt19937& random) {
  const int bits = info(format).bits;
  std::vector<std::byte> bytes(count * static_cast<std::size_t>(bits) / 8);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random());
  if (bits == 16) {
    for (std::uint32_t code = 0; code < 0x10000; ++code) {
      const auto half = static_cast<std::uint16_t>(code * 40503u);
      std::memcpy(bytes.data() + 2 * code, &half, 2);
    }
  } else {
    for (std::size_t i = 0; i < 256; ++i) bytes[i * 37 % 256] = static_cast<std::byte>(i);
  }
  return bytes;
}

std::uint32_t expected_bits(Format format, std::uint32_t code, float factor, bool clears) {
  float value = decode(format, code);
  if (clears && value == 0.0f) value = 0.0f;
  // In f64 the product is exact but for its range, where the rounding to f32 is the only one: no
  // format here has more than 11 bits.
  const auto product = static_cast<float>(static_cast<double>(value) * static_cast<double>(factor));
  return product == product ? std::bit_cast<std::uint32_t>(product) : 0x7FC0'0000u;
}

TEST_P(EveryCodeType, DecodesEveryCodeUnderEveryKindOfFactor) {
  const Format format = GetParam().format;
  constexpr std::size_t kCount = 0x10000;
  std::mt19937 random(12);
  const std::vector<std::byte> codes = all_codes(format, kCount, random);
  std::vector<float> factors{1.0f,
                             -0.0f,
                             0x1p-149f,
                             0x1p-127f,
                             3.3e-39f,
                             std::numeric_limits<float>::max(),
                             std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN(),
                             std::bit_cast<float>(0xFF81'2345u),
                             -3.7f,
                             0.0f};
  while (factors.size() < kCount / 16) {
    factors.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  }
  for (const std::size_t block : {16u, 32u, 112u, 128u, 65536u}) {
    const std::size_t count = kCount - 16 * (block / 32);  // the last block may be short
    for (const bool clears : {false, true}) {
      std::vector<std::uint32_t> expected(count);
      for (std::size_t i = 0; i < count; ++i) {
        expected[i] = expected_bits(
            format,
            read_code(codes.data(), format, NibbleOrder::low_first, static_cast<std::int64_t>(i)),
            factors[i / block], clears);
      }
      for (const bool streams : {false, true}) {
        // Outputs at every place of a line of 64 bytes that a float can have, ragged ends.
        for (const std::size_t shift : {0u, 1u, 4u, 8u, 15u}) {
          for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
            std::vector<float> out(count + shift + 32, 77.0f);
            simd::find_kernels(*isa)->decode->decode(GetParam().code, codes.data(), count, block,
                                                     factors.data(), clears, streams,
                                                     out.data() + shift);
            ASSERT_EQ(std::memcmp(out.data() + shift, expected.data(), 4 * count), 0)
                << *isa << ", block " << block << ", shift " << shift << ", streams " << streams;
            for (std::size_t i = 0; i < shift; ++i) ASSERT_EQ(out[i], 77.0f) << *isa;
            for (std::size_t i = count + shift; i < out.size(); ++i) ASSERT_EQ(out[i], 77.0f);
          }
        }
      }
    }
  }
}

TEST_P(EveryCodeType, ReadsCodesAtAnyAddressAndOfAnyCount) {
  const Format format = GetParam().format;
  std::mt19937 random(13);
  const std::vector<std::byte> codes = all_codes(format, 0x10000, random);
  const std::vector<float> factors(64, 0.37f);
  for (std::size_t offset = 0; offset < 4; ++offset) {
    for (std::size_t count = 0; count <= 1024; count += simd::kDecodeUnit) {
      const std::size_t bytes = count * static_cast<std::size_t>(info(format).bits) / 8;
      // Of exactly the size that is read, so that a checker sees a read beyond it.
      const std::vector<std::byte> exact(
          codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(offset + bytes));
      for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
        std::vector<float> out(count);
        simd::find_kernels(*isa)->decode->decode(GetParam().code, exact.data() + offset, count, 16,
                                                 factors.data(), false, false, out.data());
        for (std::size_t i = 0; i < count; ++i) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]),
                    expected_bits(format,
                                  read_code(exact.data() + offset, format, NibbleOrder::low_first,
                                            static_cast<std::int64_t>(i)),
                                  0.37f, false))
              << *isa << ", offset " << offset << ", count " << count;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodeType,
                         testing::Values(Type{simd::CodeType::e2m1, Format::e2m1},
                                         Type{simd::CodeType::e4m3, Format::e4m3},
                                         Type{simd::CodeType::bf16, Format::bf16},
                                         Type{simd::CodeType::f16, Format::f16}),
                         [](const auto& type) { return std::string(name(type.param.format)); });

}  // namespace
}  // namespace moeref
