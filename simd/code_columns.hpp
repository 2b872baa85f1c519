#pragma once

#include "simd/lanes16.hpp"

// Codes of the columns of a weight panel, transposed so that 32-bit word number d of the columns
// lies side by side.

namespace moeref::simd::MOEREF_ISA {
namespace {

/// Codes of every fourth column.
#if defined(__AVX512F__)
using Words = __m512i;
[[gnu::always_inline]] inline Words load_columns(const std::byte* const* columns,
                                                 std::size_t offset) {
  const auto at = [&](std::size_t column) { return load_16_bytes(columns[column] + offset); };
  __m512i words = _mm512_castsi128_si512(at(0));
  words = _mm512_inserti32x4(words, at(4), 1);
  words = _mm512_inserti32x4(words, at(8), 2);
  return _mm512_inserti32x4(words, at(12), 3);
}
inline Words low_words(Words a, Words b) { return _mm512_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm512_unpackhi_epi32(a, b); }
inline Words low_pairs(Words a, Words b) { return _mm512_unpacklo_epi64(a, b); }
inline Words high_pairs(Words a, Words b) { return _mm512_unpackhi_epi64(a, b); }
#elif defined(__AVX2__)
using Words = __m256i;
[[gnu::always_inline]] inline Words load_columns(const std::byte* const* columns,
                                                 std::size_t offset) {
  const auto at = [&](std::size_t column) { return load_16_bytes(columns[column] + offset); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(4), 1);
}
inline Words low_words(Words a, Words b) { return _mm256_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm256_unpackhi_epi32(a, b); }
inline Words low_pairs(Words a, Words b) { return _mm256_unpacklo_epi64(a, b); }
inline Words high_pairs(Words a, Words b) { return _mm256_unpackhi_epi64(a, b); }
#elif defined(__x86_64__)
using Words = __m128i;
[[gnu::always_inline]] inline Words load_columns(const std::byte* const* columns,
                                                 std::size_t offset) {
  return load_words(columns[0] + offset);
}
inline Words low_words(Words a, Words b) { return _mm_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm_unpackhi_epi32(a, b); }
inline Words low_pairs(Words a, Words b) { return _mm_unpacklo_epi64(a, b); }
inline Words high_pairs(Words a, Words b) { return _mm_unpackhi_epi64(a, b); }
#else
using Words = uint32x4_t;
[[gnu::always_inline]] inline Words load_columns(const std::byte* const* columns,
                                                 std::size_t offset) {
  return load_words(columns[0] + offset);
}
inline Words low_words(Words a, Words b) { return vzip1q_u32(a, b); }
inline Words high_words(Words a, Words b) { return vzip2q_u32(a, b); }
inline Words low_pairs(Words a, Words b) {
  return vreinterpretq_u32_u64(vzip1q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
}
inline Words high_pairs(Words a, Words b) {
  return vreinterpretq_u32_u64(vzip2q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
}
#endif

/// The four words of kWordLanes columns from `offset` bytes on.
[[gnu::always_inline]] inline void load_words(const std::byte* const* columns, std::size_t offset,
                                              U32 (&words)[4]) {
  const Words a = load_columns(columns, offset);
  const Words b = load_columns(columns + 1, offset);
  const Words c = load_columns(columns + 2, offset);
  const Words d = load_columns(columns + 3, offset);
  const Words ab_low = low_words(a, b);
  const Words cd_low = low_words(c, d);
  words[0] = low_pairs(ab_low, cd_low);
  words[1] = high_pairs(ab_low, cd_low);
  const Words ab_high = high_words(a, b);
  const Words cd_high = high_words(c, d);
  words[2] = low_pairs(ab_high, cd_high);
  words[3] = high_pairs(ab_high, cd_high);
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
