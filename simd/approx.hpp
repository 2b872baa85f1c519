#pragma once

#include <cstddef>
#include <cstdint>

namespace moeref::simd {

/// The coefficients of a GPU's approximate units, as the loops read them: c0, c1, c2 of each piece,
/// and the truncated squares of 15-bit numbers.
struct ApproxTables {
  const std::int32_t* reciprocal[3];  ///< [128] each
  const std::int32_t* exp2[3];        ///< [64] each
  const std::int32_t* squares;        ///< [32768]
  std::int32_t reciprocal_bias;
  std::int32_t exp2_bias;
};

/// The .ftz instructions on arrays; `out` may be an operand. The definitions are quant/gpu/approx.
struct ApproxKernels {
  /// rcp.approx.ftz, ex2.approx.ftz
  void (*rcp)(const ApproxTables& tables, const float* x, std::size_t count, float* out);
  void (*ex2)(const ApproxTables& tables, const float* x, std::size_t count, float* out);
  /// mul.ftz. Gives whether a product lies at exactly 2^-126, where rounding before the flush has
  /// to be decided apart: then `out` is not to be used.
  bool (*mul_ftz)(const float* x, const float* y, std::size_t count, float* out);
  bool (*mul_ftz_by)(const float* x, float factor, std::size_t count, float* out);
  /// add.ftz of a number
  void (*add_ftz_to)(const float* x, float addend, std::size_t count, float* out);
};

}  // namespace moeref::simd
