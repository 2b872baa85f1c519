#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "quant/scaled_matrix.hpp"

namespace moeref::testing {

/// Every way in which an operand can be stored.
enum class Scheme {
  f32,
  bf16,
  f16,
  e4m3_tensor,    ///< one f32 scale
  e4m3_row,       ///< one f32 scale a row
  e4m3_block128,  ///< f32, 128 x 128
  e4m3_block128_bf16,
  e4m3_group128,  ///< f32, 1 x 128
  e5m2_row,
  mxfp8,
  mxfp4,
  nvfp4_multiplied,
  nvfp4_divided,
};

inline constexpr Scheme kAllSchemes[] = {Scheme::f32,
                                         Scheme::bf16,
                                         Scheme::f16,
                                         Scheme::e4m3_tensor,
                                         Scheme::e4m3_row,
                                         Scheme::e4m3_block128,
                                         Scheme::e4m3_block128_bf16,
                                         Scheme::e4m3_group128,
                                         Scheme::e5m2_row,
                                         Scheme::mxfp8,
                                         Scheme::mxfp4,
                                         Scheme::nvfp4_multiplied,
                                         Scheme::nvfp4_divided};

const char* name(Scheme scheme);

/// How wild the values are: `tame` as in a model, `wide` over many binades, `extreme` up to the
/// ends of the formats.
enum class Spread { tame, wide, extreme };

/// A matrix with its storage.
struct OwnedMatrix {
  std::vector<std::byte> codes;
  std::vector<std::byte> scales;
  ScaledMatrix matrix;  ///< points into the vectors: do not copy
  OwnedMatrix() = default;
  OwnedMatrix(const OwnedMatrix&) = delete;
  OwnedMatrix(OwnedMatrix&&) = default;
};

/// Finite random values; deterministic in the generator.
OwnedMatrix random_matrix(Scheme scheme, Spread spread, std::int64_t rows, std::int64_t cols,
                          std::mt19937_64& random);

/// 0, 1, ... to the last.
inline std::vector<std::int64_t> all_rows(const ScaledMatrix& matrix) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(matrix.rows));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace moeref::testing
