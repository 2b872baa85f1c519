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
using Bool32 = xsimd::batch_bool<float, MOEREF_ARCH>;
constexpr std::size_t kWordLanes = U32::size;
constexpr std::size_t kWordBatches = 16 / kWordLanes;

inline F32 as_float(U32 bits) { return xsimd::bitwise_cast<F32>(bits); }
inline U32 as_bits(F32 value) { return xsimd::bitwise_cast<U32>(value); }
/// Words by a condition on floats. (xsimd 8.1's select of integers does not compile for AVX-512
/// without optimisation, where _mm512_mask_blend_epi8 is a macro.)
inline U32 choose(Bool32 condition, U32 yes, U32 no) {
  return as_bits(xsimd::select(condition, as_float(yes), as_float(no)));
}

/// Rounded to nearest even. xsimd 8 divides f32 by an estimate of the reciprocal on aarch64.
inline F32 quotient(F32 a, F32 b) {
#if defined(__aarch64__)
  return vdivq_f32(a, b);
#else
  return a / b;
#endif
}

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

/// kWordLanes bytes, zero-extended.
inline U32 load_bytes(const std::byte* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#elif defined(__x86_64__)
  return _mm_cvtepu8_epi32(_mm_loadu_si32(from));
#else
  std::uint32_t bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)))));
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

/// Whether store_floats may stream to `to`: lines that a store does not fill whole are slow.
inline bool may_stream(const float* to) { return reinterpret_cast<std::uintptr_t>(to) % 64 == 0; }

template <bool kStreams>
void store_floats(F32 values, float* to) {
#if defined(__x86_64__)
  if constexpr (kStreams) {
#if defined(__AVX512F__)
    const __m512 all = values;
    _mm_stream_ps(to, _mm512_castps512_ps128(all));
    _mm_stream_ps(to + 4, _mm512_extractf32x4_ps(all, 1));
    _mm_stream_ps(to + 8, _mm512_extractf32x4_ps(all, 2));
    _mm_stream_ps(to + 12, _mm512_extractf32x4_ps(all, 3));
#elif defined(__AVX2__)
    const __m256 all = values;
    _mm_stream_ps(to, _mm256_castps256_ps128(all));
    _mm_stream_ps(to + 4, _mm256_extractf128_ps(all, 1));
#else
    _mm_stream_ps(to, values);
#endif
    return;
  }
#endif
  values.store_unaligned(to);
}

inline void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
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
  const auto* from = reinterpret_cast<const __m128i*>(numbers);
  const auto magnitudes = [&](std::size_t i) {
    return _mm_and_si128(_mm_loadu_si128(from + i), mask);
  };
  __m128i first = magnitudes(0);
  __m128i second = magnitudes(1);
  for (std::size_t i = 2; i < count / 8; i += 2) {
    first = _mm_max_epu16(first, magnitudes(i));
    second = _mm_max_epu16(second, magnitudes(i + 1));
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

/// Sixteen 16-bit lanes.
struct Halves {
#if defined(__AVX2__)
  using Vector = __m256i;
  static constexpr int kVectors = 1;
#elif defined(__x86_64__)
  using Vector = __m128i;
  static constexpr int kVectors = 2;
#else
  using Vector = int16x8_t;
  static constexpr int kVectors = 2;
#endif
  Vector v[kVectors];
};

#if defined(__AVX2__)
inline Halves::Vector spread(std::int16_t value) { return _mm256_set1_epi16(value); }
/// Of a word that is two equal halves.
inline Halves::Vector spread_twice(std::uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}
inline Halves::Vector both(Halves::Vector a, Halves::Vector b) { return _mm256_and_si256(a, b); }
inline Halves::Vector either(Halves::Vector a, Halves::Vector b) { return _mm256_or_si256(a, b); }
inline Halves::Vector without(Halves::Vector a, Halves::Vector b) {
  return _mm256_andnot_si256(b, a);
}
/// All ones where a > b.
inline Halves::Vector above(Halves::Vector a, Halves::Vector b) { return _mm256_cmpgt_epi16(a, b); }
inline Halves::Vector minus(Halves::Vector a, Halves::Vector b) { return _mm256_sub_epi16(a, b); }
/// Bit 15 to bit 3.
inline Halves::Vector sign_to_bit_3(Halves::Vector a) {
  return both(_mm256_srli_epi16(a, 12), spread(8));
}
#elif defined(__x86_64__)
inline Halves::Vector spread(std::int16_t value) { return _mm_set1_epi16(value); }
inline Halves::Vector spread_twice(std::uint32_t word) {
  return _mm_set1_epi32(static_cast<int>(word));
}
inline Halves::Vector both(Halves::Vector a, Halves::Vector b) { return _mm_and_si128(a, b); }
inline Halves::Vector either(Halves::Vector a, Halves::Vector b) { return _mm_or_si128(a, b); }
inline Halves::Vector without(Halves::Vector a, Halves::Vector b) { return _mm_andnot_si128(b, a); }
inline Halves::Vector above(Halves::Vector a, Halves::Vector b) { return _mm_cmpgt_epi16(a, b); }
inline Halves::Vector minus(Halves::Vector a, Halves::Vector b) { return _mm_sub_epi16(a, b); }
inline Halves::Vector sign_to_bit_3(Halves::Vector a) {
  return both(_mm_srli_epi16(a, 12), spread(8));
}
#else
inline Halves::Vector spread(std::int16_t value) { return vdupq_n_s16(value); }
inline Halves::Vector spread_twice(std::uint32_t word) {
  return vreinterpretq_s16_u32(vdupq_n_u32(word));
}
inline Halves::Vector both(Halves::Vector a, Halves::Vector b) { return vandq_s16(a, b); }
inline Halves::Vector either(Halves::Vector a, Halves::Vector b) { return vorrq_s16(a, b); }
inline Halves::Vector without(Halves::Vector a, Halves::Vector b) { return vbicq_s16(a, b); }
inline Halves::Vector above(Halves::Vector a, Halves::Vector b) {
  return vreinterpretq_s16_u16(vcgtq_s16(a, b));
}
inline Halves::Vector minus(Halves::Vector a, Halves::Vector b) { return vsubq_s16(a, b); }
inline Halves::Vector sign_to_bit_3(Halves::Vector a) {
  return both(vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_s16(a), 12)), spread(8));
}
#endif

inline Halves load_16_halves(const std::byte* from) {
#if defined(__AVX2__)
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))}};
#elif defined(__x86_64__)
  return {{_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)),
           _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + 1)}};
#else
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  return {{vreinterpretq_s16_u8(vld1q_u8(bytes)), vreinterpretq_s16_u8(vld1q_u8(bytes + 16))}};
#endif
}

/// The low bytes of lanes that hold at most 255.
inline Bytes16 narrow(const Halves& halves) {
#if defined(__AVX2__)
  return _mm_packus_epi16(_mm256_castsi256_si128(halves.v[0]),
                          _mm256_extracti128_si256(halves.v[0], 1));
#elif defined(__x86_64__)
  return _mm_packus_epi16(halves.v[0], halves.v[1]);
#else
  return vcombine_u8(vmovn_u16(vreinterpretq_u16_s16(halves.v[0])),
                     vmovn_u16(vreinterpretq_u16_s16(halves.v[1])));
#endif
}

/// Part `part` of sixteen halves, zero-extended to words.
inline U32 words_of(const Halves& halves, std::size_t part) {
#if defined(__AVX512F__)
  static_cast<void>(part);
  return _mm512_cvtepu16_epi32(halves.v[0]);
#elif defined(__AVX2__)
  return _mm256_cvtepu16_epi32(part == 0 ? _mm256_castsi256_si128(halves.v[0])
                                         : _mm256_extracti128_si256(halves.v[0], 1));
#elif defined(__x86_64__)
  const __m128i half = halves.v[part / 2];
  return _mm_cvtepu16_epi32(part % 2 == 0 ? half : _mm_srli_si128(half, 8));
#else
  const uint16x8_t half = vreinterpretq_u16_s16(halves.v[part / 2]);
  return vmovl_u16(part % 2 == 0 ? vget_low_u16(half) : vget_high_u16(half));
#endif
}

#if defined(__x86_64__)
inline Bytes16 spread_byte(std::uint8_t value) { return _mm_set1_epi8(static_cast<char>(value)); }
inline Bytes16 and_bytes(Bytes16 a, Bytes16 b) { return _mm_and_si128(a, b); }
inline Bytes16 or_bytes(Bytes16 a, Bytes16 b) { return _mm_or_si128(a, b); }
inline Bytes16 add_bytes(Bytes16 a, Bytes16 b) { return _mm_add_epi8(a, b); }
/// All ones where a equals b; where a is below b, both at most 127.
inline Bytes16 equal_bytes(Bytes16 a, Bytes16 b) { return _mm_cmpeq_epi8(a, b); }
inline Bytes16 below_bytes(Bytes16 a, Bytes16 b) { return _mm_cmplt_epi8(a, b); }
inline Bytes16 choose(Bytes16 mask, Bytes16 yes, Bytes16 no) {
  return _mm_blendv_epi8(no, yes, mask);
}
/// table[indices], indices below 16.
inline Bytes16 look_up(const std::uint8_t (&table)[16], Bytes16 indices) {
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), indices);
}
/// Each byte four bits down, and up.
inline Bytes16 high_nibbles(Bytes16 a) { return and_bytes(_mm_srli_epi16(a, 4), spread_byte(0xF)); }
inline Bytes16 low_nibbles_up(Bytes16 a) {
  return and_bytes(_mm_slli_epi16(a, 4), spread_byte(0xF0));
}
inline Bytes16 load_16_bytes(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
/// Sixteen 4-bit codes of 8 bytes, the even one low.
inline Bytes16 load_16_nibbles(const std::byte* from) {
  const __m128i bytes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return and_bytes(_mm_or_si128(bytes, _mm_slli_epi16(bytes, 4)), spread_byte(0xF));
}
/// Halves of a low and a high byte each.
inline Halves joined(Bytes16 low, Bytes16 high) {
  const __m128i first = _mm_unpacklo_epi8(low, high);
  const __m128i second = _mm_unpackhi_epi8(low, high);
#if defined(__AVX2__)
  return {{_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1)}};
#else
  return {{first, second}};
#endif
}
#else
inline Bytes16 spread_byte(std::uint8_t value) { return vdupq_n_u8(value); }
inline Bytes16 and_bytes(Bytes16 a, Bytes16 b) { return vandq_u8(a, b); }
inline Bytes16 or_bytes(Bytes16 a, Bytes16 b) { return vorrq_u8(a, b); }
inline Bytes16 add_bytes(Bytes16 a, Bytes16 b) { return vaddq_u8(a, b); }
inline Bytes16 equal_bytes(Bytes16 a, Bytes16 b) { return vceqq_u8(a, b); }
inline Bytes16 below_bytes(Bytes16 a, Bytes16 b) { return vcltq_u8(a, b); }
inline Bytes16 choose(Bytes16 mask, Bytes16 yes, Bytes16 no) { return vbslq_u8(mask, yes, no); }
inline Bytes16 look_up(const std::uint8_t (&table)[16], Bytes16 indices) {
  return vqtbl1q_u8(vld1q_u8(table), indices);
}
inline Bytes16 high_nibbles(Bytes16 a) { return vshrq_n_u8(a, 4); }
inline Bytes16 low_nibbles_up(Bytes16 a) { return vshlq_n_u8(a, 4); }
inline Bytes16 load_16_bytes(const std::byte* from) {
  return vld1q_u8(reinterpret_cast<const std::uint8_t*>(from));
}
inline Bytes16 load_16_nibbles(const std::byte* from) {
  const uint8x8_t bytes = vld1_u8(reinterpret_cast<const std::uint8_t*>(from));
  const uint8x8x2_t both_nibbles = vzip_u8(vand_u8(bytes, vdup_n_u8(0xF)), vshr_n_u8(bytes, 4));
  return vcombine_u8(both_nibbles.val[0], both_nibbles.val[1]);
}
inline Halves joined(Bytes16 low, Bytes16 high) {
  return {{vreinterpretq_s16_u8(vzip1q_u8(low, high)), vreinterpretq_s16_u8(vzip2q_u8(low, high))}};
}
#endif

/// The values of f16 codes.
inline F32 f16_values(U32 codes) {
  const U32 magnitude = (codes & U32(0x7FFFu)) << 13;
  const U32 finite = as_bits(as_float(magnitude) * F32(0x1p112f));
  const U32 bits = choose(as_float(magnitude) >= as_float(U32(0x0F80'0000u)),
                          magnitude | U32(0x7F80'0000u), finite);
  return as_float(bits | (codes & U32(0x8000u)) << 16);
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
