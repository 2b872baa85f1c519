#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moeref {

/// A glob with `*` and `?` (ModelOpt, GPT-OSS), or `re:` and a regular expression that is anchored
/// at the start (compressed-tensors), for module names. Both run in time proportional to pattern
/// length times name length, whatever the pattern.
class NamePattern {
 public:
  explicit NamePattern(std::string text);

  const std::string& text() const { return text_; }
  /// False for an expression outside the supported syntax (look-around, back references, ...); it
  /// matches nothing.
  bool understood() const { return understood_; }
  /// True if the pattern means `module` or a module that contains it.
  bool matches(std::string_view module) const;

 private:
  friend class PatternParser;

  /// One instruction of a program that is run on all threads at once (Thompson 1968).
  struct Step {
    enum class Kind : std::uint8_t { byte, any, set, split, jump, at_start, at_end, accept };
    Kind kind = Kind::accept;
    std::uint32_t next =
        0;  ///< split: first way; jump: target; byte: its value; set: number in `sets_`
    std::uint32_t other = 0;  ///< split: second way
  };
  using ByteSet = std::vector<bool>;  ///< 256 flags

  bool consumes(const Step& step, unsigned char byte) const;
  bool run(std::string_view name) const;

  std::string text_;
  bool understood_ = true;
  bool expression_ = false;
  std::vector<Step> program_;
  std::vector<ByteSet> sets_;
};

/// A list of module names from a quantization config, each with a value: exact names (of the
/// module, of one that contains it, or its last parts, as "lm_head" for "model.lm_head"), class
/// names (`Linear`: every projection), globs and expressions.
class NameList {
 public:
  /// Error: std::length_error if there are more patterns than any real list has.
  void add(std::string_view text, std::size_t value = 0);
  /// The value of the first entry that means `module`, exact names before patterns.
  std::optional<std::size_t> find(std::string_view module) const;

 private:
  std::unordered_map<std::string, std::size_t> exact_;
  std::vector<NamePattern> patterns_;
  std::vector<std::size_t> pattern_values_;
};

}  // namespace moeref
