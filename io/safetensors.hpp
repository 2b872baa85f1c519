#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/mapped_file.hpp"
#include "quant/nearest_names.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// A safetensors file, mapped read-only and validated as a whole before anything is handed out:
/// header length, JSON (depth, duplicate names, types), dtypes, shapes without overflow, data that
/// is exactly covered (no overlap, no hole, no truncation, no trailing bytes). Pages of a tensor
/// are read from disk only when it is used. Tensors may start at any offset. Format:
/// https://github.com/huggingface/safetensors.
class SafetensorsFile {
 public:
  /// Error: unreadable or malformed file; one line "path: what is wrong".
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// By name.
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  /// The tensor, or nullptr.
  const TensorView* find(std::string_view name) const;
  /// Error: no such tensor; names the nearest names present.
  const TensorView& at(std::string_view name) const;

 private:
  SafetensorsFile() = default;
  std::filesystem::path path_;
  Mapping mapping_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::u8;
  Shape shape;
};

/// Writes a safetensors file tensor by tensor: to a temporary file beside the target, renamed on
/// `commit`, removed if that never comes. The same input gives the same bytes, those of the
/// reference implementation: tensors lie, in the header and in the data, by falling alignment of
/// their dtype (the reference's order of dtypes), then by name; metadata is sorted by key; the
/// header is padded with spaces to 8 bytes. Source: huggingface/safetensors@24b0b28
/// safetensors/src/tensor.rs prepare
class SafetensorsWriter {
 public:
  using Metadata = std::map<std::string, std::string, std::less<>>;
  /// Error: folder not writable, duplicate names, bad shapes, no space for the file.
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> tensors, Metadata metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// The tensors in the order in which they lie in the file and must be written.
  const std::vector<TensorSpec>& order() const { return tensors_; }
  /// Appends bytes; they may be cut anywhere. Error: disk full, more bytes than declared.
  void append(std::span<const std::byte> bytes);
  /// Error: bytes missing; disk full; rename refused.
  void commit();

 private:
  std::filesystem::path path_;
  std::vector<TensorSpec> tensors_;
  std::vector<std::uint64_t> ends_;  // of each tensor's data
  std::uint64_t written_ = 0;        // bytes of data
  std::optional<AtomicFile> file_;
};

/// All at once.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                       const SafetensorsWriter::Metadata& metadata);

}  // namespace moeref
