#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace moeref {

/// The bytes of a file in memory, read-only; pages come from disk when they are touched. The file
/// must not shrink meanwhile.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  friend class InputFile;
  explicit Mapping(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

/// A regular file open for reading.
class InputFile {
 public:
  /// Error: missing, not a regular file, not readable; never waits for the writer of a FIFO.
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::uint64_t size() const { return size_; }
  /// Bytes [offset, offset + count), which lie inside the file; reads no page beyond them.
  /// Error: the disk fails, the file shrank.
  std::string read(std::uint64_t offset, std::size_t count) const;
  /// The whole of a file that is not empty; outlives this object.
  Mapping map() const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace moeref
