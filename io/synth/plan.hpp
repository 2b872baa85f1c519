#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/synth/geometry.hpp"
#include "io/synth/synth_tensor.hpp"
#include "io/synth/weight_quantizer.hpp"

namespace moeref {

enum class SynthScale : std::uint8_t { tiny, full };

struct SynthOptions {
  std::string model;
  SynthScale scale = SynthScale::tiny;
  std::uint64_t seed = 0;
  std::int64_t layers = 1;                  ///< MoE layers to write
  std::optional<std::int64_t> first_layer;  ///< the model's own index of the first of them
  std::optional<std::int64_t> experts;      ///< instead of the model's number
  std::optional<std::int64_t> vocabulary;   ///< instead of the model's size
  std::optional<std::int64_t> hash_layers;  ///< DeepSeek-V4: first layers that route by token id; 1
                                            ///< if more than one is written
  std::int64_t router_ties =
      0;  ///< pairs of experts with the same router row and bias: they always tie
  bool split_global_scales =
      false;  ///< NVFP4: gate and up with a global scale each, instead of one for both
  /// Codes and scales of the routed experts are what this weight quantizer makes of drawn bf16
  /// numbers, and those of a shared expert of the same form; none = they are drawn themselves.
  std::optional<std::string> quantizer;
  std::vector<std::string> quantizer_options;  ///< "key=value"
};

/// Everything that a synthetic checkpoint will hold; the bytes are made when written.
struct SynthPlan {
  const SynthModel* model = nullptr;
  SynthScale scale = SynthScale::tiny;
  SynthSizes sizes{};  ///< with the options applied
  std::uint64_t seed = 0;
  std::shared_ptr<const WeightQuantizer> quantizer;  ///< null = codes and scales are drawn
  std::vector<std::int64_t> moe_layers;  ///< the layers written, by the model's own index
  std::vector<SynthTensor> tensors;  ///< in the order of the model: shards are cut in this order
  std::string config_json;
  std::string hf_quant_config_json;  ///< empty unless ModelOpt

  std::uint64_t total_bytes() const;
};

/// Error: unknown model; options that the model cannot have, with what it can.
SynthPlan plan_checkpoint(const SynthOptions& options);

/// The weights that `--quantizer` draws for a model, normally distributed, and the form they are
/// stored in; nothing for a model with bf16 weights.
///
/// They are bf16 tensors of the checkpoint's random streams: element (r, c) of a projection [rows,
/// cols] is draw r * cols + c of the stream of its tensor `.weight`, which is also what a model
/// whose experts are bf16 holds there. GPT-OSS: element (e, r, c) of the stacked [experts, rows,
/// cols] is draw (e * rows + r) * cols + c of the stream `gate_up_proj` (rows of gate and up
/// alternate) or `down_proj`.
std::optional<WeightTarget> weight_target(const SynthModel& model, const SynthSizes& sizes);

/// Appends the tensors of the layers in `plan.moe_layers` and the small ones around them. With
/// `tiny`, embedding and head are among them; else only norms.
void add_synth_tensors(SynthPlan& plan, const SynthOptions& options, std::int64_t hash_layers);

/// The text of config.json. `hash_layers` matters for DeepSeek-V4 only.
std::string synth_config_json(const SynthPlan& plan, std::int64_t hash_layers);
/// The text of hf_quant_config.json; empty unless ModelOpt.
std::string synth_hf_quant_config_json(const SynthPlan& plan);

}  // namespace moeref
