#include "layout/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "quant/error.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

constexpr std::array kBackends{
#define MOEREF_BACKEND(name) &backends::name,
#include "layout/backends.inc"
#undef MOEREF_BACKEND
};

constexpr std::int64_t kLargestOption = 1 << 20;

bool applies(const AlignmentRule& rule, const LayerShape& shape) {
  return rule.when.empty() || (rule.when == "gated") == shape.gated;
}

std::int64_t size_of(const AlignmentRule& rule, const LayerShape& shape) {
  if (rule.size == "hidden") return shape.hidden;
  if (rule.size == "intermediate") return shape.stride;
  return shape.experts;
}

std::string quoted(std::span<const std::string_view> values) {
  return fmt::format("{}", fmt::join(values, ", "));
}

bool is_integer(const OptionInfo& option) {
  return option.values.size() >= 2 && option.values[0] == "N";
}

/// The option, after checking that it may have `value`.
void check_option(const Backend& backend, const OptionInfo& option, const std::string& value) {
  if (is_integer(option)) {
    std::int64_t number = 0;
    const auto [end, status] = std::from_chars(value.data(), value.data() + value.size(), number);
    const bool whole = status == std::errc{} && end == value.data() + value.size();
    if (whole && number >= 0 && number <= kLargestOption) return;
    fail(backend.name, "option {}={} needs an integer from 0 to {}", option.name, value,
         kLargestOption);
  }
  if (std::find(option.values.begin(), option.values.end(), value) == option.values.end()) {
    fail(backend.name, "option {}={} does not exist; choose {}", option.name, value,
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

std::span<const Backend* const> all_backends() { return kBackends; }

const Backend& find_backend(std::string_view name) {
  for (const Backend* backend : kBackends) {
    if (backend->name == name) return *backend;
  }
  std::vector<std::string> names;
  for (const Backend* backend : kBackends) names.emplace_back(backend->name);
  fail(name, "is no backend; is it {}? `moeref layout list` shows all",
       fmt::join(nearest_names(name, names), " or "));
}

Options parse_options(const Backend& backend, std::span<const std::string> texts) {
  std::map<std::string, std::string, std::less<>> values;
  std::set<std::string> given;
  for (const OptionInfo& option : backend.options) {
    values.emplace(option.name, is_integer(option) ? option.values[1] : option.values[0]);
  }
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    const auto known = std::find_if(backend.options.begin(), backend.options.end(),
                                    [&](const OptionInfo& option) { return option.name == key; });
    if (equals == std::string::npos || known == backend.options.end()) {
      std::vector<std::string_view> names;
      for (const OptionInfo& option : backend.options) names.push_back(option.name);
      fail(backend.name, "'{}' is no option; write key=value with one of: {}", text,
           names.empty() ? "(none)" : quoted(names));
    }
    const std::string value = text.substr(equals + 1);
    check_option(backend, *known, value);
    if (!given.insert(key).second) {
      fail(backend.name, "option {} is given twice; give it once", key);
    }
    values[key] = value;
  }
  return Options(std::move(values));
}

Recipe make_recipe(const Backend& backend, const LayerShape& shape, const Options& options) {
  if (std::find(backend.formats.begin(), backend.formats.end(), shape.weight_format) ==
      backend.formats.end()) {
    fail(backend.name, "takes {} weights, {} has {}", quoted(backend.formats), shape.model,
         shape.weight_format);
  }
  for (const AlignmentRule& rule : backend.rules) {
    const std::int64_t size = size_of(rule, shape);
    if (applies(rule, shape) && size % rule.multiple != 0) {
      fail(backend.name, "{} is {}, it must be a multiple of {}{}{}: {}", rule.size, size,
           rule.multiple, rule.when.empty() ? "" : " when ", rule.when, rule.reason);
    }
  }
  return backend.recipe(shape, options);
}

}  // namespace moeref
