#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace moeref {

/// What stands at one place of an axis: an input index (>= 0) or a pad. A pad remembers its fill
/// and which padding step made it, so that the later step wins where a padded row meets a padded
/// column.
class AxisEntry {
 public:
  static AxisEntry index(std::int64_t value) { return AxisEntry(value); }
  /// `step` counts the padding steps of a tensor from 0.
  static AxisEntry pad(int step, std::byte fill) {
    return AxisEntry(-1 - (std::int64_t{step} * 256 + std::to_integer<std::int64_t>(fill)));
  }
  bool is_pad() const { return value_ < 0; }
  std::int64_t index() const { return value_; }
  int pad_step() const { return static_cast<int>((-1 - value_) / 256); }
  std::byte fill() const { return static_cast<std::byte>((-1 - value_) % 256); }

 private:
  explicit AxisEntry(std::int64_t value) : value_(value) {}
  std::int64_t value_;
};

/// Where each output row (or column) of a matrix comes from. As long as an axis, never as a tensor.
/// An input may stand at several places (copies) or at none (dropped), on both axes.
class AxisTable {
 public:
  AxisTable() = default;
  /// out[i] = in[i]
  explicit AxisTable(std::int64_t size);

  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }
  const AxisEntry& operator[](std::int64_t out) const {
    return entries_[static_cast<std::size_t>(out)];
  }

  /// The next step reads place source(i) of what is here: out[i] = here[source(i)], 0 <= i < size.
  void permute(std::int64_t size, const std::function<std::int64_t(std::int64_t)>& source);
  /// Cuts the axis into `parts` equal parts and appends `fill` to each until it has `part_size`.
  void pad_parts(std::int64_t parts, std::int64_t part_size, int step, std::byte fill);

 private:
  std::vector<AxisEntry> entries_;
};

/// Input index -> the output places that hold it: none, one, or the stated copies.
class AxisInverse {
 public:
  AxisInverse(const AxisTable& table, std::int64_t inputs);
  const std::vector<std::int64_t>& operator[](std::int64_t input) const {
    return outputs_[static_cast<std::size_t>(input)];
  }

 private:
  std::vector<std::vector<std::int64_t>> outputs_;
};

}  // namespace moeref
