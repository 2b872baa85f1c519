#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "quant/dtype.hpp"

// How the matrix instructions of GPUs compute one output element d = unit(a[0..K), b[0..K), c).
// Described here, carried out in engine/accumulate.

namespace moeref {

/// What a zero operand means for the exponent that the terms of a sum are aligned to.
enum class ZeroOperands : std::uint8_t {
  skipped,           ///< NVIDIA hardware: a product with a zero and a zero c take no part
  smallest_exponent  ///< MMA-Sim, CDNA3: they take part with the exponent -126
};

/// The one rounding at the end of a fused step.
enum class StepOutput : std::uint8_t {
  f32_toward_zero,
  e8m13_toward_zero,  ///< 13 fraction bits, kept as f32
  f16_nearest,        ///< to nearest even; c and d are f16
};

/// In which order K comes to the steps.
enum class TermOrder : std::uint8_t {
  natural,
  kw4,  ///< of every 2 L: k mod 4 in {0, 1}, then the rest. 8-bit operands in 16-bit instructions
  kw8,  ///< of every 4 L: k mod 8 in {0, 1}, {2, 3}, {4, 5}, {6, 7}. 4-bit operands likewise
};

/// Where the accumulator c enters an instruction.
enum class AccumulatorPoint : std::uint8_t {
  fused,        ///< a term of the first step
  added_after,  ///< one IEEE addition after the last step, which began with +0
};

inline constexpr int kNoLowestExponent = -100'000;

/// Fused dot-add of an NVIDIA matrix unit: L products and c, aligned to the largest exponent and
/// cut toward zero to F fraction bits below it, summed exactly, rounded once. Steps of L products
/// are chained in ascending order.
struct FusedDot {
  int k = 16;              ///< products of one instruction
  int terms = 16;          ///< L
  int fraction_bits = 25;  ///< F
  StepOutput output = StepOutput::f32_toward_zero;
  TermOrder order = TermOrder::natural;
  AccumulatorPoint accumulator = AccumulatorPoint::fused;
  /// What both operands are converted to first, exactly; none: taken as they are.
  std::optional<Format> operand = std::nullopt;
  ZeroOperands zeros = ZeroOperands::skipped;
  int lowest_exponent = -133;  ///< of the alignment
  bool block_scales = false;   ///< one E8M0 scale per 32 on each side, added to the exponents
};

/// tcgen05 kind::mxf4, mxf4nvf4: E2M1 products summed exactly over 16 k, times both block scales,
/// then aligned by the exponents of the scales alone.
struct ScaledGroupDot {
  int k = 64;
  int block = 32;               ///< k's of one scale: 16 or 32
  Format scale = Format::e8m0;  ///< or ue4m3
  int fraction_bits = 35;
  ZeroOperands zeros = ZeroOperands::skipped;
  int lowest_exponent = -133;
};

/// AMD CDNA3 MFMA: products cut toward zero to 24 fraction bits, c joined after, both cut toward
/// minus infinity, one rounding to nearest.
struct MfmaDot {
  int k = 16;
  int terms = 8;
  bool splits_even_odd = false;  ///< FP8: even and odd k are summed apart first
};

/// AMD CDNA3 MFMA of f32: d = fma(a[k], b[k], d) over ascending k, to nearest.
struct FmaChain {
  int k = 4;
};

using MatrixUnit = std::variant<FusedDot, ScaledGroupDot, MfmaDot, FmaChain>;

/// How the model of an instruction is known.
enum class UnitEvidence : std::uint8_t {
  hardware,   ///< reproduces an NVIDIA H200 bit for bit
  simulator,  ///< reproduces MMA-Sim, which was held against the hardware
  literature  ///< read only
};
std::string_view name(UnitEvidence evidence);

/// One instruction of one architecture for some operand types. f32 operands are TF32 words, whose
/// low 13 bits are cleared, but for FmaChain.
struct MatrixInstruction {
  std::string_view arch;  ///< "sm_90"
  std::string_view name;  ///< "wgmma.k32"
  std::vector<Format> operands;
  bool mixes = false;  ///< the operands may be two of them
  Format accumulator = Format::f32;
  MatrixUnit unit;
  UnitEvidence evidence = UnitEvidence::literature;
};

/// Every instruction that moeref computes.
/// Source: microsoft/MMA-Sim@c785138 mmasim/simulator, mmasim/isa; an NVIDIA H200 (sm_90a, CUDA
/// 13.0) where the evidence is hardware.
std::span<const MatrixInstruction> all_matrix_instructions();

/// Error (one line): an architecture or form that nobody has measured (CDNA4, CDNA1 and 2, E2M3 and
/// E3M2, sparse forms), a name that is unknown, types that the instruction does not take.
const MatrixInstruction& find_matrix_instruction(std::string_view arch, std::string_view name,
                                                 Format a, Format b, Format accumulator);

}  // namespace moeref
