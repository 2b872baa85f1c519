#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moeref {

/// A choice that a backend or a quantizer leaves open: an upstream variant, a version, a build.
struct OptionInfo {
  std::string_view name;
  /// The first is the default; {"N", "16"} = an integer, 16 if not given; {"X", "0.5"} = a number.
  std::vector<std::string_view> values;
  std::string_view summary;

  bool is_integer() const { return values.size() == 2 && values.front() == "N"; }
  bool is_number() const { return values.size() == 2 && values.front() == "X"; }
  bool is_choice() const { return !is_integer() && !is_number(); }
  std::string_view default_value() const { return values[is_choice() ? 0 : 1]; }
};

/// Chosen values by option name, complete.
class Options {
 public:
  Options() = default;
  explicit Options(std::map<std::string, std::string, std::less<>> values)
      : values_(std::move(values)) {}
  const std::string& operator[](std::string_view name) const { return values_.find(name)->second; }
  bool has(std::string_view name) const { return values_.find(name) != values_.end(); }
  bool is(std::string_view name, std::string_view value) const { return (*this)[name] == value; }
  std::int64_t integer(std::string_view name) const;
  float number(std::string_view name) const;  ///< the text, rounded to f32
  const std::map<std::string, std::string, std::less<>>& values() const { return values_; }

 private:
  std::map<std::string, std::string, std::less<>> values_;
};

/// The defaults, overridden by "key=value" texts. Error (names `subject`): unknown key or value,
/// with those that there are; a key given twice.
Options parse_options(std::string_view subject, std::span<const OptionInfo> options,
                      std::span<const std::string> texts);

}  // namespace moeref
