// Codes to numbers, sixteen at a time; compiled once per instruction set like kernels_xsimd.cpp.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "simd/decode.hpp"
#include "simd/lanes16.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

// The values of E2M1 and E4M3 codes are bf16 numbers: a low and a high byte.

/// E2M1 by code: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives.
constexpr std::uint8_t kE2m1Low[16] = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0,
                                       0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0};
constexpr std::uint8_t kE2m1High[16] = {0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,
                                        0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0};
/// E4M3's subnormals: k 2^-9, k = 0 .. 7.
constexpr std::uint8_t kE4m3Low[16] = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60};
constexpr std::uint8_t kE4m3High[16] = {0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C};

Halves e2m1_values(const std::byte* from) {
  const Bytes16 codes = load_16_nibbles(from);
  return joined(look_up(kE2m1Low, codes), look_up(kE2m1High, codes));
}

/// NaN: 0x7FC0 without a sign.
Halves e4m3_values(const std::byte* from) {
  const Bytes16 codes = load_16_bytes(from);
  const Bytes16 magnitude = and_bytes(codes, spread_byte(0x7F));
  // A normal number's four exponent bits begin at bit 3 of the code, at bit 7 of a bf16; the biases
  // differ by 120, which is 0x3C in the high byte.
  Bytes16 low = low_nibbles_up(magnitude);
  Bytes16 high = add_bytes(high_nibbles(magnitude), spread_byte(0x3C));
  const Bytes16 subnormal = below_bytes(magnitude, spread_byte(8));
  low = choose(subnormal, look_up(kE4m3Low, and_bytes(magnitude, spread_byte(7))), low);
  high = choose(subnormal, look_up(kE4m3High, and_bytes(magnitude, spread_byte(7))), high);
  high = or_bytes(high, and_bytes(codes, spread_byte(0x80)));
  const Bytes16 nan = equal_bytes(magnitude, spread_byte(0x7F));
  return joined(choose(nan, spread_byte(0xC0), low), choose(nan, spread_byte(0x7F), high));
}

template <CodeType kType>
constexpr std::size_t kUnitBytes = kType == CodeType::e2m1   ? 8
                                   : kType == CodeType::e4m3 ? 16
                                                             : 32;

template <CodeType kType>
Halves load_values(const std::byte* from) {
  if constexpr (kType == CodeType::e2m1) return e2m1_values(from);
  if constexpr (kType == CodeType::e4m3) return e4m3_values(from);
  return load_16_halves(from);
}

/// `kPlain`: the factors are finite and no value is -0 that would be taken for +0, so that the only
/// NaNs are those of codes, which have the right bits.
template <CodeType kType, bool kPlain, bool kStreams>
void decode_run(const std::byte* codes, std::size_t count, std::size_t block, const float* factors,
                bool clears_minus_zero, float* out) {
  const F32 nan = as_float(U32(0x7FC0'0000u));
  const F32 zero(clears_minus_zero ? 0.0f : -0.0f);
  std::size_t left = block;
  for (std::size_t i = 0; i < count; i += kDecodeUnit) {
    const F32 factor(*factors);
    const Halves halves = load_values<kType>(codes);
    for (std::size_t part = 0; part < kWordBatches; ++part) {
      const U32 words = words_of(halves, part);
      F32 value = kType == CodeType::f16 ? f16_values(words) : as_float(words << 16);
      if (!kPlain) value = value + zero;
      F32 product = value * factor;
      if (!kPlain) product = xsimd::select(product == product, product, nan);
      store_floats<kStreams>(product, out + part * kWordLanes);
    }
    codes += kUnitBytes<kType>;
    out += kDecodeUnit;
    left -= kDecodeUnit;
    if (left == 0) {
      left = block;
      ++factors;
    }
  }
}

template <CodeType kType, bool kPlain>
void decode_typed(const std::byte* codes, std::size_t count, std::size_t block,
                  const float* factors, bool clears_minus_zero, bool streams, float* out) {
  if (streams && may_stream(out)) {
    decode_run<kType, kPlain, true>(codes, count, block, factors, clears_minus_zero, out);
    end_stream();
  } else {
    decode_run<kType, kPlain, false>(codes, count, block, factors, clears_minus_zero, out);
  }
}

bool all_finite(const float* factors, std::size_t count) {
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i)
    finite = finite && std::fabs(factors[i]) <= 0x1.fffffep127f;
  return finite;
}

void decode(CodeType type, const std::byte* codes, std::size_t count, std::size_t block,
            const float* factors, bool clears_minus_zero, bool streams, float* out) {
  const bool plain = !clears_minus_zero && all_finite(factors, (count + block - 1) / block);
  const auto run = [&](auto decode) {
    decode(codes, count, block, factors, clears_minus_zero, streams, out);
  };
  switch (type) {
    case CodeType::e2m1:
      return run(plain ? decode_typed<CodeType::e2m1, true> : decode_typed<CodeType::e2m1, false>);
    case CodeType::e4m3:
      return run(plain ? decode_typed<CodeType::e4m3, true> : decode_typed<CodeType::e4m3, false>);
    case CodeType::bf16:
      return run(decode_typed<CodeType::bf16, false>);
    case CodeType::f16:
      return run(decode_typed<CodeType::f16, false>);
  }
}

}  // namespace

extern const DecodeKernels decode_kernels;
const DecodeKernels decode_kernels{decode};

}  // namespace moeref::simd::MOEREF_ISA
