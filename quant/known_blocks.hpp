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
  /// Codes and scales of a row whose blocks are all known. False: nothing of the row is valid.
  bool encode(const ElementCoder& coder, const std::optional<VectorRule>& rule,
              const KnownRow& row);
  /// Keeps what a block without NaN gave. `amax`: bits of a finite number of `numbers`.
  void remember(const ElementCoder& coder, const std::optional<VectorRule>& rule, Format numbers,
                std::uint32_t amax, const BlockScale& scale);

 private:
  /// A factor of NaN = not known.
  struct ByteBlock {
    float factor;
    std::uint32_t scale;
  };
  bool look_up(const KnownRow& row);

  std::vector<simd::Fp4Block> fp4_;  ///< [2^15], empty until the first is known
  std::vector<ByteBlock> bytes_;
  std::vector<std::uint32_t> amax_;  ///< of the blocks of a row
  std::vector<float> factors_;
};

}  // namespace moeref
