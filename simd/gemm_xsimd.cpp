// The exact GEMM's inner loops; compiled once per instruction set like kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>

#include "simd/code_columns.hpp"
#include "simd/code_surveys.hpp"
#include "simd/code_values.hpp"
#include "simd/gemm_loops.hpp"
#include "simd/lanes_f64.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

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

template <PanelCode kType, bool kScaled, int n>
inline void decode_codes(const CodeWords<kType>& words, const F64 (&factors)[2], double* out) {
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

template <PanelCode kType, bool kScaled>
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
        decode_codes<kType, kScaled, 0>(CodeWords<kType>(words[word]), factors,
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
    case PanelCode::e2m1:
      return scaled ? decode_typed<PanelCode::e2m1, true>(codes, k, panel)
                    : decode_typed<PanelCode::e2m1, false>(codes, k, panel);
    case PanelCode::e4m3:
      return scaled ? decode_typed<PanelCode::e4m3, true>(codes, k, panel)
                    : decode_typed<PanelCode::e4m3, false>(codes, k, panel);
    case PanelCode::e8m0:
      return decode_typed<PanelCode::e8m0, false>(codes, k, panel);
    case PanelCode::bf16:
      return scaled ? decode_typed<PanelCode::bf16, true>(codes, k, panel)
                    : decode_typed<PanelCode::bf16, false>(codes, k, panel);
    case PanelCode::f16:
      return scaled ? decode_typed<PanelCode::f16, true>(codes, k, panel)
                    : decode_typed<PanelCode::f16, false>(codes, k, panel);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels{kRowBlock, dot,         decode,           magnitudes,
                               squares,   gemm_window, gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::MOEREF_ISA
