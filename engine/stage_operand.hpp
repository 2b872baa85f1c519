#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/rows.hpp"
#include "quant/numerics.hpp"
#include "quant/quantize.hpp"

namespace moeref {

/// The left operand of a layer's GEMM: rows as they are, or their codes.
struct StageOperand {
  ScaledMatrix matrix;
  bool whole_scale = false;                    ///< its scale is one for the whole matrix
  std::vector<float> row_scales;               ///< one per row, outside the matrix; empty = none
  std::shared_ptr<const Quantized> quantized;  ///< null: `matrix` are the rows themselves
  std::shared_ptr<const void> owner;           ///< keeps what `matrix` shows

  /// Codes and scales as a kernel stores them; only of a quantized operand.
  Tensor codes(std::string name) const;
  Tensor scales(std::string name) const;
};

/// The operand with other codes and scales (null: its own), in its row order. Error: another size.
StageOperand with_codes(const StageOperand& operand, const Tensor* codes, const Tensor* scales);
/// Rows that nobody quantizes.
StageOperand plain_operand(const ScaledMatrix& rows);
/// What a quantizer makes of rows. `scales`: of a calibrated quantizer, one number or one for each
/// of `groups`, the rows of each expert; rows in no group become the codes of a row of zeros.
/// Error: a size or format that the quantizer does not take, a calibrated scale that is missing.
StageOperand quantized_operand(const ActivationQuantizer& quantizer, const Rows& rows,
                               std::span<const float> scales,
                               std::span<const std::vector<std::int64_t>> groups, int threads);

}  // namespace moeref
