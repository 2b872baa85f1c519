// Sums of whole numbers; compiled once per instruction set like kernels_xsimd.cpp. xsimd 8.1 has
// neither byte products nor byte look-ups.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/code_columns.hpp"
#include "simd/lanes_f64.hpp"
#include "simd/slices_loops.hpp"

// All that a function calls becomes part of it, so that sums stay in registers; but where every
// access is watched, which takes minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
#define MOEREF_ALL_INLINE
#else
#define MOEREF_ALL_INLINE [[gnu::flatten]]
#endif

namespace moeref::simd::MOEREF_ISA {
namespace {

#if defined(__AVX512VNNI__)
constexpr std::int64_t kMostLongRows = std::numeric_limits<std::int64_t>::max();
#else
constexpr std::int64_t kMostLongRows = 16;
#endif
// Whether sums of one step need those of the step before for so long that chains of steps pay,
// which hide the latency of each other.
#if defined(__AVX512VNNI__)
constexpr bool kLongLatency = true;
#else
constexpr bool kLongLatency = false;
#endif
// Panels whose sums fit the registers together.
#if defined(__AVX512F__)
constexpr std::size_t kPanelsAtOnce = kSlicePanels;
#else
constexpr std::size_t kPanelsAtOnce = 1;
#endif

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
  void add(std::size_t, U32 weights, std::int32_t digits) {
    sums_ = _mm512_dpbusd_epi32(sums_, weights, _mm512_set1_epi32(digits));
  }
  U32 total() const { return sums_; }

 private:
  __m512i sums_;
#elif defined(__x86_64__)
  // Four sums of two products, of at most 24 * 128 each, fit 16 bits.
  static constexpr std::size_t kNarrowSteps = 4;

#if defined(__AVX512F__)
  static __m512i products(__m512i weights, std::int32_t digits) {
    return _mm512_maddubs_epi16(weights, _mm512_set1_epi32(digits));
  }
  static __m512i pairs(__m512i halves) { return _mm512_madd_epi16(halves, _mm512_set1_epi16(1)); }
  static __m512i add_halves(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
  using Vector = __m512i;
#elif defined(__AVX2__)
  static __m256i products(__m256i weights, std::int32_t digits) {
    return _mm256_maddubs_epi16(weights, _mm256_set1_epi32(digits));
  }
  static __m256i pairs(__m256i halves) { return _mm256_madd_epi16(halves, _mm256_set1_epi16(1)); }
  static __m256i add_halves(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
  using Vector = __m256i;
#else
  static __m128i products(__m128i weights, std::int32_t digits) {
    return _mm_maddubs_epi16(weights, _mm_set1_epi32(digits));
  }
  static __m128i pairs(__m128i halves) { return _mm_madd_epi16(halves, _mm_set1_epi16(1)); }
  static __m128i add_halves(__m128i a, __m128i b) { return _mm_add_epi16(a, b); }
  using Vector = __m128i;
#endif

 public:
  ByteSums() = default;
  explicit ByteSums(std::int32_t start) : sums_(static_cast<std::uint32_t>(start)) {}
  void add(std::size_t step, U32 weights, std::int32_t digits) {
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
  void add(std::size_t, U32 weights, std::int32_t digits) {
    // Sums of kSteps products of at most 24 * 128 fit 16 bits.
    const int8x16_t bytes = vreinterpretq_s8_u32(weights);
    const int8x16_t factors = vreinterpretq_s8_s32(vdupq_n_s32(digits));
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

/// Signed words as f64 numbers.
inline void widen(U32 words, F64 (&wide)[2]) {
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

/// Weights of kWordLanes columns from `column` on that are decoded already.
template <std::size_t kSteps, std::size_t kPanels>
class StoredWeights {
 public:
  StoredWeights(const SlicePanel* panels, std::size_t column) : panels_(panels), column_(column) {}
  void choose(std::size_t block) { block_ = block; }
  U32 weights(std::size_t panel, std::size_t step) const {
    const std::size_t at = ((block_ * kSteps + step) * kPanelColumns + column_) * kSliceStep;
    return load_words(reinterpret_cast<const std::byte*>(panels_[panel].weights + at));
  }
  const double* scales(std::size_t panel) const {
    return panels_[panel].scales + block_ * kPanelColumns + column_;
  }

 private:
  const SlicePanel* panels_;
  std::size_t column_;
  std::size_t block_ = 0;
};

/// The same of codes.
template <std::size_t kSteps>
class CodedWeights {
 public:
  CodedWeights(const PanelCodes& codes, const double* scales, std::size_t column)
      : columns_(codes.columns + column), scales_(scales + column) {}
  void choose(std::size_t block) {
    constexpr std::size_t kBytes = kSteps * kSliceStep / 2;
    block_ = block;
    U32 words[kBytes / 4];
    load_words<kBytes>(columns_, block * kBytes, words);
    for (std::size_t i = 0; i < kSteps / 2; ++i) {
      split_nibbles(words[i], weights_[2 * i], weights_[2 * i + 1]);
    }
  }
  U32 weights(std::size_t, std::size_t step) const { return weights_[step]; }
  const double* scales(std::size_t) const { return scales_ + block_ * kPanelColumns; }

 private:
  const std::byte* const* columns_;
  const double* scales_;
  std::size_t block_ = 0;
  U32 weights_[kSteps];
};

/// body(std::integral_constant i) for i < kCount: arrays that such a loop indexes stay in
/// registers.
template <std::size_t kCount, typename Body>
inline void unrolled(Body body) {
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    (body(std::integral_constant<std::size_t, i>()), ...);
  }
  (std::make_index_sequence<kCount>());
}

/// One block of one row.
template <std::size_t kSlices, std::size_t kSteps, std::size_t kPanels, typename Weights>
inline void dot_block(const std::int8_t* digits, const std::int32_t* starts, double factor,
                      const Weights& weights, F64 (&sums)[kPanels][2]) {
  constexpr std::size_t kSums = kSlices * kPanels;
  constexpr std::size_t kChains = !kLongLatency ? 1 : kSums == 1 ? 4 : kSums < 4 ? 2 : 1;
  constexpr std::size_t kChainSteps = kSteps / kChains;
  using Sums = ByteSums<kChainSteps>;
  Sums slices[kPanels][kSlices][kChains];
  unrolled<kSlices>([&](auto s) {
    const Sums first(s % 2 == 0 ? starts[s / 2] : 0);
    unrolled<kPanels>([&](auto p) {
      slices[p][s][0] = first;
      unrolled<kChains - 1>([&](auto chain) { slices[p][s][chain + 1] = Sums(0); });
    });
  });
  unrolled<kSteps>([&](auto step) {
    U32 weight[kPanels];
    unrolled<kPanels>([&](auto p) { weight[p] = weights.weights(p, step); });
    unrolled<kSlices>([&](auto s) {
      std::int32_t four;
      __builtin_memcpy(&four, digits + (s * kSteps + step) * kSliceStep, 4);
      unrolled<kPanels>([&](auto p) {
        slices[p][s][step / kChainSteps].add(step % kChainSteps, weight[p], four);
      });
    });
  });
  constexpr double kUnits[] = {1.0, 0x1p16, 0x1p32};
  unrolled<kPanels>([&](auto p) {
    F64 total[2];
    unrolled<slice_pairs(kSlices)>([&](auto pair) {
      U32 both[2];
      unrolled<2 * pair + 1 < kSlices ? 2 : 1>([&](auto i) {
        both[i] = slices[p][2 * pair + i][0].total();
        unrolled<kChains - 1>(
            [&](auto chain) { both[i] = both[i] + slices[p][2 * pair + i][chain + 1].total(); });
      });
      if constexpr (2 * pair + 1 < kSlices) both[0] = both[0] + (both[1] << 8);  // below 2^24
      F64 wide[2];
      widen(both[0], wide);
      unrolled<2>([&](auto half) {
        total[half] =
            pair == 0 ? wide[half] : multiply_add(wide[half], F64(kUnits[pair]), total[half]);
      });
    });
    const double* scales = weights.scales(p);
    unrolled<2>([&](auto half) {
      const F64 scale = F64::load_unaligned(scales + half * kLanes) * F64(factor);
      sums[p][half] = multiply_add(total[half], scale, sums[p][half]);
    });
  });
}

template <std::size_t kSlices, std::size_t kSteps, std::size_t kPanels, typename Weights>
inline void dot_blocks(SliceRow& row, Weights& weights, F64 (&sums)[kPanels][2]) {
  for (std::size_t n = row.counts[kSlices - 1]; n > 0; --n) {
    weights.choose(*row.blocks++);
    dot_block<kSlices, kSteps>(row.digits, row.starts, *row.factors++, weights, sums);
    row.digits += kSlices * kSteps * kSliceStep;
    row.starts += slice_pairs(kSlices);
  }
}

template <std::size_t kSteps, std::size_t kPanels, typename Weights>
MOEREF_ALL_INLINE void dot_row(SliceRow row, Weights weights, double* const (&out)[kPanels]) {
  F64 sums[kPanels][2];
  unrolled<kPanels>([&](auto p) {
    unrolled<2>([&](auto half) { sums[p][half] = F64::load_unaligned(out[p] + half * kLanes); });
  });
  dot_blocks<1, kSteps>(row, weights, sums);
  dot_blocks<2, kSteps>(row, weights, sums);
  dot_blocks<3, kSteps>(row, weights, sums);
  dot_blocks<4, kSteps>(row, weights, sums);
  dot_blocks<5, kSteps>(row, weights, sums);
  unrolled<kPanels>([&](auto p) {
    unrolled<2>([&](auto half) { sums[p][half].store_unaligned(out[p] + half * kLanes); });
  });
}

template <std::size_t kSteps, std::size_t kPanels>
void dot_panels(const SliceRow& row, const SlicePanel* panels) {
  for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
    double* out[kPanels];
    for (std::size_t p = 0; p < kPanels; ++p) out[p] = panels[p].sums + column;
    dot_row<kSteps>(row, StoredWeights<kSteps, kPanels>(panels, column), out);
  }
}

template <std::size_t kSteps>
void dot_steps(const SliceRow& row, const SlicePanel* panels, std::size_t count) {
  std::size_t p = 0;
  for (; p + kPanelsAtOnce <= count; p += kPanelsAtOnce) {
    dot_panels<kSteps, kPanelsAtOnce>(row, panels + p);
  }
  for (; p < count; ++p) dot_panels<kSteps, 1>(row, panels + p);
}

void dot(const SliceRow& row, std::size_t steps, const SlicePanel* panels, std::size_t count) {
  if (steps == 8) return dot_steps<8>(row, panels, count);
  dot_steps<4>(row, panels, count);
}

template <std::size_t kSteps>
void dot_codes_of(const SliceRow& row, const PanelCodes& codes, const double* scales,
                  double* sums) {
  for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
    double* const out[1] = {sums + column};
    dot_row<kSteps>(row, CodedWeights<kSteps>(codes, scales, column), out);
  }
}

void dot_codes(const SliceRow& row, std::size_t steps, const PanelCodes& codes,
               const double* scales, double* sums) {
  if (steps == 8) return dot_codes_of<8>(row, codes, scales, sums);
  dot_codes_of<4>(row, codes, scales, sums);
}

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  const auto store = [](U32 bytes, std::uint8_t* to) {
    bytes.store_unaligned(reinterpret_cast<std::uint32_t*>(to));
  };
  for (std::size_t i = 0; i < k; i += 32) {
    for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
      U32 words[4];
      load_words<kCodeUnit>(codes.columns + column, i / 2, words);
      std::uint8_t* to = weights + (i * kPanelColumns) + column * kSliceStep;
      for (const U32 word : words) {
        U32 even;
        U32 odd;
        split_nibbles(word, even, odd);
        store(even, to);
        store(odd, to + kPanelColumns * kSliceStep);
        to += 2 * kPanelColumns * kSliceStep;
      }
    }
  }
}

}  // namespace

extern const SliceKernels slice_kernels;
const SliceKernels slice_kernels{kMostLongRows, slice_cut, decode, dot, dot_codes};

}  // namespace moeref::simd::MOEREF_ISA
