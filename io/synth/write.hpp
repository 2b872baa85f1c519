#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "io/synth/plan.hpp"

namespace moeref {

struct SynthWriteOptions {
  int threads = 0;  ///< 0 = all
  std::uint64_t shard_bytes =
      5'000'000'000;  ///< tensor data of a file at most, unless one tensor alone is larger
  /// Bytes that a thread makes at once, fewer where a byte takes more work: of no influence on what
  /// is written.
  std::uint64_t chunk_bytes = std::uint64_t{4} << 20;
  bool force = false;  ///< replace a folder that holds a checkpoint
  /// Called now and then from the calling thread with bytes done and bytes in all; false stops the
  /// work.
  std::function<bool(std::uint64_t, std::uint64_t)> progress;
};

struct SynthFiles {
  std::filesystem::path folder;
  std::vector<std::string> weight_files;
  std::uint64_t tensor_bytes = 0;
};

/// Writes the checkpoint folder: beside its place first, then renamed, so that it is whole or
/// absent. Same plan, same bytes (the number of threads does not enter). Holds a few chunks
/// per thread in memory. Error: folder in use and not `force`; `force` on a folder with foreign
/// files; no space; I/O errors; stopped.
SynthFiles write_checkpoint(const SynthPlan& plan, const std::filesystem::path& folder,
                            const SynthWriteOptions& options);

}  // namespace moeref
