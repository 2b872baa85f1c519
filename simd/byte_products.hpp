#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "simd/lanes_f64.hpp"
#include "simd/slices.hpp"

// Products of bytes: weights of E2M1 and digits. xsimd 8.1 has neither byte products nor byte
// look-ups.

// All that a function calls becomes part of it, so that sums stay in registers; but where every
// access is watched, which takes minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
#define MOEREF_ALL_INLINE
#else
#define MOEREF_ALL_INLINE [[gnu::flatten]]
#endif

namespace moeref::simd::MOEREF_ISA {
namespace {

/// body(std::integral_constant i) for i < kCount: arrays that such a loop indexes stay in
/// registers.
template <std::size_t kCount, typename Body>
inline void unrolled(Body body) {
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    (body(std::integral_constant<std::size_t, i>()), ...);
  }
  (std::make_index_sequence<kCount>());
}

/// 2 w + 12 by the low four bits of each byte; the others are zero.
inline U32 weights_of(U32 codes) {
  alignas(16) static constexpr std::uint8_t kTable[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                          12, 11, 10, 9,  8,  6,  4,  0};
#if defined(__AVX512F__)
  const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kTable));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
#elif defined(__AVX2__)
  const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kTable));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
#elif defined(__x86_64__)
  return _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(kTable)), codes);
#else
  return vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(kTable), vreinterpretq_u8_u32(codes)));
#endif
}

/// The weights of two steps: the even and the odd nibbles of words of codes.
inline void split_nibbles(U32 words, U32& even, U32& odd) {
  const U32 nibbles(0x0F0F'0F0Fu);
  even = weights_of(words & nibbles);
  odd = weights_of((words >> 4) & nibbles);
}

/// Sums of products of weights and digits, one of each kSliceStep bytes, of up to kSteps steps.
template <std::size_t kSteps>
class ByteSums {
 public:
#if defined(__AVX512VNNI__)
  ByteSums() = default;
  explicit ByteSums(std::int32_t start) : sums_(_mm512_set1_epi32(start)) {}
  void add(std::size_t, U32 weights, U32 digits) {
    sums_ = _mm512_dpbusd_epi32(sums_, weights, digits);
  }
  U32 total() const { return sums_; }

 private:
  __m512i sums_;
#elif defined(__x86_64__)
  // Four sums of two products, of at most 24 * 128 each, fit 16 bits.
  static constexpr std::size_t kNarrowSteps = 4;

#if defined(__AVX512F__)
  static __m512i products(__m512i weights, __m512i digits) {
    return _mm512_maddubs_epi16(weights, digits);
  }
  static __m512i pairs(__m512i halves) { return _mm512_madd_epi16(halves, _mm512_set1_epi16(1)); }
  static __m512i add_halves(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
  using Vector = __m512i;
#elif defined(__AVX2__)
  static __m256i products(__m256i weights, __m256i digits) {
    return _mm256_maddubs_epi16(weights, digits);
  }
  static __m256i pairs(__m256i halves) { return _mm256_madd_epi16(halves, _mm256_set1_epi16(1)); }
  static __m256i add_halves(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
  using Vector = __m256i;
#else
  static __m128i products(__m128i weights, __m128i digits) {
    return _mm_maddubs_epi16(weights, digits);
  }
  static __m128i pairs(__m128i halves) { return _mm_madd_epi16(halves, _mm_set1_epi16(1)); }
  static __m128i add_halves(__m128i a, __m128i b) { return _mm_add_epi16(a, b); }
  using Vector = __m128i;
#endif

 public:
  ByteSums() = default;
  explicit ByteSums(std::int32_t start) : sums_(static_cast<std::uint32_t>(start)) {}
  void add(std::size_t step, U32 weights, U32 digits) {
    const Vector four = products(weights, digits);
    halves_ = step % kNarrowSteps == 0 ? four : add_halves(halves_, four);
    if (step % kNarrowSteps == kNarrowSteps - 1 || step == kSteps - 1) {
      sums_ = sums_ + U32(pairs(halves_));
    }
  }
  U32 total() const { return sums_; }

 private:
  U32 sums_;
  Vector halves_{};
#else
 public:
  ByteSums() = default;
  explicit ByteSums(std::int32_t start) : start_(static_cast<std::uint32_t>(start)) {}
  void add(std::size_t, U32 weights, U32 digits) {
    // Sums of kSteps products of at most 24 * 128 fit 16 bits.
    const int8x16_t bytes = vreinterpretq_s8_u32(weights);
    const int8x16_t factors = vreinterpretq_s8_u32(digits);
    low_ = vmlal_s8(low_, vget_low_s8(bytes), vget_low_s8(factors));
    high_ = vmlal_high_s8(high_, bytes, factors);
  }
  U32 total() const {
    const int32x4_t sums = vpaddq_s32(vpaddlq_s16(low_), vpaddlq_s16(high_));
    return start_ + U32(vreinterpretq_u32_s32(sums));
  }

 private:
  U32 start_;
  int16x8_t low_ = vdupq_n_s16(0);
  int16x8_t high_ = vdupq_n_s16(0);
#endif
};

/// What a unit of the second group of slices is in units of the first.
constexpr double kSecondGroup = 0x1p16;

/// Signed words as f64 numbers.
inline void widen_signed(U32 words, F64 (&wide)[2]) {
#if defined(__AVX512F__)
  wide[0] = _mm512_cvtepi32_pd(_mm512_castsi512_si256(words));
  wide[1] = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(words, 1));
#elif defined(__AVX2__)
  wide[0] = _mm256_cvtepi32_pd(_mm256_castsi256_si128(words));
  wide[1] = _mm256_cvtepi32_pd(_mm256_extracti128_si256(words, 1));
#elif defined(__x86_64__)
  wide[0] = _mm_cvtepi32_pd(words);
  wide[1] = _mm_cvtepi32_pd(_mm_srli_si128(words, 8));
#else
  const int32x4_t all = vreinterpretq_s32_u32(words);
  wide[0] = vcvtq_f64_s64(vmovl_s32(vget_low_s32(all)));
  wide[1] = vcvtq_f64_s64(vmovl_high_s32(all));
#endif
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
