// The exact GEMM's inner loops; compiled once per instruction set like kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>

#include "simd/code_columns.hpp"
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

#if !defined(__AVX2__)
/// A number of exponent and fraction bits of an f32 under a bias of its own, without a sign: `bits`
/// is (magnitude << shift) + (difference of the biases << 23).
inline U32 with_subnormals(U32 bits, float smallest, std::uint32_t step) {
  const F32 normal = as_float(bits);
  const F32 subnormal = as_float(bits + U32(step)) - F32(smallest);
  return as_bits(xsimd::select(normal < F32(smallest), subnormal, normal));
}
#endif

/// Bytes of `table` by those of `indices` that are below 8; else those of `others`.
inline U32 look_up_small(const std::uint8_t (&table)[16], U32 indices, U32 others) {
#if defined(__x86_64__)
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
#endif
#if defined(__AVX512F__)
  const __mmask64 small = _mm512_cmplt_epu8_mask(indices, _mm512_set1_epi8(8));
  return _mm512_mask_shuffle_epi8(others, small, _mm512_broadcast_i32x4(entries), indices);
#elif defined(__AVX2__)
  const __m256i small = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), indices);
  return _mm256_blendv_epi8(
      others, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), indices), small);
#elif defined(__x86_64__)
  const __m128i small = _mm_cmplt_epi8(indices, _mm_set1_epi8(8));
  return _mm_blendv_epi8(others, _mm_shuffle_epi8(entries, indices), small);
#else
  const uint8x16_t bytes = vreinterpretq_u8_u32(indices);
  return vreinterpretq_u32_u8(vbslq_u8(vcltq_u8(bytes, vdupq_n_u8(8)),
                                       vqtbl1q_u8(vld1q_u8(table), bytes),
                                       vreinterpretq_u8_u32(others)));
#endif
}

/// Words of codes before they are taken apart.
template <PanelCode kType>
struct CodeWords {
  explicit CodeWords(U32 words) : all(words) {}
  U32 all;
};

/// Of E4M3 the bf16 numbers that they are: codes 0 and 2, and codes 1 and 3. Four codes a word at
/// once, so that little is left to do for each.
template <>
struct CodeWords<PanelCode::e4m3> {
  explicit CodeWords(U32 words) {
    // The subnormals: k 2^-9, k = 0 .. 7.
    static constexpr std::uint8_t kLow[16] = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60};
    static constexpr std::uint8_t kHigh[16] = {0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C};
    const U32 sizes = words & U32(0x7F7F'7F7Fu);
    // A normal number's four exponent bits begin at bit 3 of the code, at bit 7 of a bf16; the
    // biases differ by 120, which is 0x3C in the high byte.
    const U32 low = look_up_small(kLow, sizes, (sizes << 4) & U32(0xF0F0'F0F0u));
    const U32 high =
        look_up_small(kHigh, sizes, ((sizes >> 4) & U32(0x0F0F'0F0Fu)) + U32(0x3C3C'3C3Cu)) |
        (words & U32(0x8080'8080u));
    const U32 low_bytes(0x00FF'00FFu);
    const U32 high_bytes(0xFF00'FF00u);
    even = (low & low_bytes) | ((high << 8) & high_bytes);
    odd = ((low >> 8) & low_bytes) | (high & high_bytes);
  }
  U32 even;
  U32 odd;
};

/// Code number `n` of words; not of E4M3.
template <PanelCode kType, int n>
inline F32 value_of_word(U32 words) {
  const U32 sign(0x8000'0000u);
  if constexpr (kType == PanelCode::e2m1) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f,
                                        -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * n), table);
#elif defined(__AVX2__)
    const __m256 table = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const F32 size = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(words, 4 * n));
    return as_float(as_bits(size) | ((words << (28 - 4 * n)) & sign));
#else
    const U32 bits = (((words >> (4 * n)) & U32(7u)) << 22) + U32(126u << 23);
    return as_float(with_subnormals(bits, 1.0f, 1u << 23) | ((words << (28 - 4 * n)) & sign));
#endif
  }
  if constexpr (kType == PanelCode::e8m0) {
    // Code 0 is the subnormal number 2^-127.
    const U32 code = (words >> (8 * n)) & U32(0xFFu);
    const F32 bits = as_float(code << 23);
    return xsimd::select(bits == F32(0.0f), as_float(U32(0x0040'0000u)), bits);
  }
  if constexpr (kType == PanelCode::bf16) {
    return as_float(n == 0 ? words << 16 : words & U32(0xFFFF'0000u));
  }
  return f16_values(n == 0 ? words & U32(0xFFFFu) : words >> 16);
}

/// Value number `n` of words of codes.
template <PanelCode kType, int n>
inline F32 value_of(const CodeWords<kType>& codes) {
  if constexpr (kType == PanelCode::e4m3) {
    const U32 pair = n % 2 == 0 ? codes.even : codes.odd;
    return as_float(n < 2 ? pair << 16 : pair & U32(0xFFFF'0000u));
  } else {
    return value_of_word<kType, n>(codes.all);
  }
}

/// The two halves of a batch as f64.
inline void widen(F32 values, F64 (&wide)[2]) {
#if defined(__AVX512F__)
  wide[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
  wide[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
#elif defined(__AVX2__)
  wide[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
  wide[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
#elif defined(__x86_64__)
  wide[0] = _mm_cvtps_pd(values);
  wide[1] = _mm_cvtps_pd(_mm_movehl_ps(values, values));
#else
  const float32x4_t all = values;
  wide[0] = vcvt_f64_f32(vget_low_f32(all));
  wide[1] = vcvt_high_f64_f32(all);
#endif
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

void magnitudes(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                const std::byte* const* columns, std::size_t count,
                Magnitudes (&found)[kPanelColumns]) {
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    found[j] = bytes == 1 ? magnitudes_of<std::uint8_t>(mask, skips_zero, columns[j], count)
                          : magnitudes_of<std::uint16_t>(mask, skips_zero, columns[j], count);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels{kRowBlock,        dot,        decode, magnitudes, gemm_window,
                               gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::MOEREF_ISA
