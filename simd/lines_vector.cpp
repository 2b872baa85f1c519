// Sums of whole numbers along weight rows; compiled once per instruction set like
// kernels_xsimd.cpp.
#include "simd/lines.hpp"

#include "simd/byte_products.hpp"
#include "simd/code_values.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

constexpr std::size_t kVectorBytes = 4 * kWordLanes;
/// Blocks whose sums fill a vector of words.
constexpr std::size_t kUnitBlocks = kWordLanes;
/// Weight rows that read the digits once.
constexpr std::size_t kLines = 2;
/// Columns between them: each passes over as many rows in the order of memory.
constexpr std::size_t kApart = kPanelColumns / kLines;
/// Columns between those that are summed and those that are brought into the cache meanwhile.
constexpr std::size_t kAhead = 2;

/// sum + kUnit * in each 128 bits: the sums of the two pairs of a, then of b. All are 16-bit
/// numbers.
template <std::int16_t kUnit>
inline U32 add_short_pairs(U32 sum, U32 a, U32 b) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(a, b), _mm512_set1_epi16(kUnit));
#elif defined(__AVX512F__)
  return sum + U32(_mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(kUnit)));
#elif defined(__AVX2__)
  return sum + U32(_mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(kUnit)));
#elif defined(__x86_64__)
  return sum + U32(_mm_madd_epi16(_mm_packs_epi32(a, b), _mm_set1_epi16(kUnit)));
#else
  return vmlaq_n_u32(sum, vpaddq_u32(a, b), kUnit);
#endif
}

/// What add_short_pairs made of the sums of a unit: sums of the blocks in their order.
inline U32 block_sums(const U32 (&halves)[1]) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15), halves[0]);
#elif defined(__AVX2__)
  return _mm256_permute4x64_epi64(halves[0], 0b11'01'10'00);
#else
  return halves[0];
#endif
}
inline U32 block_sums(const U32 (&quarters)[2]) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
  const __m512i odd = _mm512_setr_epi32(1, 5, 9, 13, 3, 7, 11, 15, 17, 21, 25, 29, 19, 23, 27, 31);
  return U32(_mm512_permutex2var_epi32(quarters[0], even, quarters[1])) +
         U32(_mm512_permutex2var_epi32(quarters[0], odd, quarters[1]));
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(quarters[0], quarters[1]),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#elif defined(__x86_64__)
  return _mm_hadd_epi32(quarters[0], quarters[1]);
#else
  return vpaddq_u32(quarters[0], quarters[1]);
#endif
}

/// kLanes bytes as 64-bit integers.
inline U64 load_bytes_wide(const std::byte* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepu8_epi64(_mm_loadu_si32(from));
#elif defined(__x86_64__)
  return _mm_cvtepu8_epi64(_mm_loadu_si16(from));
#else
  const std::uint64_t both[2] = {std::to_integer<std::uint64_t>(from[0]),
                                 std::to_integer<std::uint64_t>(from[1])};
  return vld1q_u64(both);
#endif
}

/// factors * scales of kUnitBlocks blocks.
template <PanelCode kScale>
inline void scale_factors(const double* factors, const std::byte* scales, F64 (&scaled)[2]) {
  F64 wide[2];
  if constexpr (kScale == PanelCode::e4m3) {
    widen(value_of<kScale, 0>(CodeWords<kScale>(load_bytes(scales))), wide);
  }
  unrolled<2>([&](auto half) {
    const F64 factor = F64::load_unaligned(factors + half * kLanes);
    if constexpr (kScale == PanelCode::e4m3) {
      scaled[half] = factor * wide[half];
    } else {
      // Both are powers of two: their exponents add.
      const U64 exponents = load_bytes_wide(scales + half * kLanes) << 52;
      scaled[half] = xsimd::bitwise_cast<F64>(xsimd::bitwise_cast<U64>(factor) + exponents -
                                              U64(127ull << 52));
    }
  });
}

/// Where some weight rows have the blocks that come next, and how many bytes are left of each.
struct LineBlocks {
  const std::byte* codes[kLines];
  std::uintptr_t later[kLines];  ///< the same blocks of rows that are read soon
  const std::byte* scales[kLines];
  std::size_t code_bytes;
  std::size_t scale_bytes;
};

/// `count` bytes and then zeros.
inline U32 load_some(const std::byte* from, std::size_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_epi8((1ull << count) - 1, from);
#else
  alignas(kVectorBytes) std::byte some[kVectorBytes] = {};
  for (std::size_t i = 0; i < kVectorBytes && i < count; ++i) some[i] = from[i];
  return load_words(some);
#endif
}

/// The vector of codes that lies `offset` bytes on; of a unit that is not whole, what there is.
template <bool kWhole>
inline U32 load_codes(const LineBlocks& blocks, std::size_t line, std::size_t offset) {
  const std::byte* from = blocks.codes[line] + offset;
  if (kWhole || offset + kVectorBytes <= blocks.code_bytes) return load_words(from);
  return offset < blocks.code_bytes ? load_some(from, blocks.code_bytes - offset) : U32(0u);
}

/// Adds the products of kUnitBlocks blocks, of which the first is number `first` of the chunk.
template <std::size_t kSlices, std::size_t kBlockCols, PanelCode kScale, bool kWhole>
inline void add_unit(const LineChunk& chunk, std::size_t first, const LineBlocks& blocks,
                     F64 (&sums)[kLines][2]) {
  constexpr std::size_t kQuads = kBlockCols / 16;              // of vectors of codes, two each
  constexpr std::size_t kHalf = kLineBlocks * kBlockCols / 2;  // even or odd columns of a chunk
  constexpr std::size_t kGroups = slice_groups(kSlices);
  U32 words[kLines][kGroups][kQuads];
  const auto* digits = reinterpret_cast<const std::byte*>(chunk.digits) + first * kBlockCols / 2;
  unrolled<kQuads>([&](auto quad) {
    U32 totals[kLines][kSlices][2];
    unrolled<2>([&](auto i) {
      constexpr std::size_t kOffset = (2 * quad + i) * kVectorBytes;
      U32 even[kLines];
      U32 odd[kLines];
      unrolled<kLines>([&](auto line) {
        split_nibbles(load_codes<kWhole>(blocks, line, kOffset), even[line], odd[line]);
      });
      unrolled<kSlices>([&](auto s) {
        const std::byte* at = digits + 2 * s * kHalf + kOffset;
        const U32 even_digits = load_words(at);
        const U32 odd_digits = load_words(at + kHalf);
        unrolled<kLines>([&](auto line) {
          ByteSums<2> sum(0);
          sum.add(0, even[line], even_digits);
          sum.add(1, odd[line], odd_digits);
          totals[line][s][i] = sum.total();
        });
      });
    });
    unrolled<kLines>([&](auto line) {
      unrolled<kGroups>([&](auto group) {
        constexpr std::size_t kFirst = slices_of_group(kSlices, 0) * group;
        constexpr std::size_t kCount = slices_of_group(kSlices, group);
        // Eight products of at most 24 * 128: 16-bit numbers.
        U32 sum(0u);
        unrolled<kCount>([&](auto i) {
          constexpr std::size_t kSlice = kCount - 1 - i;  // in the group
          constexpr std::int16_t kUnit = kSlice == 1 ? 256 : 1;
          const U32(&total)[2] = totals[line][kFirst + kSlice];
          sum = add_short_pairs<kUnit>(kSlice == 1 ? sum << 16 : sum, total[0], total[1]);
        });
        words[line][group][quad] = sum;
      });
    });
  });
  unrolled<kLines>([&](auto line) {
    F64 totals[2];
    unrolled<kGroups>([&](auto group) {
      const auto* starts =
          reinterpret_cast<const std::byte*>(chunk.starts + group * kLineBlocks + first);
      F64 wide[2];
      widen_signed(block_sums(words[line][group]) + load_words(starts), wide);
      unrolled<2>([&](auto half) {
        totals[half] =
            group == 0 ? wide[half] : multiply_add(wide[half], F64(kSecondGroup), totals[half]);
      });
    });
    const std::byte* scales = blocks.scales[line];
    alignas(16) std::byte some_scales[16];
    if (!kWhole) {
      for (std::size_t i = 0; i < kUnitBlocks; ++i) {
        some_scales[i] = i < blocks.scale_bytes ? scales[i] : std::byte{0};
      }
      scales = some_scales;
    }
    F64 scaled[2];
    scale_factors<kScale>(chunk.factors + first, scales, scaled);
    unrolled<2>([&](auto half) {
      sums[line][half] = multiply_add(totals[half], scaled[half], sums[line][half]);
    });
  });
}

/// Brings what is read soon into the cache; it may lie beyond the end of all weights.
inline void prefetch(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + i), 0, 3);
  }
}

/// The part of a chunk that the rows have.
template <std::size_t kSlices, std::size_t kBlockCols, PanelCode kScale>
inline void add_chunk(const LineChunk& chunk, LineBlocks& blocks, F64 (&sums)[kLines][2]) {
  constexpr std::size_t kUnitBytes = kUnitBlocks * kBlockCols / 2;
  for (std::size_t first = 0; first < kLineBlocks && blocks.code_bytes > 0; first += kUnitBlocks) {
    for (const std::uintptr_t later : blocks.later) prefetch(later, kUnitBytes);
    if (blocks.code_bytes < kUnitBytes) {
      add_unit<kSlices, kBlockCols, kScale, false>(chunk, first, blocks, sums);
      blocks.code_bytes = 0;
      return;
    }
    add_unit<kSlices, kBlockCols, kScale, true>(chunk, first, blocks, sums);
    for (std::size_t line = 0; line < kLines; ++line) {
      blocks.codes[line] += kUnitBytes;
      blocks.later[line] += kUnitBytes;
      blocks.scales[line] += kUnitBlocks;
    }
    blocks.code_bytes -= kUnitBytes;
    blocks.scale_bytes -= kUnitBlocks;
  }
}

template <std::size_t kBlockCols, PanelCode kScale>
MOEREF_ALL_INLINE void dot_lines(const LineChunk* chunk, const LineWeights& weights,
                                 std::size_t column, double* out) {
  LineBlocks blocks{};
  // The next panel is thought to follow this one, and the next but one that.
  const auto address = [&](std::size_t j) {
    return reinterpret_cast<std::uintptr_t>(weights.codes[j]);
  };
  const std::size_t soon = (column + kAhead) % kApart;
  const std::uintptr_t panels = (column + kAhead) / kApart;
  for (std::size_t line = 0; line < kLines; ++line) {
    blocks.codes[line] = weights.codes[column + line * kApart];
    blocks.scales[line] = weights.scales[column + line * kApart];
    blocks.later[line] =
        address(soon + line * kApart) + panels * kPanelColumns * (address(1) - address(0));
  }
  blocks.code_bytes = (weights.cols + 1) / 2;
  blocks.scale_bytes = (weights.cols + kBlockCols - 1) / kBlockCols;
  F64 sums[kLines][2];
  unrolled<kLines>([&](auto line) { sums[line][0] = sums[line][1] = F64(0.0); });
  for (; blocks.code_bytes > 0; ++chunk) {
    switch (chunk->slices) {
      case 1:
        add_chunk<1, kBlockCols, kScale>(*chunk, blocks, sums);
        break;
      case 2:
        add_chunk<2, kBlockCols, kScale>(*chunk, blocks, sums);
        break;
      case 3:
        add_chunk<3, kBlockCols, kScale>(*chunk, blocks, sums);
        break;
      default:
        add_chunk<5, kBlockCols, kScale>(*chunk, blocks, sums);
    }
  }
  for (std::size_t line = 0; line < kLines; ++line) {
    out[line * kApart] = sum_lanes(sums[line][0] + sums[line][1]);
  }
}

template <std::size_t kBlockCols, PanelCode kScale>
void dot_panel(const LineChunk* chunks, const LineWeights& weights, double* sums) {
  for (std::size_t column = 0; column < kApart; ++column) {
    dot_lines<kBlockCols, kScale>(chunks, weights, column, sums + column);
  }
}

template <std::size_t kBlockCols>
void dot_blocks(const LineChunk* chunks, const LineWeights& weights, double* sums) {
  if (weights.scale_type == PanelCode::e8m0) {
    return dot_panel<kBlockCols, PanelCode::e8m0>(chunks, weights, sums);
  }
  dot_panel<kBlockCols, PanelCode::e4m3>(chunks, weights, sums);
}

void dot(const LineChunk* chunks, const LineWeights& weights, double* sums) {
  if (weights.block_cols == 32) return dot_blocks<32>(chunks, weights, sums);
  dot_blocks<16>(chunks, weights, sums);
}

}  // namespace

extern const LineKernels line_kernels;
const LineKernels line_kernels{dot};

}  // namespace moeref::simd::MOEREF_ISA
