#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "cli/layout_commands.hpp"
#include "cli/logical_weights.hpp"
#include "cli/prepared_file.hpp"

namespace moeref::cli {

/// A layer to prepare: of a checkpoint, or of a file of logical tensors.
struct LayerSource {
  Origins origins;
  std::filesystem::path checkpoint;  ///< its folder; empty = a file of logical tensors
  MoeLayer layer;
  std::optional<LayerTensors> part;  ///< a file that holds one rank's part
  StoredRank rank;
};

/// `layer`: absent = the checkpoint's first MoE layer. Error: what reading says; --layer with a
/// tensor file, hints with a checkpoint.
LayerSource open_layer_source(const std::string& path, std::optional<std::int64_t> layer,
                              const LogicalHints& hints);
/// Plans the choice's backend, options and rank. Error: a rank of a file that is one rank's part;
/// what plan_layer says.
PreparedLayer plan_source(const LayerSource& source, const BackendChoice& choice);

}  // namespace moeref::cli
