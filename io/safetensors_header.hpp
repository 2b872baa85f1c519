#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/tensor.hpp"

namespace moeref {

/// The reference implementation's limit (huggingface/safetensors@24b0b28 safetensors/src/tensor.rs
/// MAX_HEADER_SIZE).
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// Of the little-endian header length in front of the header.
inline constexpr std::uint64_t kHeaderLengthBytes = 8;
/// The key of the free-form strings; not a tensor name.
inline constexpr std::string_view kMetadataKey = "__metadata__";

/// A tensor as the header describes it: bytes [begin, end) of the data.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::u8;
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< by offset
  std::map<std::string, std::string, std::less<>> metadata;
};

/// "file: tensor", for messages.
std::string tensor_subject(std::string_view file, std::string_view tensor);

/// Bytes that a tensor takes. Error: a negative size, more than 64 dimensions, a product of the
/// non-zero sizes (in bits) above 2^63 - 1, bits that make no whole bytes.
std::uint64_t byte_count(std::string_view subject, DType dtype, const Shape& shape);

/// Error: a header length of 0, above the limit or beyond a file of `file_bytes`; `first` are the
/// file's first bytes (8 or more if it has them), which tell a few other formats apart.
std::uint64_t parse_header_length(std::string_view file, std::string_view first,
                                  std::uint64_t file_bytes);

/// What the JSON says, entries in its order: each with a known dtype, sizes of at least 0, begin <=
/// end; no name twice at any level. Keys that the format does not know are passed over. Error: all
/// else.
SafetensorsHeader parse_header_json(std::string_view file, std::string_view json);

/// Parses and validates the JSON; the data it describes is without overlap or hole and exactly
/// `data_bytes` long. Error: as SafetensorsFile::open.
SafetensorsHeader parse_header(std::string_view file, std::string_view json,
                               std::uint64_t data_bytes);

/// The JSON, padded with spaces to 8 bytes; entries in the given order. Names and metadata are
/// UTF-8.
std::string format_header(std::span<const SafetensorsEntry> entries,
                          const std::map<std::string, std::string, std::less<>>& metadata);

}  // namespace moeref
