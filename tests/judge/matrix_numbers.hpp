#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "quant/dtype.hpp"
#include "quant/matrix_unit.hpp"

// Numbers of the judge of the matrix units: its decoding, and its one way to round (MPFR).

namespace moeref::judge {

inline constexpr std::uint32_t kNvidiaNan = 0x7FFF'FFFFu;
inline constexpr std::uint32_t kAmdNan = 0x7FC0'0000u;

/// A decoded number: `value` is exact; `exponent` is that of its format, not normalised.
struct Number {
  double value = 0.0;
  int exponent = 0;

  bool is_nan() const { return std::isnan(value); }
  bool is_infinite() const { return std::isinf(value); }
  bool is_zero() const { return value == 0.0; }
  bool is_negative() const { return std::signbit(value); }
};

/// UE4M3: the sign is ignored. An f32 word as it is.
Number decoded(Format format, std::uint32_t code);
/// As the unit multiplies it: f32 is TF32; `converted` to another format first, exactly.
Number operand(Format format, std::uint32_t code, std::optional<Format> converted);

double power_of_two(int exponent);

/// Where a result is rounded to.
struct Grid {
  int fraction_bits;
  int lowest_exponent;
  int beyond;           ///< 2^beyond is infinite
  bool nearest = true;  ///< else toward zero
};
inline constexpr Grid kF32Nearest{23, -126, 128};
/// f32 as if exponents had no lower end.
inline constexpr Grid kF32Endless{23, -100'000, 128};
Grid grid_of(StepOutput output);

std::uint32_t f32_bits(double value);
/// The bits of a value that the output has; NVIDIA's NaN.
std::uint32_t bits_in(StepOutput output, double value);

/// sum * 2^weight on the grid; any zero is +0.
double output_of(std::int64_t sum, int weight, const Grid& grid);

/// IEEE 754 in one rounding; NaN, infinity and signed zero included.
double product(double x, double y, const Grid& grid);
double fused(double x, double y, double z, const Grid& grid);
/// x + y in f32 or f16, on bits.
std::uint32_t ieee_sum(StepOutput output, std::uint32_t x, std::uint32_t y);

}  // namespace moeref::judge
