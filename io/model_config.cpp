#include "io/model_config.hpp"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMaxConfigBytes = std::uintmax_t{64} << 20;

std::int64_t checked_integer(const json& value, IntegerRange range, const std::string& subject) {
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(range.max) &&
                              static_cast<std::int64_t>(value.get<std::uint64_t>()) >= range.min
                        : value.is_number_integer() && value.get<std::int64_t>() >= range.min &&
                              value.get<std::int64_t>() <= range.max;
  if (!fits) {
    fail(subject, "is {}, needs an integer from {} to {}; correct the file", shown(value),
         range.min, range.max);
  }
  return value.get<std::int64_t>();
}

const std::string& checked_word(const json& value, const std::string& subject) {
  if (!value.is_string()) fail(subject, "is {}, needs a string; correct the file", shown(value));
  return value.get_ref<const std::string&>();
}

const json& checked_list(const json& value, const std::string& subject) {
  if (!value.is_array()) fail(subject, "is {}, needs a list; correct the file", shown(value));
  return value;
}

}  // namespace

ModelConfig ModelConfig::open(const std::filesystem::path& file) {
  ModelConfig config;
  config.file_ = std::make_shared<const std::string>(file.string());
  config.root_ = std::make_shared<const json>(read_json_object(file, kMaxConfigBytes));
  config.object_ = config.root_.get();
  return config;
}

const json* ModelConfig::find(std::string_view key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool ModelConfig::has(std::string_view key) const { return find(key) != nullptr; }

std::string ModelConfig::source(std::string_view key) const {
  return std::filesystem::path(*file_).filename().string() + ": " + trail_ + one_line(key);
}

std::string ModelConfig::subject(std::string_view key) const {
  return *file_ + ": " + trail_ + one_line(key);
}

std::optional<ModelConfig> ModelConfig::find_section(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    fail(subject(key), "is {}, needs an object; correct the file", shown(*value));
  }
  ModelConfig inner = *this;
  inner.object_ = value;
  inner.trail_ += std::string(key) + '.';
  return inner;
}

ModelConfig ModelConfig::section(std::string_view key) const {
  std::optional<ModelConfig> found = find_section(key);
  if (!found) fail(subject(key), "is absent; this model type keeps its sizes in it");
  return *std::move(found);
}

std::string_view ModelConfig::find_first(Keys keys) const {
  for (const std::string_view key : keys) {
    if (has(key)) return key;
  }
  return {};
}

Fact<std::int64_t> ModelConfig::integer(Keys keys, IntegerRange range,
                                        std::optional<Fallback<std::int64_t>> fallback) const {
  const std::string_view key = find_first(keys);
  if (!key.empty()) return {checked_integer(*find(key), range, subject(key)), source(key)};
  if (fallback) return {fallback->value, std::string(fallback->source)};
  fail(subject(*keys.begin()), "is absent, needs an integer from {} to {}; add the key", range.min,
       range.max);
}

Fact<float> ModelConfig::number(Keys keys, std::optional<Fallback<float>> fallback) const {
  const std::string_view key = find_first(keys);
  if (key.empty()) {
    if (fallback) return {fallback->value, std::string(fallback->source)};
    fail(subject(*keys.begin()), "is absent, needs a number; add the key");
  }
  const json& value = *find(key);
  const double wide = value.is_number() ? value.get<double>() : 0.0;
  if (!value.is_number() || !(std::abs(wide) <= std::numeric_limits<float>::max())) {
    fail(subject(key), "is {}, needs a finite number that fits into f32; correct the file",
         shown(value));
  }
  return {static_cast<float>(wide), source(key)};
}

Fact<bool> ModelConfig::flag(Keys keys, std::optional<Fallback<bool>> fallback) const {
  const std::string_view key = find_first(keys);
  if (key.empty()) {
    if (fallback) return {fallback->value, std::string(fallback->source)};
    fail(subject(*keys.begin()), "is absent, needs true or false; add the key");
  }
  const json& value = *find(key);
  if (!value.is_boolean()) {
    fail(subject(key), "is {}, needs true or false; correct the file", shown(value));
  }
  return {value.get<bool>(), source(key)};
}

Fact<std::string> ModelConfig::word(Keys keys,
                                    std::optional<Fallback<std::string>> fallback) const {
  const std::string_view key = find_first(keys);
  if (!key.empty()) return {checked_word(*find(key), subject(key)), source(key)};
  if (fallback) return {fallback->value, std::string(fallback->source)};
  fail(subject(*keys.begin()), "is absent, needs a string; add the key");
}

std::vector<std::int64_t> ModelConfig::integers(std::string_view key, IntegerRange range) const {
  std::vector<std::int64_t> list;
  if (const json* value = find(key)) {
    for (const json& item : checked_list(*value, subject(key))) {
      list.push_back(checked_integer(item, range, subject(key)));
    }
  }
  return list;
}

std::vector<std::string> ModelConfig::words(std::string_view key) const {
  std::vector<std::string> list;
  if (const json* value = find(key)) {
    for (const json& item : checked_list(*value, subject(key))) {
      list.push_back(checked_word(item, subject(key)));
    }
  }
  return list;
}

std::vector<std::string> ModelConfig::keys() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : object_->items()) names.push_back(key);
  return names;
}

}  // namespace moeref
