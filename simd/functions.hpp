#pragma once

#include <cstddef>

namespace moeref::simd {

/// What e^-a is made of, a = k * step + r: 2^(-j / kSteps) and the step ln 2 / kSteps in two parts,
/// of which k times the first is exact.
struct ExpTable {
  static constexpr std::size_t kSteps = 64;
  const double* powers;  ///< [kSteps]
  double steps_per_unit;
  double step;
  double step_rest;
};

struct FunctionKernels {
  /// s[i] = 1 / (1 + e^-z[i]), |z[i]| <= 300, in the operations of `gates::sigmoid`; anything for
  /// other z[i].
  void (*sigmoid)(const ExpTable& table, const double* z, std::size_t count, double* s);
};

}  // namespace moeref::simd
