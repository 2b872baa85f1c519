#pragma once

#include "simd/code_columns.hpp"
#include "simd/code_values.hpp"

// What the codes of the columns of a panel have in common, all columns side by side. For the files
// that are compiled once per instruction set.

namespace moeref::simd::MOEREF_ISA {
namespace {

#if defined(__AVX512F__)
inline U32 less(std::uint8_t, U32 a, U32 b) { return _mm512_sub_epi8(a, b); }
inline U32 less(std::uint16_t, U32 a, U32 b) { return _mm512_sub_epi16(a, b); }
inline U32 smaller(std::uint8_t, U32 a, U32 b) { return _mm512_min_epu8(a, b); }
inline U32 smaller(std::uint16_t, U32 a, U32 b) { return _mm512_min_epu16(a, b); }
inline U32 larger(std::uint8_t, U32 a, U32 b) { return _mm512_max_epu8(a, b); }
inline U32 larger(std::uint16_t, U32 a, U32 b) { return _mm512_max_epu16(a, b); }
#elif defined(__AVX2__)
inline U32 less(std::uint8_t, U32 a, U32 b) { return _mm256_sub_epi8(a, b); }
inline U32 less(std::uint16_t, U32 a, U32 b) { return _mm256_sub_epi16(a, b); }
inline U32 smaller(std::uint8_t, U32 a, U32 b) { return _mm256_min_epu8(a, b); }
inline U32 smaller(std::uint16_t, U32 a, U32 b) { return _mm256_min_epu16(a, b); }
inline U32 larger(std::uint8_t, U32 a, U32 b) { return _mm256_max_epu8(a, b); }
inline U32 larger(std::uint16_t, U32 a, U32 b) { return _mm256_max_epu16(a, b); }
#elif defined(__x86_64__)
inline U32 less(std::uint8_t, U32 a, U32 b) { return _mm_sub_epi8(a, b); }
inline U32 less(std::uint16_t, U32 a, U32 b) { return _mm_sub_epi16(a, b); }
inline U32 smaller(std::uint8_t, U32 a, U32 b) { return _mm_min_epu8(a, b); }
inline U32 smaller(std::uint16_t, U32 a, U32 b) { return _mm_min_epu16(a, b); }
inline U32 larger(std::uint8_t, U32 a, U32 b) { return _mm_max_epu8(a, b); }
inline U32 larger(std::uint16_t, U32 a, U32 b) { return _mm_max_epu16(a, b); }
#else
inline uint8x16_t lanes(std::uint8_t, U32 a) { return vreinterpretq_u8_u32(a); }
inline uint16x8_t lanes(std::uint16_t, U32 a) { return vreinterpretq_u16_u32(a); }
inline U32 words(uint8x16_t a) { return vreinterpretq_u32_u8(a); }
inline U32 words(uint16x8_t a) { return vreinterpretq_u32_u16(a); }
inline U32 less(std::uint8_t c, U32 a, U32 b) { return words(vsubq_u8(lanes(c, a), lanes(c, b))); }
inline U32 less(std::uint16_t c, U32 a, U32 b) {
  return words(vsubq_u16(lanes(c, a), lanes(c, b)));
}
inline U32 smaller(std::uint8_t c, U32 a, U32 b) {
  return words(vminq_u8(lanes(c, a), lanes(c, b)));
}
inline U32 smaller(std::uint16_t c, U32 a, U32 b) {
  return words(vminq_u16(lanes(c, a), lanes(c, b)));
}
inline U32 larger(std::uint8_t c, U32 a, U32 b) {
  return words(vmaxq_u8(lanes(c, a), lanes(c, b)));
}
inline U32 larger(std::uint16_t c, U32 a, U32 b) {
  return words(vmaxq_u16(lanes(c, a), lanes(c, b)));
}
#endif

/// The same number in every lane.
template <typename Code>
U32 spread_code(std::uint32_t value) {
  return U32(sizeof(Code) == 1 ? (value & 0xFFu) * 0x0101'0101u : (value & 0xFFFFu) * 0x1'0001u);
}

/// take(words, seen) for `bytes` bytes of kWordLanes columns, kCodeUnit at a time; the first `seen`
/// of the last ones come for the second time. Fewer than kCodeUnit are filled up by fill(column,
/// copy).
template <typename Take, typename Fill>
inline void for_each_unit(const std::byte* const* columns, std::size_t bytes, Take take,
                          Fill fill) {
  U32 words[4];
  if (bytes < kCodeUnit) {
    std::byte copies[kWordLanes][kCodeUnit] = {};
    const std::byte* copied[kWordLanes];
    for (std::size_t j = 0; j < kWordLanes; ++j) {
      fill(columns[j], copies[j]);
      copied[j] = copies[j];
    }
    load_words(copied, 0, words);
    return take(words, 0);
  }
  std::size_t at = 0;
  for (; at + kCodeUnit <= bytes; at += kCodeUnit) {
    load_words(columns, at, words);
    take(words, 0);
  }
  if (at == bytes) return;
  load_words(columns, bytes - kCodeUnit, words);
  take(words, at + kCodeUnit - bytes);
}

template <typename Code>
void magnitudes_of(std::uint32_t mask, bool skips_zero, const std::byte* const* columns,
                   std::size_t count, Magnitudes (&found)[kPanelColumns]) {
  constexpr Code kCode{};
  const std::uint32_t one = skips_zero ? 1 : 0;  // one less, so that zero is above everything
  const U32 ones = spread_code<Code>(one);
  const U32 masks = spread_code<Code>(mask);
  for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
    U32 least(~0u);
    U32 most(0u);
    U32 bits(0u);
    const auto take = [&](const U32(&words)[4], std::size_t) {
      for (const U32 word : words) {
        const U32 sizes = word & masks;
        least = smaller(kCode, least, less(kCode, sizes, ones));
        most = larger(kCode, most, sizes);
        bits = bits | sizes;
      }
    };
    const auto fill = [&](const std::byte* codes, std::byte* copy) {
      const std::size_t bytes = count * sizeof(Code);
      for (std::size_t i = 0; i < kCodeUnit; i += sizeof(Code)) {
        __builtin_memcpy(copy + i, codes + i % bytes, sizeof(Code));
      }
    };
    for_each_unit(columns + column, count * sizeof(Code), take, fill);
    for (int width = 16; width >= static_cast<int>(8 * sizeof(Code)); width /= 2) {
      least = smaller(kCode, least, least >> width);
      most = larger(kCode, most, most >> width);
      bits = bits | bits >> width;
    }
    const U32 code(static_cast<Code>(~0u));
    std::uint32_t sizes[3][kWordLanes];
    ((least & code) + U32(one)).store_unaligned(sizes[0]);
    (most & code).store_unaligned(sizes[1]);
    (bits & code).store_unaligned(sizes[2]);
    for (std::size_t j = 0; j < kWordLanes; ++j) {
      found[column + j] = {sizes[0][j], sizes[1][j], sizes[2][j]};
    }
  }
}

void magnitudes(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                const std::byte* const* columns, std::size_t count,
                Magnitudes (&found)[kPanelColumns]) {
  if (count == 0) {
    for (Magnitudes& none : found) none = {~0u, 0, 0};
  } else if (bytes == 1) {
    magnitudes_of<std::uint8_t>(mask, skips_zero, columns, count, found);
  } else {
    magnitudes_of<std::uint16_t>(mask, skips_zero, columns, count, found);
  }
}

template <PanelCode kType, int n = 0>
inline void add_squares(const CodeWords<kType>& words, F64 (&sums)[2]) {
  if constexpr (n < kCodesOfWord<kType>) {
    F64 wide[2];
    widen(value_of<kType, n>(words), wide);
    for (std::size_t half = 0; half < 2; ++half) {
      sums[half] = multiply_add(wide[half], wide[half], sums[half]);
    }
    add_squares<kType, n + 1>(words, sums);
  }
}

template <PanelCode kType>
void squares_of(const std::byte* const* columns, std::size_t count, double* found) {
  const std::size_t bytes = count * kCodeUnit / codes_of_unit(kType);
  for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
    F64 sums[2] = {F64(0.0), F64(0.0)};
    const auto take = [&](const U32(&words)[4], std::size_t seen) {
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t old = seen > 4 * i ? (seen - 4 * i < 4 ? seen - 4 * i : 4) : 0;
        const U32 fresh(old == 4 ? 0u : ~0u << (8 * old));
        add_squares<kType>(CodeWords<kType>(words[i] & fresh), sums);
      }
    };
    const auto fill = [&](const std::byte* codes, std::byte* copy) {
      for (std::size_t i = 0; i < bytes; ++i) copy[i] = codes[i];
    };
    for_each_unit(columns + column, bytes, take, fill);
    sums[0].store_unaligned(found + column);
    sums[1].store_unaligned(found + column + kLanes);
  }
}

void squares(PanelCode type, const std::byte* const* columns, std::size_t count, double* found) {
  switch (type) {
    case PanelCode::e4m3:
      return squares_of<PanelCode::e4m3>(columns, count, found);
    case PanelCode::e8m0:
      return squares_of<PanelCode::e8m0>(columns, count, found);
    case PanelCode::bf16:
      return squares_of<PanelCode::bf16>(columns, count, found);
    default:
      return squares_of<PanelCode::f16>(columns, count, found);
  }
}

}  // namespace
}  // namespace moeref::simd::MOEREF_ISA
