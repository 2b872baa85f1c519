#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "io/safetensors.hpp"

namespace moeref::cli {

/// Collects tensors of one file, in memory or made on demand, and writes them in one go.
class CaseWriter {
 public:
  /// Hands bytes to its argument, in order, in pieces of any size.
  using Producer = std::function<void(const std::function<void(std::span<const std::byte>)>&)>;

  /// A tensor that lives until `write`.
  void add(const TensorView& tensor);
  void add(TensorSpec spec, Producer produce);
  /// Something that producers point into.
  void keep(std::shared_ptr<const void> storage) { storage_.push_back(std::move(storage)); }
  void write(const std::filesystem::path& path, const SafetensorsWriter::Metadata& metadata) const;

 private:
  struct Entry {
    TensorSpec spec;
    Producer produce;
  };
  std::vector<Entry> entries_;
  std::vector<std::shared_ptr<const void>> storage_;
};

}  // namespace moeref::cli
