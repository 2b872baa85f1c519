#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "io/safetensors_header.hpp"
#include "io/utf8.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

/// Every dtype in the order in which tensors lie in a file: falling alignment, and among equals as
/// the reference has it. Source: huggingface/safetensors@24b0b28 safetensors/src/tensor.rs Dtype
/// (read backwards)
constexpr std::array kFileOrder{
    DType::u64,     DType::i64,         DType::f64,         DType::c64,     DType::f32,
    DType::u32,     DType::i32,         DType::bf16,        DType::f16,     DType::u16,
    DType::i16,     DType::f8_e5m2fnuz, DType::f8_e4m3fnuz, DType::f8_e8m0, DType::f8_e4m3,
    DType::f8_e5m2, DType::i8,          DType::u8,          DType::f6_e3m2, DType::f6_e2m3,
    DType::f4,      DType::boolean,
};

std::size_t file_rank(DType dtype) {
  return static_cast<std::size_t>(std::find(kFileOrder.begin(), kFileOrder.end(), dtype) -
                                  kFileOrder.begin());
}

void check_utf8(const std::string& file, std::string_view what, std::string_view text) {
  if (const auto at = find_invalid_utf8(text); at != text.npos) {
    fail(file, "{} {} is not UTF-8 at its byte {}", what, in_quotes(text), at);
  }
}

void check_names(const std::string& file, std::span<const TensorSpec> tensors,
                 const SafetensorsWriter::Metadata& metadata) {
  std::set<std::string_view> seen;
  for (const TensorSpec& tensor : tensors) {
    check_utf8(file, "tensor name", tensor.name);
    if (tensor.name == kMetadataKey) {
      fail(file, "a tensor cannot be named '{}'; the format keeps that name for metadata",
           kMetadataKey);
    }
    if (!seen.insert(tensor.name).second) {
      fail(file, "two tensors are named {}; give each its own name", in_quotes(tensor.name));
    }
  }
  for (const auto& [key, value] : metadata) {
    check_utf8(file, "metadata key", key);
    check_utf8(file, "metadata value", value);
  }
}

/// Where each tensor lies; `tensors` are in file order.
std::vector<SafetensorsEntry> lay_out(const std::string& file,
                                      std::span<const TensorSpec> tensors) {
  std::vector<SafetensorsEntry> entries;
  entries.reserve(tensors.size());
  std::uint64_t end = 0;
  for (const TensorSpec& tensor : tensors) {
    const std::uint64_t begin = end;
    // Each is below 2^60 bytes, so the sum is seen to pass 2^62 before it could wrap.
    end += byte_count(tensor_subject(file, tensor.name), tensor.dtype, tensor.shape);
    if (end > std::uint64_t{1} << 62) fail(file, "the tensors take more than 2^62 bytes");
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, begin, end});
  }
  return entries;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> tensors,
                                     Metadata metadata)
    : path_(std::move(path)), tensors_(std::move(tensors)) {
  const std::string file = path_.string();
  check_names(file, tensors_, metadata);
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorSpec& left, const TensorSpec& right) {
    const std::size_t left_rank = file_rank(left.dtype);
    const std::size_t right_rank = file_rank(right.dtype);
    return left_rank != right_rank ? left_rank < right_rank : left.name < right.name;
  });
  const std::vector<SafetensorsEntry> entries = lay_out(file, tensors_);
  for (const SafetensorsEntry& entry : entries) ends_.push_back(entry.end);
  const std::string header = format_header(entries, metadata);
  const std::uint64_t length = header.size();
  if (length > kMaxHeaderBytes) {
    fail(file,
         "header takes {} bytes, the format's limit is {}; write fewer tensors or less metadata",
         length, kMaxHeaderBytes);
  }
  std::array<std::byte, kHeaderLengthBytes> prefix;
  for (std::size_t i = 0; i < prefix.size(); ++i) {
    prefix[i] = static_cast<std::byte>(length >> (8 * i));
  }
  file_.emplace(path_, kHeaderLengthBytes + length + (ends_.empty() ? 0 : ends_.back()));
  file_->append(prefix);
  file_->append(std::as_bytes(std::span(header)));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  const std::uint64_t expected = ends_.empty() ? 0 : ends_.back();
  if (bytes.size() > expected - written_) {
    file_->discard();
    fail(path_.string(),
         "{} bytes more than the {} tensors take ({} bytes); append what was declared",
         bytes.size() - (expected - written_), tensors_.size(), expected);
  }
  file_->append(bytes);
  written_ += bytes.size();
}

void SafetensorsWriter::commit() {
  const auto unfinished = std::upper_bound(ends_.begin(), ends_.end(), written_);
  if (unfinished != ends_.end()) {
    file_->discard();
    const auto index = static_cast<std::size_t>(unfinished - ends_.begin());
    fail(tensor_subject(path_.string(), tensors_[index].name),
         "not complete: {} of {} bytes of data were appended; append all tensors before commit",
         written_, ends_.back());
  }
  file_->commit();
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                       const SafetensorsWriter::Metadata& metadata) {
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const TensorView*> by_name;
  for (const TensorView& tensor : tensors) {
    const std::string subject = tensor_subject(path.string(), tensor.name);
    const std::uint64_t needed = byte_count(subject, tensor.dtype, tensor.shape);
    if (tensor.bytes.size() != needed) {
      fail(subject, "has {} bytes, {} {} needs {}", tensor.bytes.size(), name(tensor.dtype),
           to_string(tensor.shape), needed);
    }
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    by_name.emplace(tensor.name, &tensor);
  }
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorSpec& spec : writer.order()) writer.append(by_name.at(spec.name)->bytes);
  writer.commit();
}

}  // namespace moeref
