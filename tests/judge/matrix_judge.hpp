#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quant/dtype.hpp"
#include "quant/mainloop.hpp"
#include "quant/matrix_unit.hpp"

// A slow second opinion on the matrix units of GPUs: real numbers (exact in double, or MPFR) and a
// decoding of its own. Takes the descriptions of quant/, no code of the engine.

namespace moeref::judge {

/// One row of an operand: its codes along K, and those of its block scales (E8M0, or the unit's).
struct UnitCodes {
  Format format = Format::bf16;
  std::vector<std::uint32_t> codes;
  std::vector<std::uint32_t> scales = {};
};

/// d = unit(a, b, c) over as many instructions as K holds; K is a multiple of the instruction's and
/// of the chunks of its order. c, d: f16 bits where the unit accumulates in f16, else f32 bits.
std::uint32_t judge_unit(const MatrixUnit& unit, const UnitCodes& a, const UnitCodes& b,
                         std::uint32_t c);

/// One element of a main loop's GEMM, f32 bits; any K. One scale a chain on each side; empty = 1.
std::uint32_t judge_mainloop(const Mainloop& mainloop, const UnitCodes& a, const UnitCodes& b,
                             std::span<const float> row_scales,
                             std::span<const float> column_scales);

/// The value of a code in double: infinity and NaN included. An f32 word as it is.
double value_of_code(Format format, std::uint32_t code);

/// The number of the step that takes column k of K.
std::int64_t step_of(const FusedDot& unit, std::int64_t k);

}  // namespace moeref::judge
