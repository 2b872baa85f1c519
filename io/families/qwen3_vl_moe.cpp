#include "io/families/qwen3.hpp"

namespace moeref::families {
namespace {

/// huggingface/transformers models/qwen3_vl_moe: the text model is Qwen3-MoE; its router always
/// divides by the sum, and the released files keep the fused tensors transposed.
void read_layer(LayerReader& reader) {
  read_qwen3_layer(reader, {"model.language_model.",
                            kHalvesOfColumns,
                            {true, "Qwen3VLMoeTextTopKRouter always renormalises"}});
}

}  // namespace

extern const Family qwen3_vl_moe{"qwen3_vl_moe", "text_config", qwen3_moe_layers, read_layer};

}  // namespace moeref::families
