// Sums of whole numbers, a panel of outputs at a time; compiled once per instruction set like
// kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>
#include <limits>

#include "simd/byte_products.hpp"
#include "simd/code_columns.hpp"
#include "simd/slices_loops.hpp"

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

/// One block of one row.
template <std::size_t kSlices, std::size_t kSteps, std::size_t kPanels>
inline void dot_block(const std::int8_t* digits, const std::int32_t* starts, double factor,
                      const SlicePanel* panels, std::size_t block, std::size_t column,
                      F64 (&sums)[kPanels][2]) {
  constexpr std::size_t kSums = kSlices * kPanels;
  constexpr std::size_t kChains = !kLongLatency ? 1 : kSums == 1 ? 4 : kSums < 4 ? 2 : 1;
  constexpr std::size_t kChainSteps = kSteps / kChains;
  constexpr std::size_t kSecond =
      slice_groups(kSlices) == 1 ? kSlices : slices_of_group(kSlices, 0);
  using Sums = ByteSums<kChainSteps>;
  Sums slices[kPanels][kSlices][kChains];
  unrolled<kSlices>([&](auto s) {
    const Sums first(s == 0 ? starts[0] : s == kSecond ? starts[1] : 0);
    unrolled<kPanels>([&](auto p) {
      slices[p][s][0] = first;
      unrolled<kChains - 1>([&](auto chain) { slices[p][s][chain + 1] = Sums(0); });
    });
  });
  unrolled<kSteps>([&](auto step) {
    U32 weight[kPanels];
    const std::size_t at = ((block * kSteps + step) * kPanelColumns + column) * kSliceStep;
    unrolled<kPanels>([&](auto p) {
      weight[p] = load_words(reinterpret_cast<const std::byte*>(panels[p].weights + at));
    });
    unrolled<kSlices>([&](auto s) {
      std::uint32_t four;
      __builtin_memcpy(&four, digits + (s * kSteps + step) * kSliceStep, 4);
      unrolled<kPanels>([&](auto p) {
        slices[p][s][step / kChainSteps].add(step % kChainSteps, weight[p], U32(four));
      });
    });
  });
  unrolled<kPanels>([&](auto p) {
    F64 total[2];
    unrolled<slice_groups(kSlices)>([&](auto group) {
      U32 sum;
      unrolled<slices_of_group(kSlices, group)>([&](auto i) {
        constexpr std::size_t kSlice = slices_of_group(kSlices, 0) * group + i;
        U32 slice = slices[p][kSlice][0].total();
        unrolled<kChains - 1>(
            [&](auto chain) { slice = slice + slices[p][kSlice][chain + 1].total(); });
        sum = i == 0 ? slice : sum + (slice << (8 * i));
      });
      F64 wide[2];
      widen_signed(sum, wide);
      unrolled<2>([&](auto half) {
        total[half] =
            group == 0 ? wide[half] : multiply_add(wide[half], F64(kSecondGroup), total[half]);
      });
    });
    const double* scales = panels[p].scales + block * kPanelColumns + column;
    unrolled<2>([&](auto half) {
      const F64 scale = F64::load_unaligned(scales + half * kLanes) * F64(factor);
      sums[p][half] = multiply_add(total[half], scale, sums[p][half]);
    });
  });
}

template <std::size_t kSlices, std::size_t kSteps, std::size_t kPanels>
inline void dot_blocks(SliceRow& row, const SlicePanel* panels, std::size_t column,
                       F64 (&sums)[kPanels][2]) {
  for (std::size_t n = row.counts[kSlices - 1]; n > 0; --n) {
    dot_block<kSlices, kSteps>(row.digits, row.starts, *row.factors++, panels, *row.blocks++,
                               column, sums);
    row.digits += kSlices * kSteps * kSliceStep;
    row.starts += slice_groups(kSlices);
  }
}

/// kWordLanes columns from `column` on.
template <std::size_t kSteps, std::size_t kPanels>
MOEREF_ALL_INLINE void dot_columns(SliceRow row, const SlicePanel* panels, std::size_t column) {
  F64 sums[kPanels][2];
  const auto out = [&](std::size_t p, std::size_t half) {
    return panels[p].sums + column + half * kLanes;
  };
  unrolled<kPanels>([&](auto p) {
    unrolled<2>([&](auto half) { sums[p][half] = F64::load_unaligned(out(p, half)); });
  });
  dot_blocks<1, kSteps>(row, panels, column, sums);
  dot_blocks<2, kSteps>(row, panels, column, sums);
  dot_blocks<3, kSteps>(row, panels, column, sums);
  dot_blocks<4, kSteps>(row, panels, column, sums);
  dot_blocks<5, kSteps>(row, panels, column, sums);
  unrolled<kPanels>([&](auto p) {
    unrolled<2>([&](auto half) { sums[p][half].store_unaligned(out(p, half)); });
  });
}

template <std::size_t kSteps, std::size_t kPanels>
void dot_panels(const SliceRow& row, const SlicePanel* panels) {
  for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
    dot_columns<kSteps, kPanels>(row, panels, column);
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

void decode(const PanelCodes& codes, std::size_t k, std::uint8_t* weights) {
  const auto store = [](U32 bytes, std::uint8_t* to) {
    bytes.store_unaligned(reinterpret_cast<std::uint32_t*>(to));
  };
  for (std::size_t i = 0; i < k; i += 32) {
    for (std::size_t column = 0; column < kPanelColumns; column += kWordLanes) {
      U32 words[4];
      load_words(codes.columns + column, i / 2, words);
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
const SliceKernels slice_kernels{kMostLongRows, slice_cut, decode, dot};

}  // namespace moeref::simd::MOEREF_ISA
