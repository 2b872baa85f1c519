// The exact GEMM's inner loops; compiled once per instruction set like kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>

#include "simd/gemm_loops.hpp"
#include "simd/lanes16.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

using F64 = xsimd::batch<double, MOEREF_ARCH>;
constexpr std::size_t kLanes = F64::size;

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

/// a * b + c. xsimd 8.1 has no fused one for AVX-512; where there is one, fused or not is the same
/// for exact sums.
inline F64 multiply_add(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__x86_64__)
  return c + a * b;
#else
  return vfmaq_f64(c, a, b);
#endif
}

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

// A unit of codes: 16 bytes of each column, transposed so that 32-bit word number d of the columns
// lies side by side.

#if defined(__AVX512F__)
using Words = __m512i;
inline Words load_columns(const std::byte* const* columns, std::size_t offset) {
  const auto at = [&](std::size_t column) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[column] + offset));
  };
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
inline Words load_columns(const std::byte* const* columns, std::size_t offset) {
  const auto at = [&](std::size_t column) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[column] + offset));
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(4), 1);
}
inline Words low_words(Words a, Words b) { return _mm256_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm256_unpackhi_epi32(a, b); }
inline Words low_pairs(Words a, Words b) { return _mm256_unpacklo_epi64(a, b); }
inline Words high_pairs(Words a, Words b) { return _mm256_unpackhi_epi64(a, b); }
#elif defined(__x86_64__)
using Words = __m128i;
inline Words load_columns(const std::byte* const* columns, std::size_t offset) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[0] + offset));
}
inline Words low_words(Words a, Words b) { return _mm_unpacklo_epi32(a, b); }
inline Words high_words(Words a, Words b) { return _mm_unpackhi_epi32(a, b); }
inline Words low_pairs(Words a, Words b) { return _mm_unpacklo_epi64(a, b); }
inline Words high_pairs(Words a, Words b) { return _mm_unpackhi_epi64(a, b); }
#else
using Words = uint32x4_t;
inline Words load_columns(const std::byte* const* columns, std::size_t offset) {
  return vreinterpretq_u32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(columns[0] + offset)));
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

/// The four words of kWordLanes columns.
inline void load_words(const std::byte* const* columns, std::size_t offset, U32 (&words)[4]) {
  const Words a = load_columns(columns, offset);
  const Words b = load_columns(columns + 1, offset);
  const Words c = load_columns(columns + 2, offset);
  const Words d = load_columns(columns + 3, offset);
  const Words ab_low = low_words(a, b);
  const Words cd_low = low_words(c, d);
  const Words ab_high = high_words(a, b);
  const Words cd_high = high_words(c, d);
  words[0] = low_pairs(ab_low, cd_low);
  words[1] = high_pairs(ab_low, cd_low);
  words[2] = low_pairs(ab_high, cd_high);
  words[3] = high_pairs(ab_high, cd_high);
}

/// Numbers whose exponent and fraction bits begin at `shift` of an f32 under a bias of their own:
/// `bits` is (magnitude << shift) + (difference of the biases << 23), `unit` the smallest normal
/// number and the bits of one step of the exponent.
inline U32 with_subnormals(U32 bits, float smallest, std::uint32_t step) {
  const F32 normal = as_float(bits);
  const F32 subnormal = as_float(bits + U32(step)) - F32(smallest);
  return as_bits(xsimd::select(normal < F32(smallest), subnormal, normal));
}

/// Value number `n` of words of codes.
template <CodeType kType, int n>
inline F32 value_of(U32 words) {
  const U32 sign(0x8000'0000u);
  if constexpr (kType == CodeType::e2m1) {
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
  if constexpr (kType == CodeType::e4m3) {
    const U32 bits = (((words >> (8 * n)) & U32(0x7Fu)) << 20) + U32(120u << 23);
    return as_float(with_subnormals(bits, 0x1p-6f, 1u << 23) | ((words << (24 - 8 * n)) & sign));
  }
  if constexpr (kType == CodeType::bf16) {
    return as_float(n == 0 ? words << 16 : words & U32(0xFFFF'0000u));
  }
  return f16_values(n == 0 ? words & U32(0xFFFFu) : words >> 16);
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

template <CodeType kType>
constexpr int kCodesOfWord = kType == CodeType::e2m1   ? 8
                             : kType == CodeType::e4m3 ? 4
                                                       : 2;

template <CodeType kType, bool kScaled, int n>
inline void decode_codes(U32 words, const F64 (&factors)[2], double* out) {
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

template <CodeType kType, bool kScaled>
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
      load_words(codes.columns + column, offset, words);
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
        decode_codes<kType, kScaled, 0>(words[word], factors,
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
    case CodeType::e2m1:
      return scaled ? decode_typed<CodeType::e2m1, true>(codes, k, panel)
                    : decode_typed<CodeType::e2m1, false>(codes, k, panel);
    case CodeType::e4m3:
      return scaled ? decode_typed<CodeType::e4m3, true>(codes, k, panel)
                    : decode_typed<CodeType::e4m3, false>(codes, k, panel);
    case CodeType::bf16:
      return scaled ? decode_typed<CodeType::bf16, true>(codes, k, panel)
                    : decode_typed<CodeType::bf16, false>(codes, k, panel);
    case CodeType::f16:
      return scaled ? decode_typed<CodeType::f16, true>(codes, k, panel)
                    : decode_typed<CodeType::f16, false>(codes, k, panel);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels{kRowBlock,        dot,        decode, gemm_magnitudes, gemm_window,
                               gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::MOEREF_ISA
