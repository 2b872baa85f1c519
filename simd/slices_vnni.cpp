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

/// sums += value * scales * factor, 16 columns.
inline void add_values(__m512d low, __m512d high, const double* scales, double factor,
                       double* sums) {
  const __m512d by_row = _mm512_set1_pd(factor);
  const __m512d low_scale = _mm512_mul_pd(_mm512_loadu_pd(scales), by_row);
  const __m512d high_scale = _mm512_mul_pd(_mm512_loadu_pd(scales + 8), by_row);
  _mm512_storeu_pd(sums, _mm512_fmadd_pd(low, low_scale, _mm512_loadu_pd(sums)));
  _mm512_storeu_pd(sums + 8, _mm512_fmadd_pd(high, high_scale, _mm512_loadu_pd(sums + 8)));
}

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

template <std::size_t kRows, int kSlices>
void dot_block(const SliceBlock& block, std::size_t steps, std::size_t rows, std::size_t first_row,
               const std::uint8_t* weights, const double* scales, double* sums) {
  __m512i sum[kRows][kSlices];
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t s = 0; s < kSlices; ++s) {
      sum[row][s] = _mm512_set1_epi32(block.starts[s * rows + first_row + row]);
    }
  }
  const std::int8_t* digits = block.digits + first_row * kSliceStep;
  for (std::size_t step = 0; step < steps; ++step) {
    const __m512i weight = _mm512_loadu_si512(weights + step * kPanelColumns * kSliceStep);
    for (std::size_t row = 0; row < kRows; ++row) {
      for (std::size_t s = 0; s < kSlices; ++s) {
        int four;
        __builtin_memcpy(&four, digits + ((s * steps + step) * rows + row) * kSliceStep, 4);
        sum[row][s] = _mm512_dpbusd_epi32(sum[row][s], weight, _mm512_set1_epi32(four));
      }
    }
  }
  for (std::size_t row = 0; row < kRows; ++row) {
    const __m512i first = kSlices == 1 ? sum[row][0] : joined(sum[row][0], sum[row][kSlices > 1]);
    __m512d low = low_half(first);
    __m512d high = high_half(first);
    if constexpr (kSlices > 2) {
      const __m512i second =
          kSlices == 3 ? sum[row][2] : joined(sum[row][2], sum[row][kSlices - 1]);
      const __m512d weight = _mm512_set1_pd(65536.0);
      low = _mm512_fmadd_pd(low_half(second), weight, low);
      high = _mm512_fmadd_pd(high_half(second), weight, high);
    }
    add_values(low, high, scales, block.factors[first_row + row],
               sums + (first_row + row) * kPanelColumns);
  }
}

template <std::size_t kRows>
void dot_rows(const SliceBlock& block, std::size_t steps, std::size_t rows, std::size_t first_row,
              const std::uint8_t* weights, const double* scales, double* sums) {
  switch (block.slices) {
    case 0:
      return;
    case 1:
      return dot_block<kRows, 1>(block, steps, rows, first_row, weights, scales, sums);
    case 2:
      return dot_block<kRows, 2>(block, steps, rows, first_row, weights, scales, sums);
    case 3:
      return dot_block<kRows, 3>(block, steps, rows, first_row, weights, scales, sums);
    default:
      return dot_block<kRows, 4>(block, steps, rows, first_row, weights, scales, sums);
  }
}

void dot(const SliceBlock* blocks, std::size_t count, std::size_t steps, std::size_t rows,
         const std::uint8_t* weights, const double* scales, double* sums) {
  constexpr std::size_t kGroup = 4;
  for (std::size_t b = 0; b < count; ++b) {
    const std::uint8_t* block_weights = weights + b * steps * kPanelColumns * kSliceStep;
    const double* block_scales = scales + b * kPanelColumns;
    for (std::size_t row = 0; row < rows; row += kGroup) {
      switch (rows - row) {
        case 1:
          dot_rows<1>(blocks[b], steps, rows, row, block_weights, block_scales, sums);
          break;
        case 2:
          dot_rows<2>(blocks[b], steps, rows, row, block_weights, block_scales, sums);
          break;
        case 3:
          dot_rows<3>(blocks[b], steps, rows, row, block_weights, block_scales, sums);
          break;
        default:
          dot_rows<4>(blocks[b], steps, rows, row, block_weights, block_scales, sums);
      }
    }
  }
}

}  // namespace

extern const SliceKernels slice_kernels;
const SliceKernels slice_kernels{decode, dot};

}  // namespace moeref::simd::avx512vnni
