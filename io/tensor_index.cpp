#include "io/tensor_index.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <tuple>

#include "io/json_file.hpp"
#include "io/weight_map.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kExtension = ".safetensors";

/// The numbers of "model-00002-of-00005.safetensors".
struct ShardNumber {
  int index = 0;
  int count = 0;
};

std::optional<ShardNumber> parse_shard_number(std::string_view name) {
  if (!name.ends_with(kExtension)) return std::nullopt;
  name.remove_suffix(kExtension.size());
  const std::size_t of = name.rfind("-of-");
  if (of == std::string_view::npos) return std::nullopt;
  const std::size_t dash = of == 0 ? std::string_view::npos : name.rfind('-', of - 1);
  const std::size_t begin = dash == std::string_view::npos ? 0 : dash + 1;
  const auto parse = [](std::string_view digits) {
    int value = -1;
    const char* end = digits.data() + digits.size();
    const auto [stop, code] = std::from_chars(digits.data(), end, value);
    return code == std::errc{} && stop == end && value > 0 ? value : -1;
  };
  const ShardNumber number{parse(name.substr(begin, of - begin)), parse(name.substr(of + 4))};
  if (number.index < 0 || number.count < 0) return std::nullopt;
  return number;
}

/// Shards without an index: all of 1..N must be there.
void check_complete(const fs::path& folder, std::span<const std::string> shards) {
  const int count = parse_shard_number(shards.front())->count;
  std::vector<int> numbers;
  for (const std::string& name : shards) {
    const ShardNumber number = *parse_shard_number(name);
    if (number.count != count) {
      fail(folder.string(), "holds {} and {}, shards of two sets; keep one set, or add {}",
           shards.front(), name, kIndexName);
    }
    numbers.push_back(number.index);
  }
  std::sort(numbers.begin(), numbers.end());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] != static_cast<int>(i) + 1) {
      fail(folder.string(), "shard {} of {} is missing (or there twice); download the folder again",
           i + 1, count);
    }
  }
  if (static_cast<int>(numbers.size()) != count) {
    fail(folder.string(), "shard {} of {} is missing; download the folder again",
         numbers.size() + 1, count);
  }
}

/// Without an index only the file names are known.
std::vector<std::string> list_files(const fs::path& folder) {
  std::error_code error;
  if (fs::is_regular_file(folder / kSingleName, error)) return {std::string(kSingleName)};
  std::vector<std::string> shards;
  std::vector<std::string> others;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(kExtension)) continue;
    (parse_shard_number(name) ? shards : others).push_back(name);
  }
  std::sort(shards.begin(), shards.end());
  if (!shards.empty()) {
    check_complete(folder, shards);
    return shards;
  }
  if (others.size() == 1) return others;
  fail(folder.string(),
       "has {} safetensors files, needs {}, or shards and {}; name one file, or add the index",
       others.size(), kSingleName, kIndexName);
}

/// The files of a checkpoint, and the places of the tensors if an index lists them.
WeightMap list_contents(const fs::path& folder, const std::optional<fs::path>& only) {
  const std::string name = only ? only->filename().string() : std::string();
  std::error_code error;
  if (fs::exists(folder / kIndexName, error)) {
    WeightMap map = read_weight_map(folder / kIndexName);
    if (!only || std::find(map.files.begin(), map.files.end(), name) != map.files.end()) return map;
  }
  return {only ? std::vector<std::string>{name} : list_files(folder), {}};
}

[[noreturn]] void fail_missing_shard(const fs::path& path, const WeightMap& map, std::size_t file) {
  const auto inside = [&](const WeightMap::Entry& entry) { return entry.file == file; };
  const auto first = std::find_if(map.entries.begin(), map.entries.end(), inside);
  const auto count = std::count_if(map.entries.begin(), map.entries.end(), inside);
  fail(path.string(), "shard is missing{}; download it, or correct {}",
       count == 0
           ? std::string()
           : fmt::format(": {} tensors are in it, the first is {}", count, one_line(first->tensor)),
       kIndexName);
}

}  // namespace

TensorIndex TensorIndex::open(const fs::path& folder, const std::optional<fs::path>& only) {
  const WeightMap map = list_contents(folder, only);
  TensorIndex index;
  index.folder_ = folder;
  for (std::size_t number = 0; number < map.files.size(); ++number) {
    const fs::path path = folder / map.files[number];
    std::error_code error;
    if (!fs::is_regular_file(path, error)) fail_missing_shard(path, map, number);
    index.files_.push_back(SafetensorsFile::open(path));
    for (const auto& [tensor, view] : index.files_.back()->tensors()) {
      index.tensors_.push_back({tensor, &view, static_cast<std::uint32_t>(number)});
    }
  }
  std::sort(index.tensors_.begin(), index.tensors_.end(),
            [](const IndexedTensor& left, const IndexedTensor& right) {
              return std::tie(left.name, left.file) < std::tie(right.name, right.file);
            });
  const auto twice = std::adjacent_find(index.tensors_.begin(), index.tensors_.end(),
                                        [](const IndexedTensor& left, const IndexedTensor& right) {
                                          return left.name == right.name;
                                        });
  if (twice != index.tensors_.end()) {
    fail(index.subject(*twice), "the same tensor is also in {}; remove one of the two files",
         map.files[std::next(twice)->file]);
  }
  index.check_places(map);
  return index;
}

void TensorIndex::check_places(const WeightMap& map) const {
  for (const WeightMap::Entry& entry : map.entries) {
    const IndexedTensor* found = find(entry.tensor);
    if (found != nullptr && found->file == entry.file) continue;
    fail((folder_ / map.files[entry.file]).string(),
         "has no tensor {} that {} places in it{}; download both files again",
         one_line(entry.tensor), kIndexName,
         found == nullptr ? std::string() : " (it is in " + map.files[found->file] + ")");
  }
}

const IndexedTensor* TensorIndex::find(std::string_view name) const {
  const auto at = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const IndexedTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

std::span<const IndexedTensor> TensorIndex::with_prefix(std::string_view prefix) const {
  const auto head = [&](std::string_view name) { return name.substr(0, prefix.size()); };
  const auto first =
      std::partition_point(tensors_.begin(), tensors_.end(),
                           [&](const IndexedTensor& t) { return head(t.name) < prefix; });
  const auto last = std::partition_point(
      first, tensors_.end(), [&](const IndexedTensor& t) { return head(t.name) == prefix; });
  return {first, last};
}

const IndexedTensor& TensorIndex::at(std::string_view name) const {
  if (const IndexedTensor* found = find(name)) return *found;
  // Neighbours in the same module are the likeliest typing or version differences; a whole
  // checkpoint is too much to compare.
  constexpr std::size_t kMaxCandidates = 4096;
  std::span<const IndexedTensor> near;
  for (std::size_t end = name.rfind('.'); near.empty() && end != std::string_view::npos && end > 0;
       end = name.rfind('.', end - 1)) {
    near = with_prefix(name.substr(0, end + 1));
  }
  if (near.empty()) near = tensors_;
  std::vector<std::string> candidates;
  for (const IndexedTensor& tensor : near.first(std::min(near.size(), kMaxCandidates))) {
    candidates.push_back(one_line(tensor.name));
  }
  fail(folder_.string(), "tensor {} is missing; the nearest names present are: {}", one_line(name),
       fmt::join(nearest_names(name, candidates), ", "));
}

std::string TensorIndex::subject(const IndexedTensor& tensor) const {
  return fmt::format("{}: {}", files_[tensor.file]->path().string(), one_line(tensor.name));
}

std::string TensorIndex::source(const IndexedTensor& tensor) const {
  return fmt::format("{}: {}", files_[tensor.file]->path().filename().string(),
                     one_line(tensor.name));
}

}  // namespace moeref
