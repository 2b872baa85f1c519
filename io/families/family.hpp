#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "io/layer_reader.hpp"
#include "io/model_config.hpp"

namespace moeref {

/// How the checkpoints of one model type are read. One file and one line in families.inc each.
struct Family {
  std::string_view model_type;  ///< config.json: model_type
  std::string_view
      section;  ///< object of config.json with the language model; empty = the top level
  /// The layers that have experts, by the config alone.
  std::vector<std::int64_t> (*moe_layers)(const ModelConfig& config);
  /// Fills `reader.layer`, whose model_type and layer are set.
  void (*read_layer)(LayerReader& reader);
};

/// Every family, in the order of families.inc.
std::span<const Family* const> all_families();

/// The activation that transformers' ACT2FN gives this name: gated, up operand multiplied. Error:
/// unknown (lists the known).
Activation gated_activation(LayerReader& reader);
/// The same names for experts without a gate, and "relu2".
Activation plain_activation(LayerReader& reader, std::string_view key);

/// Error if the key is there with another value than the one this family computes.
void require_word(LayerReader& reader, std::string_view item, std::string_view key,
                  std::string_view only);

/// Reads hidden_size, the experts' intermediate size, the number of experts and top_k under these
/// keys.
void read_sizes(LayerReader& reader, std::string_view intermediate, Keys experts, Keys top_k);

/// Every layer from 0 to num_hidden_layers - 1. Layers above are for multi-token prediction and not
/// part of the model proper.
std::vector<std::int64_t> every_layer(const ModelConfig& config);

}  // namespace moeref
