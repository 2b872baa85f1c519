#include "layout/backends/cutlass_parts.hpp"

#include "layout/backends/scalars.hpp"
#include "layout/recode/float_cast.hpp"

namespace moeref::backends::cutlass {

Padding pad_to(std::int64_t intermediate, std::int64_t hidden, Halves halves, std::byte fill) {
  Padding padding;
  padding.intermediate = intermediate;
  padding.hidden = hidden;
  if (halves == Halves::swapped) padding.w13_rows.push_back(SwapHalves{});
  padding.w13_rows.push_back(PadHalves{.to = intermediate, .fill = fill});
  padding.w13 = padding.w13_rows + Steps{PadCols{.to = hidden, .fill = fill}};
  padding.w2_rows = {PadRows{.to = hidden, .fill = fill}};
  padding.w2 = padding.w2_rows + Steps{PadCols{.to = intermediate, .fill = fill}};
  return padding;
}

Padding pad_scale_tiles(const LayerShape& shape, Halves halves) {
  constexpr std::int64_t kTileRows = 128;
  return pad_to(shape.gated ? shape.stride : round_up(shape.stride, kTileRows), shape.hidden,
                halves);
}

void add_biases(Recipe& recipe, const LayerShape& shape, const Padding& padding) {
  if (!shape.bias) return;
  // w2's bias stays as it came. Source: vllm@001eda31 oracle/mxfp4.py
  const Steps bf16{recode::cast_floats(Slot::w13_bias, DType::bf16)};
  recipe.tensors.push_back(tensor("w13_bias", Slot::w13_bias, bf16 + padding.w13_rows, {}));
  recipe.tensors.push_back(tensor("w2_bias", Slot::w2_bias, padding.w2_rows, {}));
}

KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes,
                      GateOrder order) {
  KernelReading kernel;
  kernel.order = shape.gated ? order : GateOrder::none;
  read_swiglu(kernel, shape);
  kernel.intermediate = padding.intermediate;
  kernel.hidden = padding.hidden;
  kernel.codes = codes;
  return kernel;
}

void read_scales(KernelReading& kernel, std::int64_t block_rows, std::int64_t block_cols,
                 const ScaleDecoder& decoder) {
  kernel.block_rows = block_rows;
  kernel.block_cols = block_cols;
  kernel.w13_scale = decoder;
  kernel.w2_scale = decoder;
}

}  // namespace moeref::backends::cutlass
