// AVX-512 with VNNI: xsimd 8.1 has neither byte products nor byte look-ups.
#include <immintrin.h>

#include "simd/slices.hpp"

namespace moeref::simd::avx512vnni {
namespace {

/// 16 bytes of each of 16 columns as four registers: word d of all columns side by side.
void load_unit(const std::byte* const* columns, std::size_t offset, __m512i (&words)[4]) {
  const auto load = [&](std::size_t first) {
    const auto at = [&](std::size_t column) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[column] + offset));
    };
    __m512i all = _mm512_castsi128_si512(at(first));
    all = _mm512_inserti32x4(all, at(first + 4), 1);
    all = _mm512_inserti32x4(all, at(first + 8), 2);
    return _mm512_inserti32x4(all, at(first + 12), 3);
  };
  const __m512i a = load(0);
  const __m512i b = load(1);
  const __m512i c = load(2);
  const __m512i d = load(3);
  const __m512i ab_low = _mm512_unpacklo_epi32(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi32(c, d);
  const __m512i ab_high = _mm512_unpackhi_epi32(a, b);
  const __m512i cd_high = _mm512_unpackhi_epi32(c, d);
  words[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
  words[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
  words[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
  words[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m512i nibble = _mm512_set1_epi8(0x0F);
  for (std::size_t i = 0; i < k; i += 32) {
    __m512i words[4];
    load_unit(codes.columns, i / 2, words);
    for (const __m512i word : words) {
      const __m512i even = _mm512_and_si512(word, nibble);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(word, 4), nibble);
      _mm512_storeu_si512(weights, _mm512_shuffle_epi8(table, even));
      _mm512_storeu_si512(weights + 64, _mm512_shuffle_epi8(table, odd));
      weights += 128;
    }
  }
}

/// 16 columns of a row of sums.
struct Sums {
  __m512d low;
  __m512d high;
};

inline __m512d low_half(__m512i values) {
  return _mm512_cvtepi32_pd(_mm512_castsi512_si256(values));
}
inline __m512d high_half(__m512i values) {
  return _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(values, 1));
}

/// (high << 8) + low: at most 25 bits.
inline __m512i joined(__m512i low, __m512i high) {
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

/// One row of a block. Chains of steps hide the latency of each other.
template <std::size_t kSlices, std::size_t kSteps>
inline void dot_row(const std::int8_t* digits, const std::int32_t* starts, double factor,
                    const std::uint8_t* weights, const double* scales, Sums& sums) {
  constexpr std::size_t kChains = kSlices == 1 ? 4 : kSlices == 2 ? 2 : 1;
  __m512i chain[kSlices][kChains];
  for (std::size_t s = 0; s < kSlices; ++s) {
    chain[s][0] = _mm512_set1_epi32(starts[s]);
    for (std::size_t c = 1; c < kChains; ++c) chain[s][c] = _mm512_setzero_si512();
  }
  for (std::size_t step = 0; step < kSteps; ++step) {
    const __m512i weight = _mm512_loadu_si512(weights + step * kPanelColumns * kSliceStep);
    for (std::size_t s = 0; s < kSlices; ++s) {
      int four;
      __builtin_memcpy(&four, digits + (s * kSteps + step) * kSliceStep, 4);
      __m512i& to = chain[s][step % kChains];
      to = _mm512_dpbusd_epi32(to, weight, _mm512_set1_epi32(four));
    }
  }
  __m512i sum[kSlices];
  for (std::size_t s = 0; s < kSlices; ++s) {
    sum[s] = chain[s][0];
    if (kChains == 2) sum[s] = _mm512_add_epi32(chain[s][0], chain[s][1 % kChains]);
    if (kChains == 4) {
      sum[s] = _mm512_add_epi32(_mm512_add_epi32(chain[s][0], chain[s][1 % kChains]),
                                _mm512_add_epi32(chain[s][2 % kChains], chain[s][3 % kChains]));
    }
  }
  const __m512i first = kSlices == 1 ? sum[0] : joined(sum[0], sum[kSlices > 1]);
  __m512d low = low_half(first);
  __m512d high = high_half(first);
  if constexpr (kSlices > 2) {
    const __m512i second = kSlices == 3 ? sum[2] : joined(sum[2], sum[kSlices > 3 ? 3 : 2]);
    const __m512d weight = _mm512_set1_pd(0x1p16);
    low = _mm512_fmadd_pd(low_half(second), weight, low);
    high = _mm512_fmadd_pd(high_half(second), weight, high);
  }
  if constexpr (kSlices > 4) {
    const __m512d weight = _mm512_set1_pd(0x1p32);
    low = _mm512_fmadd_pd(low_half(sum[4]), weight, low);
    high = _mm512_fmadd_pd(high_half(sum[4]), weight, high);
  }
  const __m512d by_row = _mm512_set1_pd(factor);
  sums.low = _mm512_fmadd_pd(low, _mm512_mul_pd(_mm512_loadu_pd(scales), by_row), sums.low);
  sums.high = _mm512_fmadd_pd(high, _mm512_mul_pd(_mm512_loadu_pd(scales + 8), by_row), sums.high);
}

template <std::size_t kSteps>
void dot_blocks(const SliceBlock* blocks, std::size_t count, std::size_t rows,
                const std::uint8_t* weights, const double* scales, double* out) {
  for (std::size_t row = 0; row < rows; ++row, out += kPanelColumns) {
    Sums sums{_mm512_loadu_pd(out), _mm512_loadu_pd(out + 8)};
    const std::uint8_t* block_weights = weights;
    const double* block_scales = scales;
    for (std::size_t b = 0; b < count; ++b) {
      const SliceBlock& block = blocks[b];
      const std::int8_t* digits = block.digits + row * kMostSlices * kSteps * kSliceStep;
      const std::int32_t* starts = block.starts + row * kMostSlices;
      const double factor = block.factors[row];
      switch (block.slices[row]) {
        case 0:
          break;
        case 1:
          dot_row<1, kSteps>(digits, starts, factor, block_weights, block_scales, sums);
          break;
        case 2:
          dot_row<2, kSteps>(digits, starts, factor, block_weights, block_scales, sums);
          break;
        case 3:
          dot_row<3, kSteps>(digits, starts, factor, block_weights, block_scales, sums);
          break;
        case 4:
          dot_row<4, kSteps>(digits, starts, factor, block_weights, block_scales, sums);
          break;
        default:
          dot_row<5, kSteps>(digits, starts, factor, block_weights, block_scales, sums);
      }
      block_weights += kSteps * kPanelColumns * kSliceStep;
      block_scales += kPanelColumns;
    }
    _mm512_storeu_pd(out, sums.low);
    _mm512_storeu_pd(out + 8, sums.high);
  }
}

void dot(const SliceBlock* blocks, std::size_t count, std::size_t steps, std::size_t rows,
         const std::uint8_t* weights, const double* scales, double* sums) {
  if (steps == 8) return dot_blocks<8>(blocks, count, rows, weights, scales, sums);
  dot_blocks<4>(blocks, count, rows, weights, scales, sums);
}

}  // namespace

extern const SliceKernels slice_kernels;
const SliceKernels slice_kernels{decode, dot};

}  // namespace moeref::simd::avx512vnni
