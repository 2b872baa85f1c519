#pragma once

#include <cstdint>
#include <span>

#include "quant/matrix_unit.hpp"

// One instruction of a matrix unit for one output element, in integers: the definition that faster
// forms are held against.

namespace moeref::accumulate {

enum class NumberKind : std::uint8_t { finite, infinite, nan };

/// A number as a matrix unit decodes it: significand * 2^(exponent - fraction_bits), the
/// significand of a subnormal not normalised. A zero has significand 0.
struct UnitNumber {
  std::int32_t significand = 0;  ///< with sign
  std::int16_t exponent = 0;
  std::uint8_t fraction_bits = 0;
  NumberKind kind = NumberKind::finite;
  bool negative = false;  ///< of zero and infinity too
};

/// An operand; f32 words are TF32. UE4M3 scales: the sign bit is ignored.
UnitNumber operand_number(Format format, std::uint32_t code);
/// An accumulator of f32 or f16.
UnitNumber accumulator_number(Format format, std::uint32_t bits);

/// The NaN of NVIDIA's units.
inline constexpr std::uint32_t kUnitNanF32 = 0x7FFF'FFFFu;
inline constexpr std::uint32_t kUnitNanF16 = 0x7FFFu;

/// One fused step: unit.terms products and c. `scale_exponent` is added to the exponent of every
/// product. c and the result are f16 bits for StepOutput::f16_nearest, else f32 bits.
/// NaN: any NaN, infinity * 0, infinities of both signs. All terms zero or cancelled: +0.
std::uint32_t fused_step(const FusedDot& unit, std::span<const UnitNumber> a,
                         std::span<const UnitNumber> b, std::uint32_t c, int scale_exponent = 0);

/// One instruction with block scales: a, b of unit.k E2M1 numbers, one scale per unit.block.
std::uint32_t scaled_group_step(const ScaledGroupDot& unit, std::span<const UnitNumber> a,
                                std::span<const UnitNumber> b, std::span<const UnitNumber> a_scales,
                                std::span<const UnitNumber> b_scales, std::uint32_t c);

/// One group of unit.terms products and c. A NaN is 0x7FC00000.
std::uint32_t mfma_step(const MfmaDot& unit, std::span<const UnitNumber> a,
                        std::span<const UnitNumber> b, std::uint32_t c);

/// fma(a[k], b[k], c) over ascending k, on f32 bits (accumulator_number). A NaN is 0x7FC00000.
std::uint32_t fma_step(std::span<const UnitNumber> a, std::span<const UnitNumber> b,
                       std::uint32_t c);

}  // namespace moeref::accumulate
