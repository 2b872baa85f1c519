#include "cli/selection.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "io/json_file.hpp"
#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "quant/nearest_names.hpp"

namespace moeref::cli {
namespace {

constexpr std::int64_t kMostNumbers = 100000;
constexpr std::int64_t kLargestNumber = 1 << 30;

std::int64_t parse_integer(std::string_view option, std::string_view text) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 0) {
    fail(option, "'{}' is not a number from 0; give numbers as in 3 or 0,2,5-7, or *", text);
  }
  if (value > kLargestNumber) fail(option, "{} is too large; at most {}", text, kLargestNumber);
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

}  // namespace

std::vector<std::int64_t> parse_numbers(std::string_view option, const std::string& text,
                                        std::span<const std::int64_t> available) {
  std::set<std::int64_t> numbers;
  if (text == "*") numbers.insert(available.begin(), available.end());
  if (text != "*") {
    for (const std::string_view part : split(text, ',')) {
      const std::size_t dash = part.find('-');
      const std::int64_t first = parse_integer(option, part.substr(0, dash));
      const std::int64_t last =
          dash == std::string_view::npos ? first : parse_integer(option, part.substr(dash + 1));
      if (last < first || last - first >= kMostNumbers) {
        fail(option, "the range {} is empty or too long", part);
      }
      for (std::int64_t number = first; number <= last; ++number) numbers.insert(number);
    }
  }
  return {numbers.begin(), numbers.end()};
}

void parse_rank(std::string_view option, const std::string& text, std::int64_t& rank,
                std::int64_t& size) {
  const std::vector<std::string_view> parts = split(text, '/');
  if (parts.size() != 2) fail(option, "'{}' is not a rank; give R/N as in 0/8", text);
  rank = parse_integer(option, parts[0]);
  size = parse_integer(option, parts[1]);
}

Shard parse_shard(const std::string& tp, const std::string& ep) {
  Shard shard;
  if (!tp.empty()) parse_rank("--tp", tp, shard.tp_rank, shard.tp_size);
  if (!ep.empty()) parse_rank("--ep", ep, shard.ep_rank, shard.ep_size);
  return shard;
}

std::string not_empty(const std::string& text) { return text.empty() ? "needs a name" : ""; }

Format parse_output_format(const std::string& name) {
  if (name == "f32") return Format::f32;
  if (name == "bf16") return Format::bf16;
  if (name == "f16") return Format::f16;
  fail("--output", "'{}' is unknown; give bf16, f16 or f32", name);
}

std::vector<std::string> parse_backends(const std::string& text) {
  std::vector<std::string> known;
  for (const Backend* backend : all_backends()) known.emplace_back(backend->name);
  if (text == "*") return known;
  std::vector<std::string> names;
  for (const std::string_view name : split(text, ',')) {
    if (name.empty())
      fail("--backend", "'{}' has an empty name; give names as in a,b", one_line(text));
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail("--backend", "'{}' is unknown; is it {}? `moeref layout list` shows all", one_line(name),
           fmt::join(nearest_names(name, known), " or "));
    }
    if (std::find(names.begin(), names.end(), name) == names.end()) names.emplace_back(name);
  }
  return names;
}

}  // namespace moeref::cli
