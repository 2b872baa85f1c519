#pragma once

#include "simd/gemm.hpp"
#include "simd/lanes_f64.hpp"

// The values of codes in 32-bit words, for the files that are compiled once per instruction set.

namespace moeref::simd::MOEREF_ISA {
namespace {

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

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
