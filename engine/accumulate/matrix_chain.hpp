#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/accumulate/matrix_step.hpp"

// Chains of matrix instructions over K for one output element.

namespace moeref::accumulate {

/// The columns of K in the order in which the steps take them, `unit.terms` at a time; -1 past the
/// end, a zero. As many as whole instructions need. Inside a step the order says nothing.
///   kw<w>: step (k / (L w / 2)) (w / 2) + (k mod w) / 2
/// Source: triton-lang/triton@02c7010 third_party/nvidia MMAv2.cpp
/// getValuesFromDotOperandLayoutStruct; measured on an NVIDIA H200.
std::vector<std::int64_t> term_order(const FusedDot& unit, std::int64_t k);

/// Numbers by `order`; -1 gives zero.
std::vector<UnitNumber> in_order(std::span<const UnitNumber> numbers,
                                 std::span<const std::int64_t> order);

/// One row of an operand as its unit takes it.
struct UnitRow {
  std::vector<UnitNumber> numbers;  ///< in order
  std::vector<UnitNumber> scales;   ///< of the blocks, if the unit has any
};

/// d = unit(a, b, c) over as many instructions as the rows hold, the result of one being the c of
/// the next. c, d: f16 bits where the unit accumulates in f16, else f32 bits.
std::uint32_t run_chain(const MatrixUnit& unit, const UnitRow& a, const UnitRow& b,
                        std::uint32_t c);

}  // namespace moeref::accumulate
