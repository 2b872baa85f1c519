// The exact GEMM's inner loops; compiled once per instruction set like kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>

#include "simd/code_columns.hpp"
#include "simd/code_values.hpp"
#include "simd/gemm_loops.hpp"
#include "simd/lanes_f64.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

// A tile of the product: accumulators that fit the register file beside one row of the panel and
// one broadcast.
#if defined(__AVX512F__)
constexpr std::size_t kRowBlock = 8;
constexpr std::size_t kTileBatches = 2;
#elif defined(__AVX2__)
constexpr std::size_t kRowBlock = 6;
constexpr std::size_t kTileBatches = 2;
#elif defined(__x86_64__)
constexpr std::size_t kRowBlock = 4;
constexpr std::size_t kTileBatches = 2;
#else
constexpr std::size_t kRowBlock = 6;
constexpr std::size_t kTileBatches = 4;
#endif
constexpr std::size_t kTileColumns = kTileBatches * kLanes;
// Accumulators that hide the latency of a multiply-add.
constexpr std::size_t kHidden = 8;

template <std::size_t kRows>
void dot_tile(const double* a, const double* panel, std::size_t k, bool adds, double* sums) {
  constexpr std::size_t kWanted = kHidden / (kRows * kTileBatches);
  constexpr std::size_t kChains = kWanted == 0 ? 1 : kWanted;
  F64 sum[kChains][kRows][kTileBatches];
  for (auto& chain : sum) {
    for (auto& row : chain) {
      for (F64& batch : row) batch = F64(0.0);
    }
  }
  const auto step = [&](std::size_t i, F64(&chain)[kRows][kTileBatches]) {
    F64 weights[kTileBatches];
    for (std::size_t b = 0; b < kTileBatches; ++b) {
      weights[b] = F64::load_unaligned(panel + i * kPanelColumns + b * kLanes);
    }
    for (std::size_t row = 0; row < kRows; ++row) {
      const F64 factor(a[i * kRows + row]);
      for (std::size_t b = 0; b < kTileBatches; ++b) {
        chain[row][b] = multiply_add(factor, weights[b], chain[row][b]);
      }
    }
  };
  std::size_t i = 0;
  for (; i + kChains <= k; i += kChains) {
    for (std::size_t chain = 0; chain < kChains; ++chain) step(i + chain, sum[chain]);
  }
  for (; i < k; ++i) step(i, sum[0]);
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t b = 0; b < kTileBatches; ++b) {
      F64 total = sum[0][row][b];
      for (std::size_t chain = 1; chain < kChains; ++chain) total = total + sum[chain][row][b];
      double* out = sums + row * kPanelColumns + b * kLanes;
      if (adds) total = total + F64::load_unaligned(out);
      total.store_unaligned(out);
    }
  }
}

template <std::size_t kRows>
void dot_rows(const double* a, const double* panel, std::size_t k, bool adds, double* sums) {
  for (std::size_t column = 0; column < kPanelColumns; column += kTileColumns) {
    dot_tile<kRows>(a, panel + column, k, adds, sums + column);
  }
}

void dot(const double* a, std::size_t rows, const double* panel, std::size_t k, bool adds,
         double* sums) {
  switch (rows) {
    case 1:
      return dot_rows<1>(a, panel, k, adds, sums);
    case 2:
      return dot_rows<2>(a, panel, k, adds, sums);
    case 3:
      return dot_rows<3>(a, panel, k, adds, sums);
    case 4:
      return dot_rows<4>(a, panel, k, adds, sums);
    case 5:
      return dot_rows<5>(a, panel, k, adds, sums);
    case 6:
      return dot_rows<6>(a, panel, k, adds, sums);
    case 7:
      return dot_rows<7>(a, panel, k, adds, sums);
    default:
      return dot_rows<8>(a, panel, k, adds, sums);
  }
}

template <PanelCode kType>
constexpr int kCodesOfWord = static_cast<int>(codes_of_unit(kType)) / 4;

template <PanelCode kType, bool kScaled, int n>
inline void decode_codes(const CodeWords<kType>& words, const F64 (&factors)[2], double* out) {
  if constexpr (n < kCodesOfWord<kType>) {
    F64 wide[2];
    widen(value_of<kType, n>(words), wide);
    for (std::size_t half = 0; half < 2; ++half) {
      const F64 value = kScaled ? wide[half] * factors[half] : wide[half];
      value.store_unaligned(out + half * kLanes);
    }
    decode_codes<kType, kScaled, n + 1>(words, factors, out + kPanelColumns);
  }
}

template <PanelCode kType, bool kScaled>
void decode_typed(const PanelCodes& codes, std::size_t k, double* panel) {
  constexpr std::size_t kWordCodes = kCodesOfWord<kType>;
  constexpr std::size_t kUnitCodes = 4 * kWordCodes;
  const double* unit_factors = codes.factors;
  std::size_t unit_left = codes.factor_block - codes.factor_begin;
  for (std::size_t i = 0; i < k; i += kUnitCodes) {
    const std::size_t offset = i / kUnitCodes * kCodeUnit;
    const double* block_factors = unit_factors;
    std::size_t left = unit_left;
    for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
      U32 words[4];
      load_words<kCodeUnit>(codes.columns + column, offset, words);
      F64 factors[2] = {F64(1.0), F64(1.0)};
      block_factors = unit_factors;
      left = unit_left;
      for (std::size_t word = 0; word < 4; ++word) {
        const std::size_t first = i + word * kWordCodes;
        if (kScaled) {
          factors[0] = F64::load_unaligned(block_factors + column);
          factors[1] = F64::load_unaligned(block_factors + column + kLanes);
          left -= kWordCodes;
          if (left == 0) {
            left = codes.factor_block;
            block_factors += kPanelColumns;
          }
        }
        decode_codes<kType, kScaled, 0>(CodeWords<kType>(words[word]), factors,
                                        panel + first * kPanelColumns + column);
      }
    }
    unit_factors = block_factors;
    unit_left = left;
  }
}

void decode(const PanelCodes& codes, std::size_t k, double* panel) {
  const bool scaled = codes.factors != nullptr;
  switch (codes.type) {
    case PanelCode::e2m1:
      return scaled ? decode_typed<PanelCode::e2m1, true>(codes, k, panel)
                    : decode_typed<PanelCode::e2m1, false>(codes, k, panel);
    case PanelCode::e4m3:
      return scaled ? decode_typed<PanelCode::e4m3, true>(codes, k, panel)
                    : decode_typed<PanelCode::e4m3, false>(codes, k, panel);
    case PanelCode::e8m0:
      return decode_typed<PanelCode::e8m0, false>(codes, k, panel);
    case PanelCode::bf16:
      return scaled ? decode_typed<PanelCode::bf16, true>(codes, k, panel)
                    : decode_typed<PanelCode::bf16, false>(codes, k, panel);
    case PanelCode::f16:
      return scaled ? decode_typed<PanelCode::f16, true>(codes, k, panel)
                    : decode_typed<PanelCode::f16, false>(codes, k, panel);
  }
}

/// The smallest and the largest of unsigned lanes.
template <typename Code>
struct Lanes;
#if defined(__x86_64__)
// There is an instruction for the smallest 16-bit lane; the largest is what is missing to 0xFFFF.
inline std::uint32_t smallest_half(__m128i halves) {
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(halves))) & 0xFFFFu;
}
template <>
struct Lanes<std::uint8_t> {
  static __m128i spread(std::uint32_t value) { return _mm_set1_epi8(static_cast<char>(value)); }
  static __m128i less(__m128i a, __m128i b) { return _mm_sub_epi8(a, b); }
  static __m128i smaller(__m128i a, __m128i b) { return _mm_min_epu8(a, b); }
  static __m128i larger(__m128i a, __m128i b) { return _mm_max_epu8(a, b); }
  static std::uint32_t smallest(__m128i a) {
    return smallest_half(
        _mm_min_epu8(_mm_srli_epi16(a, 8), _mm_and_si128(a, _mm_set1_epi16(0xFF))));
  }
  static std::uint32_t largest(__m128i a) {
    return 0xFFu ^ smallest(_mm_xor_si128(a, _mm_set1_epi8(-1)));
  }
};
template <>
struct Lanes<std::uint16_t> {
  static __m128i spread(std::uint32_t value) { return _mm_set1_epi16(static_cast<short>(value)); }
  static __m128i less(__m128i a, __m128i b) { return _mm_sub_epi16(a, b); }
  static __m128i smaller(__m128i a, __m128i b) { return _mm_min_epu16(a, b); }
  static __m128i larger(__m128i a, __m128i b) { return _mm_max_epu16(a, b); }
  static std::uint32_t smallest(__m128i a) { return smallest_half(a); }
  static std::uint32_t largest(__m128i a) {
    return 0xFFFFu ^ smallest_half(_mm_xor_si128(a, _mm_set1_epi16(-1)));
  }
};
inline std::uint64_t any_bits(__m128i a) {
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(a) | _mm_extract_epi64(a, 1));
}
#else
template <>
struct Lanes<std::uint8_t> {
  static uint8x16_t spread(std::uint32_t value) {
    return vdupq_n_u8(static_cast<std::uint8_t>(value));
  }
  static uint8x16_t less(uint8x16_t a, uint8x16_t b) { return vsubq_u8(a, b); }
  static uint8x16_t smaller(uint8x16_t a, uint8x16_t b) { return vminq_u8(a, b); }
  static uint8x16_t larger(uint8x16_t a, uint8x16_t b) { return vmaxq_u8(a, b); }
  static std::uint32_t smallest(uint8x16_t a) { return vminvq_u8(a); }
  static std::uint32_t largest(uint8x16_t a) { return vmaxvq_u8(a); }
};
template <>
struct Lanes<std::uint16_t> {
  static uint8x16_t bytes(uint16x8_t a) { return vreinterpretq_u8_u16(a); }
  static uint16x8_t halves(uint8x16_t a) { return vreinterpretq_u16_u8(a); }
  static uint8x16_t spread(std::uint32_t value) {
    return bytes(vdupq_n_u16(static_cast<std::uint16_t>(value)));
  }
  static uint8x16_t less(uint8x16_t a, uint8x16_t b) {
    return bytes(vsubq_u16(halves(a), halves(b)));
  }
  static uint8x16_t smaller(uint8x16_t a, uint8x16_t b) {
    return bytes(vminq_u16(halves(a), halves(b)));
  }
  static uint8x16_t larger(uint8x16_t a, uint8x16_t b) {
    return bytes(vmaxq_u16(halves(a), halves(b)));
  }
  static std::uint32_t smallest(uint8x16_t a) { return vminvq_u16(halves(a)); }
  static std::uint32_t largest(uint8x16_t a) { return vmaxvq_u16(halves(a)); }
};
inline std::uint64_t any_bits(uint8x16_t a) {
  const uint64x2_t both = vreinterpretq_u64_u8(a);
  return vgetq_lane_u64(both, 0) | vgetq_lane_u64(both, 1);
}
#endif

template <typename Code>
Magnitudes magnitudes_of(std::uint32_t mask, bool skips_zero, const std::byte* codes,
                         std::size_t count) {
  using L = Lanes<Code>;
  constexpr std::size_t kBytes = sizeof(Bytes16);
  const std::size_t bytes = count * sizeof(Code);
  const std::uint32_t one = skips_zero ? 1 : 0;  // one less, so that zero is above everything
  const Bytes16 ones = L::spread(one);
  const Bytes16 masks = L::spread(mask);
  Bytes16 least = L::spread(~0u);
  Bytes16 most = L::spread(0);
  Bytes16 bits = L::spread(0);
  const auto take = [&](const std::byte* from) {
    const Bytes16 sizes = and_bytes(load_16_bytes(from), masks);
    least = L::smaller(least, L::less(sizes, ones));
    most = L::larger(most, sizes);
    bits = or_bytes(bits, sizes);
  };
  std::size_t at = 0;
  for (; at + kBytes <= bytes; at += kBytes) take(codes + at);
  if (at < bytes && bytes >= kBytes) take(codes + bytes - kBytes);  // some of them once more
  if (at < bytes && bytes < kBytes) {
    std::byte copies[kBytes];
    for (std::size_t i = 0; i < kBytes; i += sizeof(Code)) {
      __builtin_memcpy(copies + i, codes + i % bytes, sizeof(Code));
    }
    take(copies);
  }
  std::uint64_t any = any_bits(bits);
  for (std::size_t width = 32; width >= 8 * sizeof(Code); width /= 2) any |= any >> width;
  return {L::smallest(least) + one, L::largest(most), static_cast<Code>(any)};
}

Magnitudes magnitudes(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                      const std::byte* codes, std::size_t count) {
  return bytes == 1 ? magnitudes_of<std::uint8_t>(mask, skips_zero, codes, count)
                    : magnitudes_of<std::uint16_t>(mask, skips_zero, codes, count);
}

template <PanelCode kType>
double squares_of(const std::byte* codes, std::size_t count) {
  constexpr std::size_t kBytes = kCodeUnit / codes_of_unit(kType);
  F64 sums[2] = {F64(0.0), F64(0.0)};
  const auto add = [&](const std::byte* from) {
    F64 wide[2];
    const U32 words = kBytes == 1 ? load_bytes(from) : load_halves(from);
    widen(value_of<kType, 0>(CodeWords<kType>(words)), wide);
    for (std::size_t half = 0; half < 2; ++half) {
      sums[half] = multiply_add(wide[half], wide[half], sums[half]);
    }
  };
  std::size_t i = 0;
  for (; i + kWordLanes <= count; i += kWordLanes) add(codes + i * kBytes);
  if (i < count) {
    std::byte rest[kWordLanes * kBytes] = {};
    __builtin_memcpy(rest, codes + i * kBytes, (count - i) * kBytes);
    add(rest);
  }
  return sum_lanes(sums[0] + sums[1]);
}

double squares(PanelCode type, const std::byte* codes, std::size_t count) {
  switch (type) {
    case PanelCode::e4m3:
      return squares_of<PanelCode::e4m3>(codes, count);
    case PanelCode::e8m0:
      return squares_of<PanelCode::e8m0>(codes, count);
    case PanelCode::bf16:
      return squares_of<PanelCode::bf16>(codes, count);
    default:
      return squares_of<PanelCode::f16>(codes, count);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels{kRowBlock, dot,         decode,           magnitudes,
                               squares,   gemm_window, gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::MOEREF_ISA
