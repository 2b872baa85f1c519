#include "io/inspect/name_group.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moeref {
namespace {

constexpr std::size_t kMostDigits = 9;
constexpr int kMostRanges = 5;

bool is_number(std::string_view part) {
  return !part.empty() && part.size() <= kMostDigits &&
         std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

NumberedName split_numbers(std::string_view name) {
  NumberedName result;
  while (true) {
    const std::size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    if (is_number(part)) {
      result.form += '#';
      result.numbers.push_back(std::stoll(std::string(part)));
    } else {
      result.form += part;
    }
    if (dot == std::string_view::npos) return result;
    result.form += '.';
    name.remove_prefix(dot + 1);
  }
}

void NameGroup::add(const NumberedName& name) {
  form_ = name.form;
  numbers_.resize(name.numbers.size());
  for (std::size_t i = 0; i < numbers_.size(); ++i) numbers_[i].insert(name.numbers[i]);
  ++size_;
}

std::string NameGroup::shown() const {
  std::string text;
  std::size_t next = 0;
  for (const char character : form_) {
    if (character == '#' && next < numbers_.size()) {
      text += shown_numbers(numbers_[next++]);
    } else {
      text += character;
    }
  }
  return text;
}

std::string shown_numbers(const std::set<std::int64_t>& numbers) {
  if (numbers.size() == 1) return fmt::format("{}", *numbers.begin());
  std::string text;
  int ranges = 0;
  for (auto at = numbers.begin(); at != numbers.end();) {
    if (ranges++ == kMostRanges) return "{" + text + ",...}";
    const std::int64_t first = *at;
    std::int64_t last = first;
    while (++at != numbers.end() && *at == last + 1) last = *at;
    if (!text.empty()) text += ',';
    text += first == last ? fmt::format("{}", first) : fmt::format("{}..{}", first, last);
  }
  return "{" + text + "}";
}

}  // namespace moeref
