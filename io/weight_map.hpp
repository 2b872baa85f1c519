#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace moeref {

/// What `model.safetensors.index.json` says: which tensor lies in which file.
struct WeightMap {
  struct Entry {
    std::string tensor;
    std::uint32_t file = 0;  ///< number in `files`
  };
  std::vector<std::string> files;  ///< plain names, in order of appearance
  std::vector<Entry> entries;      ///< by tensor name
};

/// Error: not JSON, no weight_map, a file name that leads out of the folder, a tensor listed twice.
WeightMap read_weight_map(const std::filesystem::path& index_file);

}  // namespace moeref
