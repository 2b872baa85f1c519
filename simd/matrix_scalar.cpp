#include <bit>

#include "simd/kernels_scalar.hpp"
#include "simd/matrix_loops.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr std::uint32_t kExponentBits = 0x7F80'0000u;
constexpr float kLowest = 0x1p-100f;
constexpr float kLargest = 0x1p120f;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// products + addend, a sum of up to 33 bits, toward zero to the 24 bits of an f32.
float toward_zero(std::int32_t products, std::int32_t addend) {
  const std::int32_t half = (products >> 1) + (addend >> 1) + (products & addend & 1);
  const std::uint32_t sign = half < 0 ? ~0u : 0u;
  const std::uint32_t sum =
      static_cast<std::uint32_t>(products) + static_cast<std::uint32_t>(addend);
  const std::uint32_t magnitude = (sum ^ sign) - sign;
  const float high = static_cast<float>(static_cast<std::int32_t>(magnitude >> 8)) * 256.0f;
  const auto low = static_cast<float>(static_cast<std::int32_t>(magnitude & 0xFFu));
  const float nearest = high + low;
  const std::uint32_t above = nearest - high > low ? 1u : 0u;
  return from_bits((bits_of(nearest) - above) | (sign & 0x8000'0000u));
}

void fused_step(const FusedStep& step, const StepOperands& operands, float* c,
                std::uint16_t* outside) {
  const auto scale_bits = static_cast<std::uint32_t>(254 + step.fraction_bits) << 23;
  for (std::size_t row = 0; row < operands.rows; ++row) {
    const float* values = operands.row_values + row * operands.row_stride;
    const float* powers = operands.row_powers + row * operands.row_stride;
    float* sums = c + row * kPanelColumns;
    float largest[kPanelColumns];
    float addend[kPanelColumns];
    float scale[kPanelColumns];
    std::int32_t total[kPanelColumns] = {};
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      largest[j] = from_bits(bits_of(sums[j]) & kExponentBits);
    }
    for (std::size_t k = 0; k < step.terms; ++k) {
      const float* column = operands.column_powers + k * kPanelColumns;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        const float power = powers[k] * column[j];
        largest[j] = power > largest[j] ? power : largest[j];
      }
    }
    unsigned outside_row = 0;
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const bool is_outside =
          (largest[j] < kLowest && sums[j] != 0.0f) || !(largest[j] <= kLargest);
      outside_row |= (is_outside ? 1u : 0u) << j;
      addend[j] = is_outside ? 0.0f : sums[j];
      const float top = is_outside || largest[j] < kLowest ? kLowest : largest[j];
      scale[j] = is_outside ? 0.0f : from_bits(scale_bits - bits_of(top));
    }
    for (std::size_t k = 0; k < step.terms; ++k) {
      const float* column = operands.column_values + k * kPanelColumns;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        total[j] += static_cast<std::int32_t>(values[k] * column[j] * scale[j]);
      }
    }
    outside[row] = static_cast<std::uint16_t>(outside_row);
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      if ((outside_row >> j & 1u) != 0) continue;
      const float unit = 1.0f / scale[j];  // a power of two: exact
      const auto cut = static_cast<std::int32_t>(addend[j] * scale[j]);
      if (step.e8m13) {
        const float sum = static_cast<float>(total[j] + cut) * unit;
        sums[j] = from_bits(bits_of(sum) & 0xFFFF'FC00u);
      } else {
        sums[j] = toward_zero(total[j], cut) * unit;
      }
    }
  }
}

}  // namespace

const MatrixKernels matrix_kernels{fused_step, join, powers};

}  // namespace moeref::simd::scalar
