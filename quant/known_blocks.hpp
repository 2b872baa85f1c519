#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "quant/element_rule.hpp"
#include "quant/quantize.hpp"
#include "quant/vector_rule.hpp"
#include "simd/encode.hpp"

// What a block of 16-bit numbers becomes depends on its amax alone, which has 2^15 values: kept
// once found, rows of known blocks are quantized without a computation for each block.

namespace moeref {

/// A row of whole blocks of bf16 or f16 numbers, and where its codes and scales go.
struct KnownRow {
  simd::NumberType type = simd::NumberType::bf16;
  const std::byte* numbers = nullptr;
  std::size_t blocks = 0;
  std::size_t block = 0;  ///< numbers of a block, a multiple of simd::kEncodeUnit
  std::uint8_t* codes = nullptr;
  std::byte* scales = nullptr;
  std::size_t scale_bytes = 1;  ///< 1 or 4
};

/// The known blocks of one thread, for one element rule.
class KnownBlocks {
 public:
  KnownBlocks(const ElementCoder& coder, const std::optional<VectorRule>& rule,
              const ScaleOfAmax& scale, Format numbers)
      : coder_(&coder), rule_(&rule), scale_(&scale), numbers_(numbers) {}

  /// Codes and scales of a row. False: nothing of the row is valid, a block of it needs more than
  /// the vector loops.
  bool encode(const KnownRow& row);

 private:
  bool encode_fp4(const KnownRow& row);
  bool encode_bytes(const KnownRow& row);
  /// Finds what blocks with this amax (bits) become. False: they need more.
  bool learn(std::uint32_t amax);
  /// Finds the factors of a row's blocks and writes their scales, of the size of Scale. False: one
  /// is not known.
  template <typename Scale>
  bool look_up(const KnownRow& row);

  const ElementCoder* coder_;
  const std::optional<VectorRule>* rule_;
  const ScaleOfAmax* scale_;
  Format numbers_;
  std::vector<std::uint16_t> place_of_;  ///< [2^15], by the bits of an amax; 0 = not known
  std::vector<std::uint32_t> scales_;    ///< by place, as stored
  std::vector<simd::Fp4Block> fp4_;      ///< by place, of codes of 4 bits
  std::vector<float> factors_;           ///< by place, of codes of 8 bits
  std::vector<std::uint32_t> row_amax_;  ///< of the blocks of a row
  std::vector<float> row_factors_;
};

}  // namespace moeref
