#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moeref {

/// Reads one JSON object from a file that may be hostile: bounded size, at most 64 levels deep, no
/// key twice in an object. Error: not a regular file, too large, not JSON (line and column), not an
/// object.
nlohmann::json read_json_object(const std::filesystem::path& file, std::uintmax_t max_bytes);

/// The same for a text that `subject` names.
nlohmann::json parse_json_object(const std::string& subject, std::string_view text);

/// The text of a JSON file. Error: not a regular file, larger than `max_bytes`, unreadable, a NUL
/// inside.
std::string read_json_text(const std::filesystem::path& file, std::uintmax_t max_bytes);

/// Objects and lists inside each other; real files have fewer than ten.
inline constexpr int kMaxJsonDepth = 64;

/// Throws Error with what the parser says (line, column), on one line.
[[noreturn]] void fail_not_json(const std::string& subject, std::string_view parser_message);

/// A JSON value as one short line for messages.
std::string shown(const nlohmann::json& value);

/// `text` without control characters and cut to `max_bytes`, so that it fits into a message of one
/// line.
std::string one_line(std::string_view text, std::size_t max_bytes = 160);

}  // namespace moeref
