#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace moeref {

/// Writes a file of known size aside, in the target's folder, and renames it when it is complete:
/// the target is the old file or the whole new one, never a part. A symbolic link is followed.
/// Without `commit`, nothing is left behind.
class AtomicFile {
 public:
  /// Reserves `size` bytes on disk.
  /// Error: folder missing or not writable, the target is no regular file, no space for `size`
  /// bytes.
  AtomicFile(std::filesystem::path path, std::uint64_t size);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Error: disk full, more bytes than declared; the temporary file is gone then.
  void append(std::span<const std::byte> bytes);
  /// Puts the file in its place, on disk for good. Error: bytes missing, disk full, rename refused.
  void commit();
  /// Removes the temporary file; nothing can follow.
  void discard() noexcept;

 private:
  void reserve();
  void flush();
  void write_all(std::span<const std::byte> bytes);
  [[noreturn]] void fail_to_write(int error);

  std::filesystem::path path_;    // as the caller named it, for messages
  std::filesystem::path target_;  // behind the links
  std::filesystem::path folder_;
  std::filesystem::path temporary_;  // empty once renamed or removed
  std::uint64_t size_ = 0;
  std::uint64_t appended_ = 0;
  std::vector<std::byte> pending_;  // small pieces, not yet written
  int descriptor_ = -1;
};

/// Writes a whole text file aside, then renames. Error: as AtomicFile.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace moeref
