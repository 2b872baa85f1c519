#include "quant/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>

#include "quant/error.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kLargestOption = 1 << 20;

std::string quoted(std::span<const std::string_view> values) {
  return fmt::format("{}", fmt::join(values, ", "));
}

/// The whole text as a number of f32.
std::optional<float> number_of(const std::string& text) {
  float number = 0.0f;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// Error: a value that the option does not have.
void check_option(std::string_view subject, const OptionInfo& option, const std::string& value) {
  if (option.is_integer()) {
    std::int64_t number = 0;
    const auto [end, status] = std::from_chars(value.data(), value.data() + value.size(), number);
    const bool whole = status == std::errc{} && end == value.data() + value.size();
    if (whole && number >= 0 && number <= kLargestOption) return;
    fail(subject, "option {}={} needs an integer from 0 to {}", option.name, value, kLargestOption);
  }
  if (option.is_number()) {
    const std::optional<float> number = number_of(value);
    if (number && std::isfinite(*number) && !std::signbit(*number)) return;
    fail(subject, "option {}={} needs a number, 0 or more", option.name, value);
  }
  if (std::find(option.values.begin(), option.values.end(), value) == option.values.end()) {
    fail(subject, "option {}={} does not exist; choose {}", option.name, value,
         quoted(option.values));
  }
}

}  // namespace

std::int64_t Options::integer(std::string_view name) const {
  const std::string& text = (*this)[name];
  std::int64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

float Options::number(std::string_view name) const { return number_of((*this)[name]).value(); }

Options parse_options(std::string_view subject, std::span<const OptionInfo> options,
                      std::span<const std::string> texts) {
  std::map<std::string, std::string, std::less<>> values;
  std::set<std::string> given;
  for (const OptionInfo& option : options) {
    values.emplace(option.name, option.default_value());
  }
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    const auto known = std::find_if(options.begin(), options.end(),
                                    [&](const OptionInfo& option) { return option.name == key; });
    if (equals == std::string::npos || known == options.end()) {
      std::vector<std::string_view> names;
      for (const OptionInfo& option : options) names.push_back(option.name);
      fail(subject, "'{}' is no option; write key=value with one of: {}", text,
           names.empty() ? "(none)" : quoted(names));
    }
    const std::string value = text.substr(equals + 1);
    check_option(subject, *known, value);
    if (!given.insert(key).second) {
      fail(subject, "option {} is given twice; give it once", key);
    }
    // 016 is 16: one text for one value.
    values[key] = known->is_integer() ? std::to_string(std::stoll(value)) : value;
  }
  return Options(std::move(values));
}

}  // namespace moeref
