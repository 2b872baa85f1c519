#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/inspect/findings.hpp"
#include "io/safetensors.hpp"

namespace moeref {

/// The tensors of a file or folder, read leniently: what is odd about index and files becomes a
/// finding.
struct TensorSet {
  std::filesystem::path path;  ///< as given
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  std::map<std::string, const TensorView*, std::less<>> tensors;
  std::shared_ptr<const nlohmann::json> config;  ///< config.json of the folder, or nullptr

  /// The tensor, or nullptr.
  const TensorView* find(std::string_view name) const;
};

/// `path` names a safetensors file, an index, or a folder with either. Error: nothing to read
/// there, a damaged file.
TensorSet open_tensor_set(const std::filesystem::path& path, Findings& findings);

}  // namespace moeref
