#include <cmath>
#include <cstring>

#include "simd/gemm_loops.hpp"
#include "simd/kernels_scalar.hpp"

namespace moeref::simd::scalar {
namespace {

constexpr std::size_t kRowBlock = 4;

void dot(const double* a, std::size_t rows, const double* panel, std::size_t k, bool adds,
         double* sums) {
  for (std::size_t row = 0; row < rows; ++row) {
    double* out = sums + row * kPanelColumns;
    double sum[kPanelColumns] = {};
    for (std::size_t i = 0; i < k; ++i) {
      const double factor = a[i * rows + row];
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        sum[j] += factor * panel[i * kPanelColumns + j];
      }
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) out[j] = adds ? out[j] + sum[j] : sum[j];
  }
}

constexpr double kE2m1[16] = {0.0,  0.5,  1.0,  1.5,  2.0,  3.0,  4.0,  6.0,
                              -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0};

/// A number of `exponent_bits` and `fraction_bits` without a sign; no infinity.
double magnitude(std::uint32_t code, int fraction_bits, int bias) {
  const auto fraction = static_cast<int>(code & ((1u << fraction_bits) - 1));
  const int exponent = static_cast<int>(code >> fraction_bits);
  return exponent == 0
             ? std::ldexp(fraction, 1 - bias - fraction_bits)
             : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

double value_of(PanelCode type, const std::byte* codes, std::size_t i) {
  if (type == PanelCode::e2m1) {
    return kE2m1[std::to_integer<std::uint32_t>(codes[i / 2]) >> (i % 2 * 4) & 0xFu];
  }
  if (type == PanelCode::e4m3) {
    const auto code = std::to_integer<std::uint32_t>(codes[i]);
    const double size = magnitude(code & 0x7F, 3, 7);
    return (code & 0x80) != 0 ? -size : size;
  }
  if (type == PanelCode::e8m0) return std::ldexp(1.0, std::to_integer<int>(codes[i]) - 127);
  std::uint16_t code;
  std::memcpy(&code, codes + 2 * i, sizeof code);
  const double size = type == PanelCode::bf16 ? magnitude(code & 0x7FFFu, 7, 127)
                                              : magnitude(code & 0x7FFFu, 10, 15);
  return (code & 0x8000u) != 0 ? -size : size;
}

void decode(const PanelCodes& codes, std::size_t k, double* panel) {
  for (std::size_t i = 0; i < k; ++i) {
    const double* factors =
        codes.factors == nullptr
            ? nullptr
            : codes.factors + (codes.factor_begin + i) / codes.factor_block * kPanelColumns;
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const double value = value_of(codes.type, codes.columns[j], i);
      panel[i * kPanelColumns + j] = factors == nullptr ? value : value * factors[j];
    }
  }
}

void magnitudes(std::size_t bytes, std::uint32_t mask, bool skips_zero,
                const std::byte* const* columns, std::size_t count,
                Magnitudes (&found)[kPanelColumns]) {
  for (std::size_t j = 0; j < kPanelColumns; ++j) {
    Magnitudes& sizes = found[j];
    sizes = {~0u, 0, 0};
    for (std::size_t i = 0; i < count; ++i) {
      std::uint16_t code = 0;
      std::memcpy(&code, columns[j] + bytes * i, bytes);
      const std::uint32_t size = code & mask;
      if (size != 0 || !skips_zero) sizes.smallest = size < sizes.smallest ? size : sizes.smallest;
      sizes.largest = size > sizes.largest ? size : sizes.largest;
      sizes.bits |= size;
    }
  }
}

}  // namespace

const GemmKernels gemm_kernels{kRowBlock,        dot,        decode, magnitudes, gemm_window,
                               gemm_add_segment, gemm_finish};

}  // namespace moeref::simd::scalar
