// One source for every instruction set, as kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

#include "simd/kernels.hpp"
#include "simd/matrix_loops.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

using F32 = xsimd::batch<float, MOEREF_ARCH>;
using I32 = xsimd::batch<std::int32_t, MOEREF_ARCH>;
using U32 = xsimd::batch<std::uint32_t, MOEREF_ARCH>;
using Bool32 = xsimd::batch_bool<float, MOEREF_ARCH>;
constexpr std::size_t kLanes = F32::size;
constexpr std::size_t kBatches = kPanelColumns / kLanes;
/// Rows that share the loads of a column.
constexpr std::size_t kRowBlock = kLanes == 4 ? 1 : 2;

inline U32 bits_of(F32 x) { return xsimd::bitwise_cast<U32>(x); }
inline F32 as_float(U32 bits) { return xsimd::bitwise_cast<F32>(bits); }
inline I32 as_int(U32 bits) { return xsimd::bitwise_cast<I32>(bits); }
inline U32 as_bits(I32 x) { return xsimd::bitwise_cast<U32>(x); }
inline F32 choose(Bool32 condition, F32 yes, F32 no) { return xsimd::select(condition, yes, no); }

/// The lanes of batch number `batch` as bits of 16 columns.
inline std::uint16_t lanes_of(Bool32 condition, std::size_t batch) {
  alignas(64) float flags[kLanes];
  choose(condition, F32(1.0f), F32(0.0f)).store_unaligned(flags);
  unsigned bits = 0;
  for (std::size_t j = 0; j < kLanes; ++j) {
    bits |= (flags[j] != 0.0f ? 1u : 0u) << (batch * kLanes + j);
  }
  return static_cast<std::uint16_t>(bits);
}

/// products + addend, a sum of up to 33 bits, toward zero to the 24 bits of an f32.
inline F32 toward_zero(I32 products, I32 addend) {
  const I32 half = (products >> 1) + (addend >> 1) + (products & addend & I32(1));
  const I32 sign = half >> 31;
  const U32 magnitude = as_bits(((products + addend) ^ sign) - sign);
  const F32 high = xsimd::to_float(as_int(magnitude >> 8)) * F32(256.0f);
  const F32 low = xsimd::to_float(as_int(magnitude & U32(0xFFu)));
  const F32 nearest = high + low;
  const F32 above = choose(nearest - high > low, as_float(U32(1u)), F32(0.0f));
  return as_float((bits_of(nearest) - bits_of(above)) | (as_bits(sign) & U32(0x8000'0000u)));
}

template <std::size_t Rows>
void step_rows(const FusedStep& step, const StepOperands& operands, std::size_t row,
               std::size_t batch, float* c, std::uint16_t* outside) {
  const float* values = operands.row_values + row * operands.row_stride;
  const float* powers = operands.row_powers + row * operands.row_stride;
  const float* column_values = operands.column_values + batch * kLanes;
  const float* column_powers = operands.column_powers + batch * kLanes;
  const F32 lowest(0x1p-100f);
  F32 sums[Rows];
  F32 largest[Rows];
  for (std::size_t r = 0; r < Rows; ++r) {
    sums[r] = F32::load_unaligned(c + (row + r) * kPanelColumns + batch * kLanes);
    largest[r] = as_float(bits_of(sums[r]) & U32(0x7F80'0000u));
  }
  for (std::size_t k = 0; k < step.terms; ++k) {
    const F32 column = F32::load_unaligned(column_powers + k * kPanelColumns);
    for (std::size_t r = 0; r < Rows; ++r) {
      largest[r] = xsimd::max(largest[r], F32(powers[r * operands.row_stride + k]) * column);
    }
  }
  F32 scale[Rows];
  I32 total[Rows];
  for (std::size_t r = 0; r < Rows; ++r) {
    const Bool32 is_outside =
        ((largest[r] < lowest) & (sums[r] != F32(0.0f))) | !(largest[r] <= F32(0x1p120f));
    if (xsimd::any(is_outside)) outside[row + r] |= lanes_of(is_outside, batch);
    largest[r] = xsimd::max(largest[r], lowest);
    scale[r] = as_float(U32(static_cast<std::uint32_t>(254 + step.fraction_bits) << 23) -
                        bits_of(largest[r]));
    total[r] = I32(0);
  }
  for (std::size_t k = 0; k < step.terms; ++k) {
    const F32 column = F32::load_unaligned(column_values + k * kPanelColumns);
    for (std::size_t r = 0; r < Rows; ++r) {
      const F32 product = F32(values[r * operands.row_stride + k]) * column;
      total[r] = total[r] + xsimd::to_int(product * scale[r]);
    }
  }
  for (std::size_t r = 0; r < Rows; ++r) {
    const F32 unit =
        as_float(bits_of(largest[r]) - U32(static_cast<std::uint32_t>(step.fraction_bits) << 23));
    const I32 cut = xsimd::to_int(sums[r] * scale[r]);
    F32 sum;
    if (step.e8m13) {
      sum = as_float(bits_of(xsimd::to_float(total[r] + cut) * unit) & U32(0xFFFF'FC00u));
    } else {
      sum = toward_zero(total[r], cut) * unit;
    }
    const std::uint16_t kept = outside[row + r];
    float* out = c + (row + r) * kPanelColumns + batch * kLanes;
    if ((kept >> (batch * kLanes)) == 0) {
      sum.store_unaligned(out);
      continue;
    }
    alignas(64) float all[kLanes];
    sum.store_unaligned(all);
    for (std::size_t j = 0; j < kLanes; ++j) {
      if ((kept >> (batch * kLanes + j) & 1) == 0) out[j] = all[j];
    }
  }
}

void fused_step(const FusedStep& step, const StepOperands& operands, float* c,
                std::uint16_t* outside) {
  for (std::size_t row = 0; row < operands.rows; ++row) outside[row] = 0;
  std::size_t row = 0;
  for (; row + kRowBlock <= operands.rows; row += kRowBlock) {
    for (std::size_t b = 0; b < kBatches; ++b) {
      step_rows<kRowBlock>(step, operands, row, b, c, outside);
    }
  }
  for (; row < operands.rows; ++row) {
    for (std::size_t b = 0; b < kBatches; ++b) step_rows<1>(step, operands, row, b, c, outside);
  }
}

}  // namespace

extern const MatrixKernels matrix_kernels;
const MatrixKernels matrix_kernels{fused_step, join, powers};

}  // namespace moeref::simd::MOEREF_ISA
