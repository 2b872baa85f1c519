#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layout/tensor_stack.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// The tensors of a logical layer that have one matrix per expert.
enum class Slot : std::uint8_t { w13, w13_scale, w13_bias, w2, w2_scale, w2_bias };
inline constexpr int kSlotCount = 6;
/// TensorStack::block_rows or block_cols of a scale that stands for all rows or columns, however
/// many padding adds.
inline constexpr std::int64_t kWholeAxis = std::int64_t{1} << 40;
/// "w13_scale"
std::string_view name(Slot slot);
/// Of GEMM1: w13 and what belongs to it.
constexpr bool is_w13(Slot slot) {
  return slot == Slot::w13 || slot == Slot::w13_scale || slot == Slot::w13_bias;
}
constexpr bool is_scale(Slot slot) { return slot == Slot::w13_scale || slot == Slot::w2_scale; }
constexpr bool is_bias(Slot slot) { return slot == Slot::w13_bias || slot == Slot::w2_bias; }
constexpr bool is_weight(Slot slot) { return slot == Slot::w13 || slot == Slot::w2; }
/// The slot of the block scales of w13 or w2.
constexpr Slot scales_of(Slot weight) {
  return weight == Slot::w13 ? Slot::w13_scale : Slot::w2_scale;
}

/// Sizes of a logical layer as a rank has loaded it, before any padding.
struct LayerShape {
  std::string model;          ///< for messages
  std::string weight_format;  ///< "mxfp4", "nvfp4", "fp8_block", ...
  std::int64_t experts = 0;   ///< of this rank
  std::int64_t total_experts = 0;
  std::int64_t first_expert = 0;
  std::int64_t hidden = 0;        ///< columns of w13, rows of w2 (latent width if there is one)
  std::int64_t intermediate = 0;  ///< rows of a half of w13 that this rank loaded; may be 0
  std::int64_t stride = 0;  ///< rows of a half that the loader gives every rank: >= intermediate
  std::int64_t full_intermediate = 0;  ///< of the model
  bool gated = true;
  bool bias = false;
  std::int64_t block_rows = 0;  ///< weights that share a block scale of w13; 0 = no such scales
  std::int64_t block_cols = 0;
  DType scale_dtype = DType::u8;  ///< of the block scales
  std::int64_t tp_rank = 0;
  std::int64_t tp_size = 1;

  int halves() const { return gated ? 2 : 1; }
};

/// The factors of a layer that are one number per expert and projection, as stored.
struct ExpertScalars {
  /// [experts][halves]: gate, up; not gated: up. Empty = the format has none. Per-tensor FP8: the
  /// weight scale. NVFP4: the global scale that multiplies (a dividing one as its f32 reciprocal).
  std::vector<float> w13_scale;
  std::vector<float> w2_scale;  ///< [experts]
  /// Activation scales of ALL experts of the layer, since frameworks take their maximum before they
  /// slice: [total_experts][halves], [total_experts]; empty = not stored.
  std::vector<float> w13_input_scale;
  std::vector<float> w2_input_scale;
  std::vector<float> alpha;  ///< [experts]; the activation's parameters
  std::vector<float> beta;
  std::vector<float> limit;  ///< kNoLimit where there is none
};

/// Whether layers of a weight format have ExpertScalars::w13_scale and w2_scale.
bool has_global_scales(std::string_view weight_format);

/// A logical layer as layouts read it. A view into the layer's storage.
struct LayerTensors {
  LayerShape shape;
  std::array<std::optional<TensorStack>, kSlotCount> stacks;
  ExpertScalars scalars;

  const TensorStack* find(Slot slot) const {
    const auto& stack = stacks[static_cast<std::size_t>(slot)];
    return stack ? &*stack : nullptr;
  }
  /// Error: the layer has no such tensor.
  const TensorStack& at(Slot slot) const;
};

/// Tells shape about the block scales of w13, if there are any.
void describe_scales(LayerTensors& tensors);

/// The local experts of a layer. `whole`: the layer before it was cut into ranks (its input
/// scales). Error: experts that differ in format, a factor that some experts have and others not.
LayerTensors layer_tensors(const MoeLayer& layer, const MoeLayer& whole);

}  // namespace moeref
