#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/formats.hpp"

// Arithmetic of the judge of the quantizers: exact numbers of whole digits, rounded by a function
// of its own; codes by search. Nothing here comes from quant/ but the names of the formats.

namespace moeref::judge {

/// Bits of a NaN that CUDA makes.
inline constexpr std::uint32_t kGpuNan = 0x7FFF'FFFFu;
float gpu_nan();
float infinity();
bool is_nan(float x);

/// f32 operations with one rounding to nearest even; with `flush`, subnormal operands and results
/// are zeros of their sign, and the result is rounded as if exponents had no end. A NaN result is
/// CUDA's.
struct F32 {
  bool flush = false;

  float times(float a, float b) const;
  float over(float a, float b) const;
  float plus(float a, float b) const;
  float minus(float a, float b) const;
  /// As the unit sees it: subnormals flushed.
  float seen(float x) const;
  bool is_zero(float x) const { return seen(x) == 0.0f; }
  /// min, max of the GPU: a NaN operand is passed over; -0 < +0.
  float smaller(float a, float b) const;
  float larger(float a, float b) const;
};

/// x / y in a build with (div.approx.ftz) or without (div.rn) fast math; 1 / y.
float quotient(const F32& math, float x, float y);
float reciprocal(const F32& math, float y);
/// rcp.approx.ftz
float approximate_reciprocal(float x);
/// Triton's `/`, div.full.f32.
float triton_quotient(float x, float y);

/// x rounded to a dtype (f32, bf16, f16), as f32.
float in_dtype(Format dtype, float x);
/// The value of a code of f32, bf16, f16 or E4M3.
float value_of(Format format, std::uint32_t bits);
/// The bits of a value that the dtype has.
std::uint32_t bits_in(Format dtype, float x);
/// A double as f32, to nearest: constants.
float constant(double x);

/// 2^e rounded to f32: subnormals kept, 0 and infinity beyond.
float power_of_two(int e);
/// log2 of x, correctly rounded to f32 or bf16; 0 gives -inf.
float log2_in(Format dtype, float x);

/// |x| as an exponent and mantissa field.
std::uint32_t exponent_field(float x);
std::uint32_t mantissa_field(float x);
std::uint32_t float_bits(float x);
float float_of(std::uint32_t bits);

/// Where a number halfway between two codes goes.
enum class Halfway : std::uint8_t { even, toward_zero, away };

/// The largest finite magnitude of a format of elements.
float largest_of(Format elements);
/// The magnitudes of the codes 0, 1, ... up to the largest finite one.
const std::vector<double>& magnitudes(Format elements);
/// The code nearest to y >= 0 among those magnitudes; one more than the largest code means beyond.
std::uint32_t nearest_magnitude(Format elements, float y, Halfway halfway = Halfway::even);

/// cvt.rn.satfinite and its like: overflow and infinity give the largest code; NaN as CUDA.
std::uint32_t saturating_code(Format elements, float y);
/// torch's cast to float8: overflow and infinity give NaN (E5M2: infinity).
std::uint32_t torch_code(Format elements, float y);

/// Which E2M1 codes have the sign bit.
enum class SignOf : std::uint8_t { bit, below_zero, below_zero_unless_code_0, not_above_zero };
/// The E2M1 code of y; NaN gives `nan_code`.
std::uint8_t fp4_code(float y, Halfway halfway, SignOf sign, std::uint8_t nan_code);

/// The smallest power of two not below |x|, as an E8M0 code up to 0xFE; NaN 0xFF.
std::uint32_t e8m0_not_below(float x);
/// Exponent field, one more if there is a mantissa; nothing is capped: infinity 255, NaN 256.
int exponent_rounded_up(float x);

/// The largest magnitude. NaN elements are passed over.
float amax_of_numbers(std::span<const float> x, float start = 0.0f);
/// The same, but NaN if there is nothing else (__hmax2).
float amax_of_pairs(std::span<const float> x);
/// NaN if there is any (torch.amax).
float amax_or_nan(std::span<const float> x);

}  // namespace moeref::judge
