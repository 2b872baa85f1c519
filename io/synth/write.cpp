#include "io/synth/write.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "io/atomic_file.hpp"
#include "io/safetensors.hpp"
#include "io/synth/ordered_chunks.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

/// Room for headers and configs when the space on the disk is checked.
constexpr std::uint64_t kSmallFiles = std::uint64_t{1} << 20;
constexpr std::string_view kIndexName = "model.safetensors.index.json";

struct WeightFile {
  std::string file;
  std::vector<const SynthTensor*> tensors;
};

/// Cuts the tensors, in their order, into files of at most `shard_bytes` of data.
std::vector<WeightFile> cut_shards(const SynthPlan& plan, std::uint64_t shard_bytes) {
  std::vector<WeightFile> shards(1);
  std::uint64_t filled = 0;
  for (const SynthTensor& tensor : plan.tensors) {
    const std::uint64_t bytes = tensor.byte_count();
    if (filled != 0 && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().tensors.push_back(&tensor);
    filled += bytes;
  }
  if (shards.size() == 1) {
    shards[0].file = "model.safetensors";
  } else {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      shards[i].file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    }
  }
  return shards;
}

/// A part of one tensor.
struct Piece {
  const SynthTensor* tensor;
  std::uint64_t first;
  std::size_t bytes;
};

/// Neighbouring pieces that are made together.
struct Chunk {
  std::vector<Piece> pieces;
  std::size_t bytes = 0;
};

/// Chunks of about the same work: `chunk_bytes` bytes that are drawn, fewer that are made of many
/// numbers each.
std::vector<Chunk> cut_chunks(std::span<const SynthTensor* const> in_file_order,
                              std::uint64_t chunk_bytes) {
  std::vector<Chunk> chunks(1);
  std::uint64_t left = chunk_bytes;
  for (const SynthTensor* tensor : in_file_order) {
    const std::uint64_t total = tensor->byte_count();
    const std::uint64_t work = tensor->draws_per_byte();
    for (std::uint64_t first = 0; first < total;) {
      if (left == 0) {
        chunks.emplace_back();
        left = chunk_bytes;
      }
      Chunk& chunk = chunks.back();
      const std::uint64_t bytes = std::min(total - first, (left + work - 1) / work);
      chunk.pieces.push_back({tensor, first, static_cast<std::size_t>(bytes)});
      chunk.bytes += static_cast<std::size_t>(bytes);
      left -= std::min(left, bytes * work);
      first += bytes;
    }
  }
  return chunks;
}

void fill(const Chunk& chunk, std::uint64_t seed, std::span<std::byte> out) {
  for (const Piece& piece : chunk.pieces) {
    make_bytes(*piece.tensor, seed, piece.first, out.first(piece.bytes));
    out = out.subspan(piece.bytes);
  }
}

SafetensorsWriter::Metadata metadata_of(const SynthPlan& plan) {
  std::string origin = fmt::format("{} {} seed {}", plan.model->name,
                                   plan.scale == SynthScale::tiny ? "tiny" : "full", plan.seed);
  if (plan.quantizer) origin += ", weights by " + full_name(*plan.quantizer);
  return {{"format", "pt"}, {"moeref.synth", std::move(origin)}};
}

void write_shard(const SynthPlan& plan, const WeightFile& shard, const fs::path& folder,
                 const SynthWriteOptions& options, std::uint64_t& done) {
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const SynthTensor*> by_name;
  for (const SynthTensor* tensor : shard.tensors) {
    specs.push_back({tensor->name, tensor->dtype, tensor->shape});
    by_name.emplace(tensor->name, tensor);
  }
  SafetensorsWriter writer(folder / shard.file, std::move(specs), metadata_of(plan));
  std::vector<const SynthTensor*> in_file_order;
  for (const TensorSpec& spec : writer.order()) in_file_order.push_back(by_name.at(spec.name));
  const std::vector<Chunk> chunks = cut_chunks(in_file_order, options.chunk_bytes);
  const std::uint64_t total = plan.total_bytes();
  make_in_order(
      chunks.size(), options.threads, [&](std::size_t chunk) { return chunks[chunk].bytes; },
      [&](std::size_t chunk, std::span<std::byte> out) { fill(chunks[chunk], plan.seed, out); },
      [&](std::span<const std::byte> bytes) {
        writer.append(bytes);
        done += bytes.size();
        if (options.progress && !options.progress(done, total)) {
          fail("synth", "stopped; nothing was kept");
        }
      });
  writer.commit();
}

std::string index_json(std::span<const WeightFile> shards, std::uint64_t total_bytes) {
  nlohmann::json map = nlohmann::json::object();
  for (const WeightFile& shard : shards) {
    for (const SynthTensor* tensor : shard.tensors) map[tensor->name] = shard.file;
  }
  return nlohmann::json{{"metadata", {{"total_size", total_bytes}}}, {"weight_map", map}}.dump(2) +
         "\n";
}

bool is_checkpoint_file(const fs::directory_entry& entry) {
  const std::string file = entry.path().filename().string();
  return entry.is_regular_file() && !entry.is_symlink() &&
         (file == "config.json" || file == "hf_quant_config.json" || file == kIndexName ||
          entry.path().extension() == ".safetensors");
}

/// The folder must be absent or empty, or hold a checkpoint and nothing else if it may be replaced.
void check_target(const fs::path& folder, bool force) {
  if (!fs::exists(fs::symlink_status(folder))) return;
  if (!fs::is_directory(folder)) fail(folder.string(), "is not a folder; name a new one with -o");
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!force) {
      fail(folder.string(),
           "is not empty; name a new folder, or give --force to replace the checkpoint in it");
    }
    if (!is_checkpoint_file(entry)) {
      fail(folder.string(),
           "holds '{}', which no checkpoint written here has; --force replaces checkpoints only",
           entry.path().filename().string());
    }
  }
}

/// Space for `bytes` where `staging` lies; the message is about `folder`.
void check_space(const fs::path& staging, const fs::path& folder, std::uint64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(staging, error);
  if (!error && space.available < bytes + kSmallFiles) {
    fail(folder.string(),
         "needs {:.1f} GB, the disk has {:.1f} GB free; write fewer layers or experts",
         static_cast<double>(bytes) * 1e-9, static_cast<double>(space.available) * 1e-9);
  }
}

/// The absolute path of the target behind links, without a trailing slash.
fs::path resolve(const fs::path& folder) {
  if (folder.empty()) fail("synth", "no output folder is named; give one with -o");
  fs::path whole = fs::weakly_canonical(fs::absolute(folder));
  if (!whole.has_filename()) whole = whole.parent_path();
  if (!whole.has_filename())
    fail(folder.string(), "cannot be the output folder; name a new one with -o");
  return whole;
}

/// A folder beside the target that goes away unless it takes the target's place.
class StagingFolder {
 public:
  explicit StagingFolder(fs::path target) : target_(std::move(target)), path_(sibling("partial")) {
    fs::create_directories(target_.parent_path());
    fs::create_directory(path_);
  }
  ~StagingFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const fs::path& path() const { return path_; }

  /// An old folder is moved aside first and removed last, so that one of the two is always there.
  void take_place() {
    fs::path old;
    if (fs::exists(target_)) {
      old = sibling("old");
      fs::rename(target_, old);
    }
    std::error_code refused;
    fs::rename(path_, target_, refused);
    if (refused) {
      if (!old.empty()) fs::rename(old, target_);
      throw fs::filesystem_error("rename", path_, target_, refused);
    }
    path_.clear();
    if (!old.empty()) fs::remove_all(old);
  }

 private:
  fs::path sibling(std::string_view kind) const {
    return target_.parent_path() /
           fmt::format("{}.{}-{:x}", target_.filename().string(), kind, ::getpid());
  }

  fs::path target_;
  fs::path path_;
};

}  // namespace

SynthFiles write_checkpoint(const SynthPlan& plan, const fs::path& folder,
                            const SynthWriteOptions& options) {
  if (options.shard_bytes == 0) fail("--shard-size", "is 0; at least 1 byte is needed");
  if (options.chunk_bytes == 0) fail("synth", "makes chunks of 0 bytes; at least 1 is needed");
  try {
    const fs::path target = resolve(folder);
    check_target(target, options.force);
    StagingFolder staging(target);
    check_space(staging.path(), folder, plan.total_bytes());
    const std::vector<WeightFile> shards = cut_shards(plan, options.shard_bytes);
    SynthFiles files{target, {}, plan.total_bytes()};
    std::uint64_t done = 0;
    for (const WeightFile& shard : shards) {
      write_shard(plan, shard, staging.path(), options, done);
      files.weight_files.push_back(shard.file);
    }
    if (shards.size() > 1) {
      write_file_atomically(staging.path() / kIndexName, index_json(shards, files.tensor_bytes));
    }
    write_file_atomically(staging.path() / "config.json", plan.config_json);
    if (!plan.hf_quant_config_json.empty()) {
      write_file_atomically(staging.path() / "hf_quant_config.json", plan.hf_quant_config_json);
    }
    staging.take_place();
    return files;
  } catch (const fs::filesystem_error& error) {
    fail(folder.string(), "cannot be written: {}", error.code().message());
  }
}

}  // namespace moeref
