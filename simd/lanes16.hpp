#pragma once

#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Sixteen 32-bit lanes as one to four xsimd batches, and what xsimd 8.1 cannot express: widening
// loads of 16-bit numbers and narrowing stores of codes. For the files that are compiled once per
// instruction set (MOEREF_ARCH); everything here has internal linkage there.

namespace moeref::simd::MOEREF_ISA {
namespace {

using U32 = xsimd::batch<std::uint32_t, MOEREF_ARCH>;
using F32 = xsimd::batch<float, MOEREF_ARCH>;
constexpr std::size_t kWordLanes = U32::size;
constexpr std::size_t kWordBatches = 16 / kWordLanes;

inline F32 as_float(U32 bits) { return xsimd::bitwise_cast<F32>(bits); }
inline U32 as_bits(F32 value) { return xsimd::bitwise_cast<U32>(value); }

/// kWordLanes 16-bit numbers, zero-extended.
inline U32 load_halves(const std::byte* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__x86_64__)
  return _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  return vmovl_u16(vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(from))));
#endif
}

inline U32 load_words(const std::byte* from) {
#if defined(__AVX512F__)
  return _mm512_loadu_si512(from);
#elif defined(__AVX2__)
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
#elif defined(__x86_64__)
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
#else
  return vreinterpretq_u32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(from)));
#endif
}

#if defined(__x86_64__)
using Bytes16 = __m128i;
#else
using Bytes16 = uint8x16_t;
#endif

/// The low bytes of 16 lanes that hold at most 255.
inline Bytes16 narrow(const U32 (&lanes)[kWordBatches]) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_epi8(lanes[0]);
#elif defined(__AVX2__)
  const __m256i halves =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(lanes[0], lanes[1]), 0b11'01'10'00);
  return _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
#elif defined(__x86_64__)
  return _mm_packus_epi16(_mm_packus_epi32(lanes[0], lanes[1]),
                          _mm_packus_epi32(lanes[2], lanes[3]));
#else
  const uint16x8_t low = vcombine_u16(vmovn_u32(lanes[0]), vmovn_u32(lanes[1]));
  const uint16x8_t high = vcombine_u16(vmovn_u32(lanes[2]), vmovn_u32(lanes[3]));
  return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
#endif
}

/// A function object, so that loops over it are compiled for it.
struct StoreBytes {
  static constexpr std::size_t kBytes = 16;
  static constexpr int kSignShift = 24;  ///< from bit 31 to the sign of a code
  void operator()(Bytes16 bytes, std::uint8_t* to) const {
#if defined(__x86_64__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#else
    vst1q_u8(to, bytes);
#endif
  }
};

/// Sixteen codes below 16 as eight bytes, the even one low.
struct StoreNibbles {
  static constexpr std::size_t kBytes = 8;
  static constexpr int kSignShift = 28;
  void operator()(Bytes16 codes, std::uint8_t* to) const {
#if defined(__x86_64__)
    // Even code * 1 + odd code * 16.
    const __m128i pairs = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x1001));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
#else
    const uint8x16_t even = vuzp1q_u8(codes, codes);
    const uint8x16_t odd = vuzp2q_u8(codes, codes);
    vst1_u8(to, vget_low_u8(vorrq_u8(even, vshlq_n_u8(odd, 4))));
#endif
  }
};

/// The largest of `count` 16-bit magnitudes, count a multiple of 16: in 128-bit vectors, which fit
/// every block.
inline std::uint32_t largest_half(const std::byte* numbers, std::size_t count) {
#if defined(__x86_64__)
  const __m128i mask = _mm_set1_epi16(0x7FFF);
  __m128i first = _mm_setzero_si128();
  __m128i second = first;
  for (std::size_t i = 0; i < 2 * count; i += 32) {
    const auto* from = reinterpret_cast<const __m128i*>(numbers + i);
    first = _mm_max_epu16(first, _mm_and_si128(_mm_loadu_si128(from), mask));
    second = _mm_max_epu16(second, _mm_and_si128(_mm_loadu_si128(from + 1), mask));
  }
  // The instruction for the smallest lane, on what is missing to 0xFFFF.
  const __m128i missing = _mm_xor_si128(_mm_max_epu16(first, second), _mm_set1_epi16(-1));
  return 0xFFFFu ^
         static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(missing)) & 0xFFFF);
#else
  uint16x8_t largest = vdupq_n_u16(0);
  for (std::size_t i = 0; i < 2 * count; i += 16) {
    const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const std::uint8_t*>(numbers + i));
    largest = vmaxq_u16(largest, vandq_u16(vreinterpretq_u16_u8(bytes), vdupq_n_u16(0x7FFF)));
  }
  return vmaxvq_u16(largest);
#endif
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
