#pragma once

#include <string>
#include <vector>

#include "layout/backends/recipe_parts.hpp"

// What FlashInfer's CUTLASS and CuteDSL backends share.

namespace moeref::backends::cutlass {

enum class Halves : bool { as_loaded, swapped };

/// The framework's steps to a half of `intermediate` rows and `hidden` columns: up before gate if
/// `swapped`, zeros at the end of each half, row and column.
struct Padding {
  std::int64_t intermediate = 0;
  std::int64_t hidden = 0;
  Steps w13_rows;  ///< also of its bias
  Steps w13;
  Steps w2_rows;
  Steps w2;
};
Padding pad_to(std::int64_t intermediate, std::int64_t hidden, Halves halves,
               std::byte fill = std::byte{0});
/// NVFP4: whole scale tiles; not gated, the half is padded to 128 rows, else as loaded.
/// Source: sglang modelopt_quant.py ModelOptNvFp4FusedMoEMethod.process_weights_after_loading
Padding pad_scale_tiles(const LayerShape& shape, Halves halves);

/// w13_bias in bf16 and w2_bias in the type it has, if the layer has them.
void add_biases(Recipe& recipe, const LayerShape& shape, const Padding& padding);

/// Gated: the order that the kernel wants, from its own code.
KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes,
                      GateOrder order = GateOrder::up_gate);
/// Adds the block scales of both weights.
void read_scales(KernelReading& kernel, std::int64_t block_rows, std::int64_t block_cols,
                 const ScaleDecoder& decoder);

}  // namespace moeref::backends::cutlass
