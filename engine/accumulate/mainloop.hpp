#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "quant/mainloop.hpp"
#include "quant/scaled_matrix.hpp"

// The sums of a whole GEMM as a kernel's main loop forms them, bit for bit.

namespace moeref::accumulate {

/// Rows of an operand in the order of a unit's terms.
struct UnitOperand {
  std::int64_t rows = 0;
  std::int64_t depth = 0;             ///< terms, whole instructions
  std::vector<float> values;          ///< [rows, depth]
  std::vector<float> powers;          ///< 2^exponent of each; 0 for a zero, NaN or infinity
  std::vector<std::int16_t> lowest;   ///< [rows, steps]: exponent of a term that is not zero
  std::vector<std::int16_t> largest;  ///< [rows, steps]
  std::vector<char> finite;           ///< [rows]
  Format format = Format::bf16;       ///< of the numbers, which fixes their smallest exponent

  std::int64_t steps(const FusedDot& unit) const { return depth / unit.terms; }
};

/// `values` [rows, k] are numbers of `format`, or convert to unit.operand exactly.
UnitOperand unit_operand(const FusedDot& unit, Format format, std::int64_t rows, std::int64_t k,
                         std::span<const float> values);

/// What a GEMM reads of its left operand: `rows` rows of numbers, and their f32 scales along K.
struct MainloopInput {
  UnitOperand operand;
  std::int64_t k = 0;
  std::vector<float> scales;  ///< [rows, chains]; empty = none
};

/// Chains of a main loop over `k` columns.
std::int64_t chain_count(const Mainloop& mainloop, std::int64_t k);
/// Rows `rows` of `matrix`: codes as numbers, its f32 block scales as the scale of each chain. Its
/// global scale is left out. Error: a chain that crosses scale blocks or ends inside a step, f32
/// codes without unit.operand, a unit that does not add f32 sums in its steps.
MainloopInput mainloop_input(const Mainloop& mainloop, const ScaledMatrix& matrix,
                             std::span<const std::int64_t> rows);

/// acc[i * stride + n] = the kernel's sum for row i and weight row n, f32 bits, NaN 0x7FFFFFFF.
/// The weight's codes are the unit's numbers, its block scales those of the chains; its global
/// scale is left out. Results do not depend on `threads`. Error: K that differ, and as
/// mainloop_input.
void run_mainloop(const Mainloop& mainloop, const MainloopInput& x, const ScaledMatrix& weight,
                  float* acc, std::int64_t stride, int threads);

}  // namespace moeref::accumulate
