#include "io/json_file.hpp"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "quant/error.hpp"

namespace moeref {
namespace {

using nlohmann::json;

/// Watches the parser: stops at too deep nesting and at a repeated key, which JSON readers resolve
/// differently.
class StructureGuard {
 public:
  explicit StructureGuard(std::string subject) : subject_(std::move(subject)) {}

  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxJsonDepth) {
      fail(subject_, "JSON is nested deeper than {} levels; no known file of this kind is",
           kMaxJsonDepth);
    }
    switch (event) {
      case json::parse_event_t::object_start:
        keys_.emplace_back();
        break;
      case json::parse_event_t::object_end:
        keys_.pop_back();
        break;
      case json::parse_event_t::key:
        if (const auto& key = parsed.get_ref<const std::string&>();
            !keys_.back().insert(key).second) {
          fail(subject_, "key \"{}\" stands twice in one object; keep one of them", one_line(key));
        }
        break;
      default:
        break;
    }
    return true;
  }

 private:
  std::string subject_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

std::string read_json_text(const std::filesystem::path& file, std::uintmax_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    fail(file.string(), "no such file (or not a regular file)");
  }
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  if (error) fail(file.string(), "cannot read: {}", error.message());
  if (size > max_bytes) {
    fail(file.string(), "has {} bytes, more than the {} that a file of this kind may have", size,
         max_bytes);
  }
  std::ifstream stream(file, std::ios::binary);
  std::string text(static_cast<std::size_t>(size), '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream) fail(file.string(), "cannot read {} bytes from it", size);
  // The JSON parser would take a NUL for the end of the text and not look at what follows.
  if (const std::size_t at = text.find('\0'); at != std::string::npos) {
    fail(file.string(), "not valid JSON: holds a NUL at byte {}", at);
  }
  return text;
}

void fail_not_json(const std::string& subject, std::string_view parser_message) {
  const std::size_t tag_end =
      parser_message.find("] ");  // "[json.exception.parse_error.101] parse error at line ..."
  if (tag_end != std::string_view::npos) parser_message.remove_prefix(tag_end + 2);
  fail(subject, "not valid JSON: {}", one_line(parser_message, 240));
}

std::string one_line(std::string_view text, std::size_t max_bytes) {
  std::string line(text.substr(0, max_bytes));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  if (text.size() > max_bytes) line += "...";
  return line;
}

std::string shown(const json& value) {
  if (value.is_object() && !value.empty()) return "{...}";
  return one_line(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
}

json read_json_object(const std::filesystem::path& file, std::uintmax_t max_bytes) {
  return parse_json_object(file.string(), read_json_text(file, max_bytes));
}

json parse_json_object(const std::string& subject, std::string_view text) {
  StructureGuard guard(subject);
  const json::parser_callback_t callback = [&guard](int depth, json::parse_event_t event,
                                                    json& parsed) {
    return guard(depth, event, parsed);
  };
  json value;
  try {
    value = json::parse(text.begin(), text.end(), callback);
  } catch (const json::exception& problem) {
    fail_not_json(subject, problem.what());
  }
  if (!value.is_object()) fail(subject, "holds {}, needs a JSON object", shown(value));
  return value;
}

}  // namespace moeref
