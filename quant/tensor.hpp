#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "quant/dtype.hpp"

namespace moeref {

/// Sizes of a row-major tensor, slowest dimension first; empty = a scalar.
using Shape = std::vector<std::int64_t>;

/// Product of the sizes; 1 for a scalar. The sizes are known to be non-negative and not to
/// overflow.
std::int64_t element_count(const Shape& shape);
/// "[8, 2880]"
std::string to_string(const Shape& shape);

/// value / by, rounded up; both at least 0, by at least 1.
constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}
constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

/// Reads a value at any alignment: tensors in a safetensors file may start at odd offsets.
template <typename T>
T load(const std::byte* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// A tensor at rest in memory that somebody else owns: contiguous, row-major, at any alignment.
struct TensorView {
  std::string name;  ///< for messages
  DType dtype = DType::u8;
  Shape shape;
  std::span<const std::byte> bytes;

  std::int64_t size() const { return element_count(shape); }
  /// Element `index` of a tensor whose dtype has the size of T.
  template <typename T>
  T at(std::int64_t index) const {
    return load<T>(bytes.data() + index * static_cast<std::int64_t>(sizeof(T)));
  }
};

/// A tensor that owns its bytes.
struct Tensor {
  std::string name;
  DType dtype = DType::u8;
  Shape shape;
  std::vector<std::byte> bytes;

  TensorView view() const { return {name, dtype, shape, bytes}; }
};

/// Copies `values` into a new tensor; element_count(shape) must equal values.size() and sizeof(T)
/// the dtype's size.
template <typename T>
Tensor make_tensor(std::string name, DType dtype, Shape shape, std::span<const T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto raw = std::as_bytes(values);
  return {std::move(name), dtype, std::move(shape), {raw.begin(), raw.end()}};
}

}  // namespace moeref
