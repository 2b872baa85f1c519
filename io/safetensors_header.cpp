#include "io/safetensors_header.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "io/utf8.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

constexpr std::size_t kMaxDimensions = 64;

/// What users hand over in the place of a safetensors file, by its first bytes.
struct Lookalike {
  std::string_view magic;
  std::string_view message;
};

constexpr std::array<Lookalike, 5> kLookalikes{{
    {"version https://git-lfs",
     "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'"},
    {"PK\x03\x04", "is a zip archive (a PyTorch checkpoint?); convert it to safetensors"},
    {"GGUF", "is a GGUF file; convert it to safetensors"},
    {"{", "is JSON text; name the .safetensors file"},
    {"<", "is an HTML or XML page; download the file itself"},
}};

/// a * b, or false if that is above 2^63 - 1.
bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
  if (a != 0 && b > kMax / a) return false;
  product = a * b;
  return true;
}

/// Every byte of the data belongs to exactly one tensor; tensors without bytes may lie anywhere.
void check_coverage(std::string_view file, std::span<const SafetensorsEntry> by_offset,
                    std::uint64_t data_bytes) {
  std::uint64_t covered = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const SafetensorsEntry& entry : by_offset) {
    if (entry.begin == entry.end) continue;
    if (entry.begin < covered) {
      fail(file, "tensors {} and {} overlap in data bytes [{}, {})", in_quotes(previous->name),
           in_quotes(entry.name), entry.begin, std::min(covered, entry.end));
    }
    if (entry.begin > covered) {
      fail(file, "data bytes [{}, {}) before tensor {} belong to no tensor", covered, entry.begin,
           in_quotes(entry.name));
    }
    covered = entry.end;
    previous = &entry;
  }
  if (covered > data_bytes) {
    fail(
        file,
        "truncated: {} bytes are missing (the header describes {} bytes of data, the file has {}); "
        "copy or download it again",
        covered - data_bytes, covered, data_bytes);
  }
  if (covered < data_bytes) {
    fail(file,
         "{} trailing bytes after the last tensor (the header describes {} bytes of data, the "
         "file has {})",
         data_bytes - covered, covered, data_bytes);
  }
  for (const SafetensorsEntry& entry : by_offset) {
    if (entry.begin > data_bytes) {
      fail(tensor_subject(file, entry.name),
           "data_offsets [{}, {}] lie outside the {} bytes of data", entry.begin, entry.end,
           data_bytes);
    }
  }
}

}  // namespace

std::string tensor_subject(std::string_view file, std::string_view tensor) {
  return fmt::format("{}: {}", file, in_quotes(tensor));
}

std::uint64_t byte_count(std::string_view subject, DType dtype, const Shape& shape) {
  if (shape.size() > kMaxDimensions) {
    fail(subject, "shape has {} dimensions, at most {} are supported", shape.size(),
         kMaxDimensions);
  }
  std::uint64_t bits = static_cast<std::uint64_t>(info(dtype).bits);
  bool is_empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) fail(subject, "shape {} has a negative size", to_string(shape));
    if (size == 0) {
      is_empty =
          true;  // the other sizes must still multiply without overflow: strides are made of them
    } else if (!multiply(bits, static_cast<std::uint64_t>(size), bits)) {
      fail(subject, "{} {} overflows: more than 2^63 - 1 bits", name(dtype), to_string(shape));
    }
  }
  if (is_empty) return 0;
  if (bits % 8 != 0) {
    fail(subject, "{} {} takes {} bits, which make no whole bytes", name(dtype), to_string(shape),
         bits);
  }
  return bits / 8;
}

std::uint64_t parse_header_length(std::string_view file, std::string_view first,
                                  std::uint64_t file_bytes) {
  if (file_bytes == 0) fail(file, "is empty; copy or download it again");
  if (file_bytes < kHeaderLengthBytes) {
    fail(file, "has {} bytes, a safetensors file starts with a header length of {}", file_bytes,
         kHeaderLengthBytes);
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kHeaderLengthBytes; ++i) {
    length |= std::uint64_t{static_cast<std::uint8_t>(first[i])} << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    for (const Lookalike& other : kLookalikes) {
      if (first.starts_with(other.magic)) fail(file, "{}", other.message);
    }
    fail(file, "header length {} is above the limit of {} bytes; is this a safetensors file?",
         length, kMaxHeaderBytes);
  }
  if (length == 0) fail(file, "header length is 0; an empty header is '{{}}'");
  if (length > file_bytes - kHeaderLengthBytes) {
    fail(file,
         "truncated in the header: it needs {} bytes, the file has {}; copy or download it again",
         length, file_bytes - kHeaderLengthBytes);
  }
  return length;
}

SafetensorsHeader parse_header(std::string_view file, std::string_view json,
                               std::uint64_t data_bytes) {
  SafetensorsHeader header = parse_header_json(file, json);
  for (const SafetensorsEntry& entry : header.entries) {
    const std::string subject = tensor_subject(file, entry.name);
    const std::uint64_t needed = byte_count(subject, entry.dtype, entry.shape);
    if (entry.end - entry.begin != needed) {
      fail(subject, "data_offsets [{}, {}] hold {} bytes, {} {} needs {}", entry.begin, entry.end,
           entry.end - entry.begin, name(entry.dtype), to_string(entry.shape), needed);
    }
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& left, const SafetensorsEntry& right) {
              return std::tie(left.begin, left.end, left.name) <
                     std::tie(right.begin, right.end, right.name);
            });
  check_coverage(file, header.entries, data_bytes);
  return header;
}

std::string format_header(std::span<const SafetensorsEntry> entries,
                          const std::map<std::string, std::string, std::less<>>& metadata) {
  const auto json_string = [](std::string_view text) { return nlohmann::json(text).dump(); };
  std::string json = "{";
  if (!metadata.empty()) {
    json += fmt::format("{}:{}", json_string(kMetadataKey), nlohmann::json(metadata).dump());
  }
  for (const SafetensorsEntry& entry : entries) {
    fmt::format_to(std::back_inserter(json),
                   "{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                   json.size() > 1 ? "," : "", json_string(entry.name), name(entry.dtype),
                   fmt::join(entry.shape, ","), entry.begin, entry.end);
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  return json;
}

}  // namespace moeref
