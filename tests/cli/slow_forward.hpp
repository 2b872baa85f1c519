#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "tests/cli/editable_file.hpp"

// aiter's torch forwards as plain loops, element by element, in float or in double, and makers of
// their input. Written from the source, ROCm/aiter@e4048607a535 aiter/fused_moe.py, without a look
// at the evaluation that they judge.

namespace moeref::testing {

/// Numbers as (code value, factor) pairs, and the tensors that hold them.
struct Operand {
  std::vector<float> codes;
  std::vector<float> factors;  ///< one for each code; empty = none
  Tensor code_tensor;
  Tensor scale_tensor;  ///< no bytes = none

  template <typename Real>
  Real at(std::size_t i) const {
    return factors.empty() ? Real(codes[i]) : Real(codes[i]) * Real(factors[i]);
  }
};

class Maker {
 public:
  explicit Maker(std::uint32_t seed) : random_(seed) {}

  float unit() { return static_cast<float>(random_() >> 8) * 0x1p-24f; }
  float normal() { return std::normal_distribution<float>()(random_); }
  int integer(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<std::uint32_t>(high - low + 1));
  }

  static Tensor f32(const Shape& shape, const std::vector<float>& values) {
    return make_tensor<float>("", DType::f32, shape, std::span<const float>(values));
  }
  static Tensor f64(const Shape& shape, const std::vector<double>& values) {
    return make_tensor<double>("", DType::f64, shape, std::span<const double>(values));
  }
  static Tensor i32(const Shape& shape, const std::vector<std::int32_t>& values) {
    return make_tensor<std::int32_t>("", DType::i32, shape, std::span<const std::int32_t>(values));
  }
  static std::uint16_t bf16_code(float value) {
    return static_cast<std::uint16_t>(encode(Format::bf16, value, EncodePolicy::eigen));
  }
  static Tensor bf16(const Shape& shape, const std::vector<float>& values) {
    std::vector<std::uint16_t> codes;
    for (const float value : values) codes.push_back(bf16_code(value));
    return make_tensor<std::uint16_t>("", DType::bf16, shape,
                                      std::span<const std::uint16_t>(codes));
  }
  static Tensor bytes(DType dtype, const Shape& shape, const std::vector<std::uint8_t>& values) {
    return make_tensor<std::uint8_t>("", dtype, shape, std::span<const std::uint8_t>(values));
  }

  std::vector<float> bf16_values(std::int64_t count, float size = 1.0f) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i)
      values.push_back(decode(Format::bf16, bf16_code(size * normal())));
    return values;
  }
  std::vector<float> scales(std::int64_t count, float size) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(size * (0.5f + unit()));
    return values;
  }

  /// bf16 numbers without scales.
  Operand plain(const Shape& shape, float size = 1.0f) {
    Operand made;
    made.codes = bf16_values(element_count(shape), size);
    made.code_tensor = bf16(shape, made.codes);
    return made;
  }
  /// I8 codes.
  Operand integers(const Shape& shape, int low, int high) {
    Operand made;
    std::vector<std::uint8_t> raw;
    for (std::int64_t i = 0; i < element_count(shape); ++i) {
      const int value = integer(low, high);
      made.codes.push_back(static_cast<float>(value));
      raw.push_back(static_cast<std::uint8_t>(value));
    }
    made.code_tensor = bytes(DType::i8, shape, raw);
    return made;
  }
  /// E4M3 or E4M3FNUZ codes below NaN.
  Operand fp8(const Shape& shape, bool fnuz) {
    Operand made;
    std::vector<std::uint8_t> raw;
    for (std::int64_t i = 0; i < element_count(shape); ++i) {
      const int sign = integer(0, 1);
      const int code = integer(1, 0x50) | (sign << 7);
      made.codes.push_back(
          decode(fnuz ? Format::e4m3fnuz : Format::e4m3, static_cast<std::uint32_t>(code)));
      raw.push_back(static_cast<std::uint8_t>(code));
    }
    made.code_tensor = bytes(fnuz ? DType::f8_e4m3fnuz : DType::f8_e4m3, shape, raw);
    return made;
  }
  /// E2M1 codes, two a byte; `shape` counts elements.
  Operand fp4(Shape shape) {
    static constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    Operand made;
    std::vector<std::uint8_t> raw;
    for (std::int64_t i = 0; i < element_count(shape) / 2; ++i) {
      const int low = integer(0, 15);
      const int high = integer(0, 15);
      made.codes.push_back(kValues[low]);
      made.codes.push_back(kValues[high]);
      raw.push_back(static_cast<std::uint8_t>(low + 16 * high));
    }
    shape.back() /= 2;
    made.code_tensor = bytes(DType::u8, shape, raw);
    return made;
  }

  /// E8M0 scales for 32 elements of each row of `cols`; `padding` more rows in the tensor.
  void group_scales(Operand& operand, std::int64_t cols, std::int64_t padding = 0) {
    const auto rows = static_cast<std::int64_t>(operand.codes.size()) / cols;
    std::vector<std::uint8_t> raw;
    for (std::int64_t i = 0; i < (rows + padding) * (cols / 32); ++i)
      raw.push_back(static_cast<std::uint8_t>(integer(118, 124)));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const int exponent = raw[static_cast<std::size_t>(row * (cols / 32) + col / 32)] - 127;
        operand.factors.push_back(std::ldexp(1.0f, exponent));
      }
    }
    operand.scale_tensor = bytes(DType::u8, {rows + padding, cols / 32}, raw);
  }
  /// F32 scales for blocks of block_rows x block_cols of every matrix [rows, cols] of a stack.
  void block_scales(Operand& operand, const Shape& shape, std::int64_t block_rows,
                    std::int64_t block_cols, float size) {
    const std::int64_t rows = shape[1];
    const std::int64_t cols = shape[2];
    const std::int64_t across = cols / block_cols;
    const std::int64_t each = rows / block_rows * across;
    const std::vector<float> values = scales(shape[0] * each, size);
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < cols; ++col) {
          operand.factors.push_back(values[static_cast<std::size_t>(
              i * each + row / block_rows * across + col / block_cols)]);
        }
      }
    }
    operand.scale_tensor = f32({shape[0], rows / block_rows, across}, values);
  }
  /// BF16 scales [stack, cols / 32, rows].
  void transposed_scales(Operand& operand, const Shape& shape, float size) {
    const std::int64_t groups = shape[2] / 32;
    std::vector<float> values;
    for (const float value : scales(shape[0] * groups * shape[1], size))
      values.push_back(decode(Format::bf16, bf16_code(value)));
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t row = 0; row < shape[1]; ++row) {
        for (std::int64_t col = 0; col < shape[2]; ++col) {
          operand.factors.push_back(
              values[static_cast<std::size_t>((i * groups + col / 32) * shape[1] + row)]);
        }
      }
    }
    operand.scale_tensor = bf16({shape[0], groups, shape[1]}, values);
  }

 private:
  std::mt19937 random_;
};

/// What the references do to a pre-activation.
struct SlowActivation {
  std::string name = "silu";
  std::optional<double> limit;
  double beta = 4.0;
  double linear_beta = 25.0;

  template <typename Real>
  static Real sigmoid(Real x) {
    return Real(1) / (Real(1) + std::exp(-x));
  }
  template <typename Real>
  Real one(Real x) const {
    if (name == "silu") return x * sigmoid(x);
    if (name == "gelu") return x * Real(0.5) * (Real(1) + std::erf(x * Real(M_SQRT1_2)));
    return x;
  }
  template <typename Real>
  Real two(Real gate, Real up) const {
    const auto clamp = [&](double at) {
      gate = std::min(gate, Real(at));
      up = std::min(std::max(up, -Real(at)), Real(at));
    };
    if (name == "swiglu") {
      clamp(limit.value_or(7.0));
      return gate * sigmoid(Real(1.702) * gate) * (up + Real(1));
    }
    if (name == "situv2") {
      return Real(beta) * std::tanh(gate / Real(beta)) * sigmoid(gate) *
             (Real(linear_beta) * std::tanh(up / Real(linear_beta)));
    }
    if (limit.value_or(0.0) != 0.0) clamp(*limit);
    return one(gate) * up;
  }
};

/// One forward of two stages with everything that the references take.
struct SlowForward {
  std::int64_t tokens = 0;
  std::int64_t top_k = 0;
  std::int64_t experts = 0;
  std::int64_t hidden = 0;
  std::int64_t rows = 0;  ///< of w1
  std::int64_t intermediate = 0;
  Operand x;
  Operand w1;
  Operand w2;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<float> bias1;  ///< empty = none
  std::vector<float> bias2;
  std::vector<float> smooth1;  ///< [experts, hidden], empty = none
  std::vector<float> smooth2;  ///< [experts, intermediate], empty = none
  SlowActivation activation;
  bool weighs_first = false;

  static std::size_t at(std::int64_t row, std::int64_t cols, std::int64_t col) {
    return static_cast<std::size_t>(row * cols + col);
  }

  /// [tokens * top_k, intermediate].
  template <typename Real>
  std::vector<Real> stage1() const {
    std::vector<Real> h;
    for (std::int64_t slot = 0; slot < tokens * top_k; ++slot) {
      const std::int64_t e = ids[static_cast<std::size_t>(slot)];
      std::vector<Real> pre(static_cast<std::size_t>(rows));
      for (std::int64_t n = 0; n < rows && e >= 0 && e < experts; ++n) {
        Real sum = 0;
        for (std::int64_t k = 0; k < hidden; ++k) {
          Real value = x.at<Real>(at(slot / top_k, hidden, k));
          if (!smooth1.empty()) value *= Real(smooth1[at(e, hidden, k)]);
          sum += value * w1.at<Real>(at(e * rows + n, hidden, k));
        }
        if (weighs_first) sum *= Real(weights[static_cast<std::size_t>(slot)]);
        if (!bias1.empty()) sum += Real(bias1[at(e, rows, n)]);
        pre[static_cast<std::size_t>(n)] = sum;
      }
      for (std::int64_t i = 0; i < intermediate; ++i) {
        const Real gate = pre[static_cast<std::size_t>(i)];
        Real value = rows == intermediate
                         ? activation.one(gate)
                         : activation.two(gate, pre[static_cast<std::size_t>(i + intermediate)]);
        if (!smooth2.empty() && e >= 0 && e < experts)
          value *= Real(smooth2[at(e, intermediate, i)]);
        h.push_back(value);
      }
    }
    return h;
  }

  /// [tokens, hidden], from `h` [tokens * top_k, intermediate].
  template <typename Real>
  std::vector<Real> stage2(const std::vector<Real>& h) const {
    std::vector<Real> y(static_cast<std::size_t>(tokens * hidden));
    for (std::int64_t slot = 0; slot < tokens * top_k; ++slot) {
      const std::int64_t e = ids[static_cast<std::size_t>(slot)];
      for (std::int64_t d = 0; d < hidden && e >= 0 && e < experts; ++d) {
        Real sum = 0;
        for (std::int64_t i = 0; i < intermediate; ++i)
          sum += h[at(slot, intermediate, i)] * w2.at<Real>(at(e * hidden + d, intermediate, i));
        if (!bias2.empty()) sum += Real(bias2[at(e, hidden, d)]);
        if (!weighs_first) sum *= Real(weights[static_cast<std::size_t>(slot)]);
        y[at(slot / top_k, hidden, d)] += sum;
      }
    }
    return y;
  }
};

}  // namespace moeref::testing
