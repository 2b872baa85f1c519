#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace moeref {

/// A tensor name with its numbers taken out: "model.layers.#.mlp.experts.#.up_proj.weight" and {3,
/// 17}. Only whole parts between dots count.
struct NumberedName {
  std::string form;
  std::vector<std::int64_t> numbers;
};
NumberedName split_numbers(std::string_view name);

/// Names of one form, shown as one: "model.layers.{3..60}.mlp.experts.{0..255}.up_proj.weight".
class NameGroup {
 public:
  void add(const NumberedName& name);
  std::int64_t size() const { return size_; }
  /// A position that has one number only shows it bare; gaps are shown, at most a few:
  /// "{0..4,7,9..30,...}".
  std::string shown() const;

 private:
  std::string form_;
  std::vector<std::set<std::int64_t>> numbers_;
  std::int64_t size_ = 0;
};

/// "{0..4,7}" or "3".
std::string shown_numbers(const std::set<std::int64_t>& numbers);

}  // namespace moeref
