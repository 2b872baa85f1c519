#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "io/safetensors_header.hpp"
#include "io/utf8.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

/// What the JSON parser meets at a place where one value stands.
struct Value {
  std::string_view kind;
  std::string shown = {};  // as the message shows it, "" if the kind says all
  const std::string* text = nullptr;
  std::optional<std::uint64_t> whole = std::nullopt;
};

/// Receives the header's JSON piece by piece; throws Error at the first thing that is wrong. The
/// parser that calls it keeps its nesting on the heap, so only `kMaxDepth` bounds it.
class HeaderReader {
 public:
  HeaderReader(std::string_view file, std::string_view json, SafetensorsHeader& header)
      : file_(file), json_(json), header_(header) {
    open_.push_back({Place::document});
  }

  bool null() { return take({"null"}); }
  bool boolean(bool value) { return take({value ? "true" : "false"}); }
  bool number_integer(std::int64_t value) {
    return take({"the negative number", std::to_string(value)});
  }
  bool number_unsigned(std::uint64_t value) {
    Value number{"the number", std::to_string(value)};
    number.whole = value;
    return take(number);
  }
  bool number_float(double, const std::string& digits) {
    return take({"a number that is fractional or too large,", in_quotes(digits)});
  }
  bool string(std::string& value) {
    Value text{"the string", in_quotes(value)};
    text.text = &value;
    return take(text);
  }
  bool binary(std::vector<std::uint8_t>&) { return true; }  // no JSON text has one

  bool start_object(std::size_t) {
    const Place place = top().place;
    if (place == Place::document) return enter(Place::root);
    if (place == Place::root) {
      if (top().key == kMetadataKey) return enter(Place::metadata);
      entry_ = {};
      entry_.name = top().key;
      offsets_.clear();
      return enter(Place::entry);
    }
    return descend({"an object"});
  }
  bool start_array(std::size_t) {
    if (top().place == Place::entry && top().key == "shape") return enter(Place::shape);
    if (top().place == Place::entry && top().key == "data_offsets") return enter(Place::offsets);
    return descend({"an array"});
  }
  bool end_object() {
    if (top().place == Place::entry) finish_entry();
    open_.pop_back();
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool key(std::string& name) {
    Frame& object = top();
    if (!object.keys.insert(name).second) fail_duplicate(name);
    object.key = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) {
    constexpr std::size_t kShown = 40;
    const std::string_view before = json_.substr(0, position);
    const std::string shown =
        in_quotes(before.substr(before.size() - std::min(before.size(), kShown)));
    if (position > json_.size()) {
      fail(file_, "header is not JSON: it ends in the middle, with {}", shown);
    }
    fail(file_, "header is not JSON at its byte {}, the last of {}", position - 1, shown);
  }

 private:
  // A header needs 3; keys that the format does not know may hold more.
  static constexpr std::size_t kMaxDepth = 16;

  enum class Place { document, root, entry, metadata, shape, offsets, ignored };
  struct Frame {
    Place place;
    std::string key = {};             // the one whose value is next
    std::set<std::string> keys = {};  // seen so far
  };

  Frame& top() { return open_.back(); }

  bool enter(Place place) {
    if (open_.size() > kMaxDepth) fail(file_, "header is nested deeper than {} levels", kMaxDepth);
    open_.push_back({place});
    return true;
  }

  /// An object or array where neither is the rule.
  bool descend(const Value& value) {
    take(value);
    return enter(Place::ignored);
  }

  bool take(const Value& value);
  void take_field(const Value& value);
  std::uint64_t whole(std::string_view field, const Value& value) const;
  void finish_entry();
  [[noreturn]] void fail_duplicate(const std::string& name);
  std::string subject() const { return tensor_subject(file_, entry_.name); }

  std::string_view file_;
  std::string_view json_;
  SafetensorsHeader& header_;
  std::vector<Frame> open_;
  SafetensorsEntry entry_;
  std::vector<std::uint64_t> offsets_;
};

/// "the string 'F7'"
std::string show(const Value& value) {
  return value.shown.empty() ? std::string(value.kind)
                             : fmt::format("{} {}", value.kind, value.shown);
}

std::string known_dtypes() {
  std::string names;
  for (const DTypeInfo& dtype : all_dtypes()) {
    if (!names.empty()) names += ", ";
    names += dtype.name;
  }
  return names;
}

bool HeaderReader::take(const Value& value) {
  switch (top().place) {
    case Place::document:
      fail(file_, "header is {}, it must be a JSON object", show(value));
    case Place::root:
      if (top().key == kMetadataKey) {
        fail(file_, "{} is {}, it must be an object of strings", kMetadataKey, show(value));
      }
      fail(tensor_subject(file_, top().key),
           "is {}, it must be an object with dtype, shape, data_offsets", show(value));
    case Place::metadata:
      if (value.text == nullptr) {
        fail(file_, "{} {} is {}, it must be a string", kMetadataKey, in_quotes(top().key),
             show(value));
      }
      header_.metadata.emplace(top().key, *value.text);
      return true;
    case Place::entry:
      take_field(value);
      return true;
    case Place::shape:
      entry_.shape.push_back(static_cast<std::int64_t>(whole("shape", value)));
      return true;
    case Place::offsets:
      offsets_.push_back(whole("data_offsets", value));
      return true;
    case Place::ignored:
      return true;
  }
  return true;
}

void HeaderReader::take_field(const Value& value) {
  const std::string& field = top().key;
  if (field == "shape" || field == "data_offsets") {
    fail(subject(), "{} is {}, it must be an array of whole numbers", field, show(value));
  }
  if (field != "dtype") return;
  if (value.text == nullptr) fail(subject(), "dtype is {}, it must be a string", show(value));
  const std::optional<DType> dtype = parse_dtype(*value.text);
  if (!dtype) {
    fail(subject(), "unknown dtype {}; known: {}", in_quotes(*value.text), known_dtypes());
  }
  entry_.dtype = *dtype;
}

std::uint64_t HeaderReader::whole(std::string_view field, const Value& value) const {
  if (!value.whole || *value.whole > std::numeric_limits<std::int64_t>::max()) {
    fail(subject(), "{} holds {}, it must hold whole numbers from 0 to 2^63 - 1", field,
         show(value));
  }
  return *value.whole;
}

void HeaderReader::finish_entry() {
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!top().keys.contains(field)) fail(subject(), "has no {}", field);
  }
  if (offsets_.size() != 2) {
    fail(subject(), "data_offsets has {} numbers, it must have 2: begin and end", offsets_.size());
  }
  entry_.begin = offsets_[0];
  entry_.end = offsets_[1];
  if (entry_.begin > entry_.end) {
    fail(subject(), "data_offsets [{}, {}] end before they begin", entry_.begin, entry_.end);
  }
  header_.entries.push_back(std::move(entry_));
}

void HeaderReader::fail_duplicate(const std::string& name) {
  switch (top().place) {
    case Place::root:
      fail(file_, "two entries of the header are named {}", in_quotes(name));
    case Place::metadata:
      fail(file_, "{} has the key {} twice", kMetadataKey, in_quotes(name));
    default:
      fail(subject(), "has the key {} twice", in_quotes(name));
  }
}

}  // namespace

SafetensorsHeader parse_header_json(std::string_view file, std::string_view json) {
  // The format wants '{' first. The parser itself would skip a byte order mark, and take a NUL for
  // the end of the text.
  if (!json.starts_with('{')) {
    fail(file, "header starts with {}, it must start with '{{'", in_quotes(json.substr(0, 1)));
  }
  if (const auto at = json.find('\0'); at != json.npos) {
    fail(file, "header holds a NUL at its byte {}; pad it with spaces", at);
  }
  if (const auto at = find_invalid_utf8(json); at != json.npos) {
    fail(file, "header is not UTF-8 at its byte {}", at);
  }
  SafetensorsHeader header;
  HeaderReader reader(file, json, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  return header;
}

}  // namespace moeref
