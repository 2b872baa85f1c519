#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/families/family.hpp"

namespace moeref::families {

/// Layer L is sparse iff it is not in mlp_only_layers and (L + 1) % decoder_sparse_step == 0
/// (transformers Qwen3MoeDecoderLayer).
std::vector<std::int64_t> qwen3_moe_layers(const ModelConfig& config);

/// What the two Qwen3 families differ in.
struct Qwen3Variant {
  std::string_view prefix;  ///< before the layer number
  FusedForm fused;
  Fallback<bool> renormalize;
};

void read_qwen3_layer(LayerReader& reader, const Qwen3Variant& variant);

}  // namespace moeref::families
