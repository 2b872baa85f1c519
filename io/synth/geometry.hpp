#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "quant/quantize.hpp"

namespace moeref {

/// Whose tensor names and config keys a synthetic checkpoint has.
enum class SynthFamily : std::uint8_t {
  gpt_oss,
  deepseek_v3,
  deepseek_v4,
  qwen3_moe,
  qwen3_vl_moe,
  nemotron_h,
};

/// How the weights of the experts are stored.
enum class SynthStorage : std::uint8_t {
  bf16,
  mxfp4,           ///< GPT-OSS: stacked blocks and scales; DeepSeek-V4: I8 codes and F8_E8M0 scales
  fp8_block_f32,   ///< weight_scale_inv F32 for blocks of 128 x 128 (DeepSeek-V3)
  fp8_block_bf16,  ///< the same, scales in BF16 (Qwen3 FP8 releases)
  fp8_channel,     ///< compressed-tensors float-quantized, weight_scale BF16 [rows, 1]
  fp8_tensor,      ///< ModelOpt FP8, weight_scale and input_scale F32 []
  modelopt_nvfp4,  ///< weight U8, weight_scale F8_E4M3, weight_scale_2 and input_scale F32 []
  ct_nvfp4,        ///< compressed-tensors nvfp4-pack-quantized, global scales F32 [1]
};

/// The sizes of one model at one scale.
struct SynthSizes {
  std::int64_t hidden;
  std::int64_t intermediate;         ///< of a routed expert
  std::int64_t shared_intermediate;  ///< of the shared expert, 0 = none
  std::int64_t latent;               ///< width that the routed experts see, 0 = hidden
  std::int64_t experts;
  std::int64_t top_k;
  std::int64_t groups;
  std::int64_t kept_groups;
  std::int64_t first_layer;  ///< the first layer with experts in the released model
  std::int64_t layers;       ///< of the released model: the most that can be written
  std::int64_t vocabulary;
};

struct SynthModel {
  std::string_view name;
  std::string_view description;  ///< one line: the released model and the form of its weights
  SynthFamily family;
  SynthStorage storage;
  float limit;           ///< swiglu_limit, 0 = none
  float routed_scaling;  ///< routed_scaling_factor, 0 = the family has none
  SynthSizes full;
  SynthSizes tiny;  ///< ragged where the format allows: sizes that are no multiple of 128, experts
                    ///< no power of two
};

/// Every model that `synth` can write.
std::span<const SynthModel> synth_models();
/// Error: unknown name; lists the known ones.
const SynthModel& find_synth_model(std::string_view name);

/// The layer kinds of Nemotron-3-Nano, one character a layer: M mamba, E experts, * attention.
/// Stands for all NemotronH models here: which layers have experts changes nothing in a layer.
/// Source: `hybrid_override_pattern` of its config.json.
inline constexpr std::string_view kNemotronNanoPattern =
    "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME";

/// True if the experts have a gate projection.
bool is_gated(SynthFamily family);

/// The form of the routed experts' weights in the file; nothing for bf16.
std::optional<QuantizedForm> weight_form(SynthStorage storage);

}  // namespace moeref
