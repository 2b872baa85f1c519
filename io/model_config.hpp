#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moeref {

/// A value and where it was found, for provenance: "config.json: n_group", or "default of
/// DeepseekV3Config".
template <typename T>
struct Fact {
  T value{};
  std::string source;
};

/// What holds when a key is absent (or null), and who says so.
template <typename T>
struct Fallback {
  T value{};
  std::string_view source;
};

/// Inclusive bounds of an integer key; values outside are taken for a damaged file.
struct IntegerRange {
  std::int64_t min = 0;
  std::int64_t max = 0;
};

inline constexpr IntegerRange kLayerCount{1, 1 << 16};
inline constexpr IntegerRange kExpertCount{1, 1 << 16};
inline constexpr IntegerRange kWidth{1, 1 << 24};

/// Keys to look up, in order of preference; most have one.
using Keys = std::initializer_list<std::string_view>;

/// One object of a model's config.json, read with types and bounds. Cheap to copy.
/// Every read names the key: error "FILE: KEY is VALUE, needs ...".
class ModelConfig {
 public:
  /// Error: missing or malformed file.
  static ModelConfig open(const std::filesystem::path& file);

  /// The object under `key`, e.g. "text_config" of a vision-language model. Error: absent, not an
  /// object.
  ModelConfig section(std::string_view key) const;
  /// The object under `key`, or nothing. Error: not an object.
  std::optional<ModelConfig> find_section(std::string_view key) const;
  bool has(std::string_view key) const;  ///< present and not null

  Fact<std::int64_t> integer(Keys keys, IntegerRange range,
                             std::optional<Fallback<std::int64_t>> fallback = std::nullopt) const;
  /// A finite number that f32 can hold, rounded to f32.
  Fact<float> number(Keys keys, std::optional<Fallback<float>> fallback = std::nullopt) const;
  Fact<bool> flag(Keys keys, std::optional<Fallback<bool>> fallback = std::nullopt) const;
  Fact<std::string> word(Keys keys,
                         std::optional<Fallback<std::string>> fallback = std::nullopt) const;
  /// Lists; empty if the key is absent.
  std::vector<std::int64_t> integers(std::string_view key, IntegerRange range) const;
  std::vector<std::string> words(std::string_view key) const;
  /// The keys of this object.
  std::vector<std::string> keys() const;

  const std::string& file() const { return *file_; }  ///< as opened
  /// "config.json: text_config.n_group"
  std::string source(std::string_view key) const;
  /// "folder/config.json: text_config.n_group", for messages.
  std::string subject(std::string_view key) const;
  const nlohmann::json& object() const { return *object_; }

 private:
  ModelConfig() = default;
  const nlohmann::json* find(std::string_view key) const;
  std::string_view find_first(Keys keys) const;

  std::shared_ptr<const std::string> file_;
  std::shared_ptr<const nlohmann::json> root_;
  const nlohmann::json* object_ = nullptr;
  std::string trail_;  ///< "text_config." inside a section
};

}  // namespace moeref
