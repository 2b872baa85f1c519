#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "quant/tensor.hpp"

// Files of numbers for the tests of moeref quantize.

namespace moeref::testing {

inline DType stored_numbers(Format format) {
  return format == Format::bf16 ? DType::bf16 : format == Format::f16 ? DType::f16 : DType::f32;
}

/// Numbers over seven binades, rounded to the format; the first of a row is a zero.
inline Tensor random_numbers(const std::string& name, Format format, const Shape& shape,
                             std::uint32_t seed) {
  std::mt19937 random(seed);
  Tensor tensor{name, stored_numbers(format), shape, {}};
  for (std::int64_t i = 0; i < element_count(shape); ++i) {
    const float unit = std::ldexp(static_cast<float>(random() >> 8), -23) - 1.0f;
    const float value =
        i % shape.back() == 0 ? 0.0f : std::ldexp(unit, static_cast<int>(random() % 7) - 3);
    const std::uint32_t code =
        encode(format, value, format == Format::f32 ? EncodePolicy::torch : EncodePolicy::eigen);
    for (int byte = 0; byte < info(format).bits / 8; ++byte) {
      tensor.bytes.push_back(static_cast<std::byte>(code >> (8 * byte)));
    }
  }
  return tensor;
}

/// The matrices of a stack.
inline std::vector<ValueMatrix> matrices_of(const Tensor& tensor, Format input) {
  const std::int64_t rows = tensor.shape[tensor.shape.size() - 2];
  const std::int64_t cols = tensor.shape.back();
  const auto bytes = static_cast<std::size_t>(rows * cols * info(input).bits / 8);
  std::vector<ValueMatrix> matrices;
  for (std::size_t at = 0; at < tensor.bytes.size(); at += bytes) {
    matrices.push_back(
        {tensor.name, input, rows, cols, std::span(tensor.bytes).subspan(at, bytes)});
  }
  return matrices;
}

inline std::vector<float> values_of(const ValueMatrix& matrix) {
  std::vector<float> values;
  const int width = info(matrix.format).bits / 8;
  for (std::int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
    std::uint32_t code = 0;
    std::memcpy(&code, matrix.bytes.data() + i * width, static_cast<std::size_t>(width));
    values.push_back(decode(matrix.format, code));
  }
  return values;
}

inline float amax_of(const std::vector<float>& values) {
  float amax = 0.0f;
  for (const float value : values) amax = std::max(amax, std::fabs(value));
  return amax;
}

inline void write_tensors(const std::filesystem::path& path, const std::vector<Tensor>& tensors) {
  std::vector<TensorView> views;
  for (const Tensor& tensor : tensors) views.push_back(tensor.view());
  write_safetensors(path, views, {});
}

}  // namespace moeref::testing
