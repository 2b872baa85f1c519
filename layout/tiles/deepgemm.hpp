#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout/step.hpp"

// DeepGEMM's orders of scale factors and packed FP4, and the choice among them. mn: rows of the
// operand (M of activations, N of weights); "MN-major": rows run fastest; "TMA-aligned": rows
// padded to 16 bytes.

namespace moeref::tiles {

/// Columns one after the other: in [r, c], stored [c, r], seen as [r, c] with strides 1, r. What
/// SM90 takes for 128 x 128 scales beside row-major.
/// Source: DeepGEMM@54e2261 csrc/utils/layout.hpp check_sf_layout
TileLayout deepgemm_mn_major();
/// The same with r padded to R, a multiple of 4 (4-byte elements); seen as [R, c]. The pads are not
/// written by the original; here 0.
/// Source: DeepGEMM@54e2261 csrc/jit_kernels/impls/smxx_layout.hpp get_mn_major_tma_aligned_tensor
TileLayout deepgemm_tma_aligned();
/// Exponent bytes, four columns a word: in [r, c], padded with 0 to multiples R and C of 4, stored
/// [C / 4, R] words, seen as I32 [R, C / 4]; column 4 q + j is byte j. Pad words are not written by
/// the original; here 0.
/// Source: DeepGEMM@54e2261 smxx_layout.hpp get_mn_major_tma_aligned_packed_ue8m0_tensor
TileLayout deepgemm_pack_ue8m0();
/// Exponent bytes of one group of a K-grouped operand, in [k blocks, mn]: four rows a word, padded
/// with 0, stored I32 [rows / 4, mn]. Error: mn not a multiple of 4.
/// Source: DeepGEMM@54e2261 smxx_layout.hpp get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor
TileLayout deepgemm_pack_ue8m0_k_grouped();
/// Exponent bytes as they are, seen as I32 [r, c / 4]. Error: c not a multiple of 4.
/// Source: DeepGEMM@54e2261 deep_gemm/utils/math.py pack_ue8m0_to_int
TileLayout deepgemm_ue8m0_words();

/// FP4 codes as they are, in int8 bytes as DeepGEMM wants them.
TileLayout deepgemm_int8_fp4();
/// FP4 [m, n] packed along n to [n, m] packed along m. Error: odd m.
/// Source: DeepGEMM@54e2261 deep_gemm/utils/math.py transpose_packed_fp4
TileLayout transpose_packed_fp4();

}  // namespace moeref::tiles

namespace moeref::deepgemm {

/// A scale tensor as a caller has it: [groups,] mn blocks, k blocks.
struct ScaleFactors {
  std::string name = "scales";  ///< for messages
  DType dtype = DType::f32;
  Shape shape = {};
  std::vector<std::int64_t> strides = {};  ///< in elements; empty = contiguous
};

/// What the matrix multiplication is told about it.
struct ScaleRequest {
  std::int64_t arch = 10;  ///< 9 = SM90, 10 = SM100
  std::int64_t mn = 0;
  std::int64_t k = 0;
  std::int64_t gran_mn = 1;  ///< rows and columns of the operand that one scale is for
  std::int64_t gran_k = 128;
  std::optional<std::int64_t> groups = std::nullopt;
  bool disable_ue8m0_cast = false;
};

/// The steps from logical scales (row-major) to what the kernel reads. Empty: they stay as they
/// are.
///   arch 9 or disable_ue8m0_cast, f32, (1, 128): MN-major, TMA-aligned
///   arch 9 or disable_ue8m0_cast, f32, (128, 128): as they are, row-major or exactly transposed
///   arch 10, f32, (any, 32 or 128): a row for each of mn, exponents packed
///   arch 10, I32, (1, 32 or 128): as they are, already packed, MN-major and TMA-aligned
/// Error: anything else; a dtype, rank, group count or size that does not fit; strides that are not
/// those above.
/// Source: DeepGEMM@54e2261 csrc/apis/layout.hpp transform_sf_into_required_layout
std::vector<Step> required_layout(const ScaleFactors& scales, const ScaleRequest& request);

/// (gran_mn of A, gran_mn of B, gran_k) when the caller names none.
/// Error: dtypes that the architecture does not take.
/// Source: DeepGEMM@54e2261 csrc/utils/layout.hpp get_default_recipe
std::array<std::int64_t, 3> default_recipe(std::int64_t arch, DType a_scales, DType b_scales);

}  // namespace moeref::deepgemm
