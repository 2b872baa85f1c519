#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "io/linear.hpp"
#include "io/model_config.hpp"
#include "io/quantization_config.hpp"
#include "io/tensor_index.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// Names of an expert's projections; an empty gate says that the expert is not gated.
struct ProjectionNames {
  std::string_view gate = "gate_proj";
  std::string_view up = "up_proj";
  std::string_view down = "down_proj";
};

/// Where three-dimensional expert tensors keep what. Shapes cannot tell these apart ([E, H, 2I] has
/// two meanings, and [E, 2I, H] is a third if 2I = H), so the model type decides.
struct FusedForm {
  std::string_view name;     ///< "[E, H, 2I]", for messages
  bool transposed = false;   ///< input dimension before output dimension
  bool interleaved = false;  ///< gate and up alternate; otherwise gate is the first half
};

/// transformers GptOssExperts: gate_up_proj [E, H, 2I], gate = columns 0, 2, ...; down_proj [E, I,
/// H].
inline constexpr FusedForm kInterleavedColumns{"[E, H, 2I] with gate and up alternating", true,
                                               true};
/// transformers Qwen3VLMoeTextExperts as released: gate_up_proj [E, H, 2I], gate = columns [0, I);
/// down_proj [E, I, H].
inline constexpr FusedForm kHalvesOfColumns{"[E, H, 2I] with gate before up", true, false};
/// transformers 5 in memory (Qwen3MoeExperts, DeepseekV3NaiveMoe, ...): gate_up_proj [E, 2I, H],
/// gate = rows [0, I); down_proj [E, H, I].
inline constexpr FusedForm kHalvesOfRows{"[E, 2I, H] with gate before up", false, false};

/// What a model family uses to put one layer together: typed reads of the config and of tensors
/// that check shapes and note every fact in MoeLayer::provenance.
class LayerReader {
 public:
  LayerReader(const TensorIndex& tensors, const ModelConfig& config,
              const QuantizationConfig& quantization, MoeLayer& target)
      : layer(target), tensors_(tensors), config_(config), quantization_(quantization) {}

  MoeLayer& layer;

  const ModelConfig& config() const { return config_; }
  const QuantizationConfig& quantization() const { return quantization_; }
  const TensorIndex& tensors() const { return tensors_; }
  bool has(const std::string& tensor) const { return tensors_.find(tensor) != nullptr; }

  /// Config facts, noted under `item`.
  std::int64_t integer(std::string_view item, Keys keys, IntegerRange range,
                       std::optional<Fallback<std::int64_t>> fallback = std::nullopt);
  float number(std::string_view item, Keys keys,
               std::optional<Fallback<float>> fallback = std::nullopt);
  bool flag(std::string_view item, Keys keys,
            std::optional<Fallback<bool>> fallback = std::nullopt);
  std::string word(std::string_view item, Keys keys,
                   std::optional<Fallback<std::string>> fallback = std::nullopt);
  void note(std::string_view item, std::string value, std::string source);
  /// Notes a tensor and keeps its file alive with the layer.
  void note_tensor(const std::string& item, const IndexedTensor& tensor);

  /// The first of the prefixes ("model.layers.3.mlp.", ...) that any tensor has. Error: none; names
  /// the prefixes.
  std::string choose_prefix(std::span<const std::string> prefixes) const;

  /// The routed experts are expected in this format whatever the general quantization entry says.
  void expect_experts(FormatNames formats, std::string source);

  /// A plain float matrix (router): [rows, cols].
  ScaledMatrix matrix(const std::string& item, const std::string& tensor, std::int64_t rows,
                      std::int64_t cols);
  /// A plain float vector as 1 x size.
  ScaledMatrix vector(const std::string& item, const std::string& tensor, std::int64_t size);
  /// A selection bias: as vector; NaN is an error, as it would decide which experts run.
  ScaledMatrix selection_bias(const std::string& tensor);
  /// A linear layer in any format.
  LinearLayer linear(const std::string& item, const std::string& module, const LinearShape& shape);
  /// One expert, `module`.{gate,up,down}: [intermediate, width], [intermediate, width], [width,
  /// intermediate].
  Expert expert(const std::string& item, const std::string& module, const ProjectionNames& names,
                std::int64_t intermediate, std::int64_t width, std::string_view intermediate_name,
                std::string_view width_name);

  /// Routed experts `prefix`experts.{e}.*, or the fused tensors `prefix`experts.gate_up_proj and
  /// .down_proj in `fused` form.
  void routed_experts(const std::string& prefix, const ProjectionNames& names,
                      const FusedForm& fused);
  /// Fused experts; with `packed`, MXFP4 `*_blocks` and `*_scales` of GPT-OSS. `*_bias` is read if
  /// `bias`.
  void fused_experts(const std::string& prefix, const FusedForm& form, bool packed, bool bias);
  /// Stacked experts without a gate: `prefix`experts.up_proj [E, I, D], down_proj [E, D, I].
  void stacked_experts(const std::string& prefix);
  /// The shared expert of DeepSeek: width intermediate * n_shared_experts; 0 or absent tensors =
  /// none.
  void shared_expert(const std::string& prefix, const ProjectionNames& names);

  /// Fills weight_format, storage and the notes on config and tensors that disagree. Call once,
  /// last.
  void finish();

 private:
  friend class FusedReader;

  void check_against_config(const std::string& module, std::string_view format, bool routed);

  struct Disagreement {
    std::string first_module;
    std::int64_t modules = 0;
  };

  const TensorIndex& tensors_;
  const ModelConfig& config_;
  const QuantizationConfig& quantization_;
  std::set<std::uint32_t> files_;
  FormatNames routed_formats_;  ///< in order of appearance
  FormatNames shared_formats_;
  std::int64_t checked_modules_ = 0;
  std::map<std::string, Disagreement> disagreements_;
  FormatNames expert_formats_;
  std::string expert_formats_source_;
};

}  // namespace moeref
