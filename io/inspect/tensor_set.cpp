#include "io/inspect/tensor_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexSuffix = ".safetensors.index.json";
constexpr std::uintmax_t kMaxIndexBytes = std::uintmax_t{1} << 28;
constexpr std::uintmax_t kMaxConfigBytes = std::uintmax_t{1} << 24;

/// The entries of an index: tensor to file. Only names of files in the same folder are followed.
std::map<std::string, std::string> read_weight_map(const fs::path& file,
                                                   const nlohmann::json& index) {
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    fail(file.string(), "has no object 'weight_map'; an index maps tensor names to files");
  }
  std::map<std::string, std::string> result;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      fail(file.string(), "weight_map entry '{}' is no string", one_line(tensor));
    const std::string name = shard.get<std::string>();
    if (fs::path(name).filename() != name || name.empty() || name == ".." || name == ".") {
      fail(file.string(), "weight_map names '{}'; a shard must lie in the same folder",
           one_line(name));
    }
    result[tensor] = name;
  }
  return result;
}

/// Adds a file's tensors; a name that another file has already is a finding.
void add_file(TensorSet& set, const fs::path& file, Findings& findings) {
  set.files.push_back(SafetensorsFile::open(file));
  for (const auto& [tensor, view] : set.files.back()->tensors()) {
    if (!set.tensors.emplace(tensor, &view).second) {
      findings.add(Severity::error, "index.duplicate", tensor,
                   fmt::format("is in {} and in another file", file.filename().string()));
    }
  }
}

void check_total_size(const TensorSet& set, const nlohmann::json& index, Findings& findings) {
  std::uint64_t bytes = 0;
  for (const auto& [tensor, view] : set.tensors) bytes += view->bytes.size();
  const auto metadata = index.find("metadata");
  if (metadata == index.end() || !metadata->is_object() || !metadata->contains("total_size"))
    return;
  const nlohmann::json& total = metadata->at("total_size");
  if (!total.is_number_unsigned() || total.get<std::uint64_t>() != bytes) {
    findings.add(Severity::warning, "index.total-size", "metadata.total_size",
                 fmt::format("is {}, the tensors take {} bytes", shown(total), bytes));
  }
}

void open_index(TensorSet& set, const fs::path& file, Findings& findings) {
  const nlohmann::json index = read_json_object(file, kMaxIndexBytes);
  const auto weight_map = read_weight_map(file, index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    const fs::path path = file.parent_path() / shard;
    if (fs::exists(path)) {
      add_file(set, path, findings);
    } else {
      findings.add(Severity::error, "index.missing-file", shard,
                   "is named by the index, but is not in the folder");
    }
  }
  for (const auto& [tensor, shard] : weight_map) {
    const auto found = std::ranges::find_if(set.files, [&wanted = shard](const auto& opened) {
      return opened->path().filename() == wanted;
    });
    if (found != set.files.end() && (*found)->find(tensor) == nullptr) {
      findings.add(Severity::error, "index.missing-tensor", tensor,
                   fmt::format("is listed in the index, but {} does not have it", shard));
    }
  }
  for (const auto& [tensor, view] : set.tensors) {
    if (!weight_map.contains(tensor)) {
      findings.add(Severity::warning, "index.unlisted", tensor,
                   "is in a file, but not in the index: loaders will not see it");
    }
  }
  check_total_size(set, index, findings);
}

/// The index of a folder if there is one, else its safetensors files.
void open_folder(TensorSet& set, const fs::path& folder, Findings& findings) {
  std::vector<fs::path> weights;
  std::vector<fs::path> indexes;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string file = entry.path().filename().string();
    if (file.ends_with(kIndexSuffix)) indexes.push_back(entry.path());
    if (entry.path().extension() == ".safetensors") weights.push_back(entry.path());
  }
  std::ranges::sort(weights);
  std::ranges::sort(indexes);
  if (indexes.empty() && weights.empty()) {
    fail(folder.string(), "has no safetensors file and no index; name a file or a model folder");
  }
  if (!indexes.empty()) return open_index(set, indexes.front(), findings);
  for (const fs::path& file : weights) add_file(set, file, findings);
}

}  // namespace

const TensorView* TensorSet::find(std::string_view tensor) const {
  const auto found = tensors.find(tensor);
  return found == tensors.end() ? nullptr : found->second;
}

TensorSet open_tensor_set(const fs::path& path, Findings& findings) {
  TensorSet set;
  set.path = path;
  std::error_code error;
  const bool folder = fs::is_directory(path, error);
  if (!folder && !fs::exists(path, error)) {
    fail(path.string(), "does not exist; name a safetensors file, an index or a model folder");
  }
  try {
    if (folder) {
      open_folder(set, path, findings);
    } else if (path.string().ends_with(kIndexSuffix)) {
      open_index(set, path, findings);
    } else {
      add_file(set, path, findings);
    }
  } catch (const fs::filesystem_error& failure) {
    fail(path.string(), "cannot be read: {}", failure.code().message());
  }
  const fs::path config = (folder ? path : fs::absolute(path).parent_path()) / "config.json";
  if (!fs::is_regular_file(config, error)) return set;
  try {
    set.config = std::make_shared<const nlohmann::json>(read_json_object(config, kMaxConfigBytes));
  } catch (const Error& failure) {
    findings.add(Severity::error, "config.unreadable", "config.json", failure.what());
  }
  return set;
}

}  // namespace moeref
