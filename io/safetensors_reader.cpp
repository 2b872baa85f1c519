#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "io/safetensors_header.hpp"
#include "io/utf8.hpp"
#include "quant/error.hpp"

namespace moeref {

static_assert(std::endian::native == std::endian::little,
              "tensors are handed out as they lie in the file, which is little-endian");

SafetensorsFile::~SafetensorsFile() = default;

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  constexpr std::uint64_t kMagicBytes = 32;  // enough to name a file of another format
  const std::string subject = path.string();
  const InputFile input(path);
  const std::string first = input.read(0, std::min(kMagicBytes, input.size()));
  const std::uint64_t length = parse_header_length(subject, first, input.size());
  const std::uint64_t data_begin = kHeaderLengthBytes + length;
  // Read, not mapped: the pages of the data stay on disk until a tensor is used.
  SafetensorsHeader header =
      parse_header(subject, input.read(kHeaderLengthBytes, length), input.size() - data_begin);

  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  file->mapping_ = input.map();
  file->metadata_ = std::move(header.metadata);
  const std::span<const std::byte> data = file->mapping_.bytes().subspan(data_begin);
  for (SafetensorsEntry& entry : header.entries) {
    TensorView view{entry.name, entry.dtype, std::move(entry.shape),
                    data.subspan(entry.begin, entry.end - entry.begin)};
    file->tensors_.emplace(std::move(entry.name), std::move(view));
  }
  return file;
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  if (const TensorView* tensor = find(name)) return *tensor;
  if (tensors_.empty())
    fail(path_.string(), "no tensor {}; the file holds no tensors", in_quotes(name));
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [present, view] : tensors_) names.push_back(present);
  std::string nearest;
  for (const std::string& near : nearest_names(name, names)) {
    nearest += (nearest.empty() ? "" : ", ") + in_quotes(near);
  }
  fail(path_.string(), "no tensor {}; nearest of {}: {}", in_quotes(name), names.size(), nearest);
}

}  // namespace moeref
