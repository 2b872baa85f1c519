#include "engine/rows.hpp"

#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

#include "quant/cast.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

std::uint16_t narrow(Format format, float value) {
  if (format == Format::bf16) {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  }
  if (std::isnan(value)) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | 0x7C00u | (bits >> 13 & 0x3FFu));
  }
  return static_cast<std::uint16_t>(encode(format, value, EncodePolicy::eigen));
}

}  // namespace

Rows::Rows(std::string name, Format format, std::int64_t rows, std::int64_t cols)
    : name_(std::move(name)),
      format_(format),
      rows_(rows),
      cols_(cols),
      bytes_(static_cast<std::size_t>(rows * cols * info(format).bits / 8)) {}

Rows::Rows(std::string name, Format format, std::int64_t rows, std::int64_t cols,
           std::vector<std::byte> bytes)
    : name_(std::move(name)), format_(format), rows_(rows), cols_(cols), bytes_(std::move(bytes)) {
  assert(static_cast<std::int64_t>(bytes_.size()) == rows * cols * info(format).bits / 8);
}

void Rows::put(std::int64_t row, std::int64_t first_col, std::span<const float> values,
               std::int64_t stride) {
  if (values.empty()) return;
  const std::int64_t bytes = info(format_).bits / 8;
  std::byte* to = bytes_.data() + (row * cols_ + first_col) * bytes;
  if (format_ == Format::f32 && stride == 1) {
    std::memcpy(to, values.data(), values.size_bytes());
    return;
  }
  for (const float value : values) {
    if (format_ == Format::f32) {
      std::memcpy(to, &value, sizeof value);
    } else {
      const std::uint16_t code = narrow(format_, value);
      std::memcpy(to, &code, sizeof code);
    }
    to += stride * bytes;
  }
}

void Rows::get(std::int64_t row, std::int64_t first_col, std::span<float> values,
               std::int64_t stride) const {
  const std::int64_t bytes = info(format_).bits / 8;
  const std::byte* from = bytes_.data() + (row * cols_ + first_col) * bytes;
  for (float& value : values) {
    switch (format_) {
      case Format::bf16:
        value = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(from)} << 16);
        break;
      case Format::f16:
        value = widen_f16(load<std::uint16_t>(from));
        break;
      default:
        value = load<float>(from);
    }
    from += stride * bytes;
  }
}

ScaledMatrix Rows::matrix() const {
  ScaledMatrix matrix;
  matrix.name = name_;
  matrix.rows = rows_;
  matrix.cols = cols_;
  matrix.codes = {bytes_.data(), format_, NibbleOrder::low_first, 0, cols_, 1};
  return matrix;
}

ValueMatrix Rows::values() const { return {name_, format_, rows_, cols_, bytes_}; }

Tensor Rows::tensor(std::string name, Shape shape) const {
  assert(element_count(shape) == rows_ * cols_);
  return {std::move(name), stored_dtype(format_), std::move(shape), bytes_};
}

Tensor stored_tensor(std::string name, Format format, Shape shape, std::span<const float> values) {
  Rows rows(name, format, 1, std::ssize(values));
  rows.put(0, 0, values);
  return rows.tensor(std::move(name), std::move(shape));
}

}  // namespace moeref
