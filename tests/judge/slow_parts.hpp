#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/activation.hpp"
#include "engine/moe.hpp"
#include "quant/numerics.hpp"
#include "quant/quantize.hpp"
#include "tests/judge/activation_judge.hpp"

// What the judge of whole layers computes with: numbers in their stored format, operands of sums,
// one activation.

namespace moeref::judge {

inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// The exact product or sum in one rounding; an exact zero is +0, a NaN 0x7FC00000.
float round_product(double left, double right, Format format);
float round_sum(double left, double right, Format format);

/// Numbers of one format, row by row.
struct Matrix {
  std::string name;
  Format format = Format::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<float> values = {};

  Matrix() = default;
  Matrix(std::string new_name, Format new_format, std::int64_t new_rows, std::int64_t new_cols);

  float& operator()(std::int64_t row, std::int64_t col) { return values[at(row * cols + col)]; }
  float operator()(std::int64_t row, std::int64_t col) const {
    return values[at(row * cols + col)];
  }
  /// As they are stored.
  std::vector<std::byte> bytes() const;
  /// Some rows in a matrix of their own.
  Matrix picked(std::span<const std::int64_t> some) const;
};

/// The left operand of a GEMM, row by row: numbers, or codes with their scales.
struct Operand {
  std::shared_ptr<const Matrix> numbers;
  std::shared_ptr<const Quantized> codes;
  bool one_scale = false;  ///< for the whole tensor

  /// Row `row` as one row with every scale that belongs to it.
  ScaledMatrix row(std::int64_t row) const;
};
Operand operand_of(Matrix matrix);
Operand operand_of(const ActivationQuantizer& use, Quantized codes);

/// What the quantizer of a stage makes of rows; `given`: a calibrated scale.
Quantized quantized(const ActivationQuantizer& use, const Matrix& rows, std::optional<float> given);
/// code * scale in f32, as a kernel reads codes back.
Matrix read_back(const Quantized& codes);

/// The activation of one expert.
class Activate {
 public:
  Activate(const ActivationNumerics& numerics, const ActivationParameters& parameters,
           Format output)
      : numerics_(numerics),
        parameters_(parameters),
        output_(output),
        whole_(parameters, output),
        silu_({ActivationForm::silu}, output) {}

  float operator()(float gate, float up);

 private:
  float clamped(float up) const;

  const ActivationNumerics& numerics_;
  ActivationParameters parameters_;
  Format output_;
  ActivationJudge whole_;
  ActivationJudge silu_;
};

/// The stages of a layer as they lie in memory.
class StageKeeper {
 public:
  StageKeeper(const Route& route, RowOrder order, std::int64_t first_expert, std::int64_t experts);

  /// One row a token.
  void keep(const Matrix& matrix);
  void keep_codes(const std::string& name, const Quantized& codes);
  void keep_scales(const std::string& name, const Operand& operand);
  /// One row a slot, in the kernel's row order.
  void keep_slots(const Matrix& matrix);
  void keep_slot_codes(const std::string& name, const Quantized& codes);
  void keep_slot_scales(const std::string& name, const Quantized& codes);

  std::vector<Stage> take() { return std::move(stages_); }

 private:
  void add(std::string name, DType dtype, Shape shape, std::vector<std::byte> bytes);
  void add_slots(std::string name, DType dtype, std::int64_t cols,
                 const std::vector<std::byte>& bytes);

  const Route& route_;
  RowOrder order_;
  std::vector<std::int64_t> by_expert_;  ///< local slots
  std::vector<Stage> stages_;
};

}  // namespace moeref::judge
