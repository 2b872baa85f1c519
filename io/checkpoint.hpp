#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "quant/moe_layer.hpp"

namespace moeref {

/// A model folder in Hugging Face form: config.json, hf_quant_config.json if present, one
/// safetensors file or shards with an index. Opening reads the headers of the files only.
class Checkpoint {
 public:
  /// `folder` may also name the config.json or a single .safetensors file inside the folder.
  /// Error: missing or malformed config, unknown model_type (lists the known), missing shard, a
  /// tensor in two files, ...
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const;
  const std::string& model_type() const;
  /// The layers that have experts, by the model's own index.
  const std::vector<std::int64_t>& moe_layers() const;
  /// One logical layer; touches only that layer's tensors.
  /// Error: layer without experts (lists the MoE layers), missing tensors (nearest names), scales
  /// that do not fit, NaN scales, unknown quantization (prints what was found).
  MoeLayer load_layer(std::int64_t layer) const;

 private:
  struct Impl;
  explicit Checkpoint(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace moeref
