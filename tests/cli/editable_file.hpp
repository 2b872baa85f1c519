#pragma once

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/tensor.hpp"

namespace moeref::testing {

/// A safetensors file in memory, to change and write again.
struct EditableFile {
  std::map<std::string, Tensor> tensors;
  SafetensorsWriter::Metadata metadata;

  EditableFile() = default;
  explicit EditableFile(const std::filesystem::path& path) {
    const auto file = SafetensorsFile::open(path);
    metadata = file->metadata();
    for (const auto& [name, view] : file->tensors()) {
      tensors[name] = {name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}};
    }
  }
  void write(const std::filesystem::path& path) const {
    std::vector<TensorView> views;
    for (const auto& [name, tensor] : tensors) {
      views.push_back(tensor.view());
      views.back().name = name;
    }
    write_safetensors(path, views, metadata);
  }
  Tensor& operator[](const std::string& name) { return tensors.at(name); }
  template <typename T>
  T get(const std::string& name, std::size_t index) {
    return load<T>(tensors.at(name).bytes.data() + index * sizeof(T));
  }
  template <typename T>
  void set(const std::string& name, std::size_t index, T value) {
    std::memcpy(tensors.at(name).bytes.data() + index * sizeof(T), &value, sizeof(T));
  }
  void edit_json(const std::string& key, const std::function<void(nlohmann::json&)>& edit) {
    nlohmann::json value = nlohmann::json::parse(metadata.at(key));
    edit(value);
    metadata[key] = value.dump();
  }
};

}  // namespace moeref::testing
