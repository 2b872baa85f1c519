#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.hpp"

namespace moeref {

struct WeightMap;

/// One tensor of a checkpoint and the file that holds it.
struct IndexedTensor {
  std::string_view name;
  const TensorView* view = nullptr;
  std::uint32_t file = 0;  ///< number of the file, see TensorIndex::file
};

/// Every tensor of a checkpoint folder by name, whichever file holds it.
class TensorIndex {
 public:
  /// Opens the headers of the folder's safetensors files: those that `model.safetensors.index.json`
  /// lists (its weight_map is authoritative), else `model.safetensors`, else the shards
  /// `*-i-of-N.safetensors`, else the only safetensors file. With `only`, that file alone unless
  /// the index lists it. Error: no file, missing shard, shard name that leaves the folder, tensor
  /// listed but not in its file, tensor in two files.
  static TensorIndex open(const std::filesystem::path& folder,
                          const std::optional<std::filesystem::path>& only = std::nullopt);

  /// The tensor, or nullptr.
  const IndexedTensor* find(std::string_view name) const;
  /// Error: no such tensor; names the nearest names present.
  const IndexedTensor& at(std::string_view name) const;
  /// All tensors whose names begin with `prefix`, by name.
  std::span<const IndexedTensor> with_prefix(std::string_view prefix) const;
  std::size_t size() const { return tensors_.size(); }

  const std::shared_ptr<const SafetensorsFile>& file(std::uint32_t number) const {
    return files_[number];
  }
  /// "folder/file: tensor", for messages.
  std::string subject(const IndexedTensor& tensor) const;
  /// "file: tensor", for provenance.
  std::string source(const IndexedTensor& tensor) const;

 private:
  void check_places(const WeightMap& map) const;

  std::filesystem::path folder_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::vector<IndexedTensor> tensors_;  ///< by name
};

}  // namespace moeref
