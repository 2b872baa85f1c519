#include "tests/judge/slow_parts.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "quant/formats.hpp"
#include "tests/judge/exact_dot.hpp"

namespace moeref::judge {
namespace {

/// The code of a number of f16.
std::uint16_t f16_code(float value) {
  static const std::map<float, std::uint16_t> codes = [] {
    std::map<float, std::uint16_t> all;
    for (std::uint32_t code = 0; code < 0x10000; ++code) {
      const double number = decode_by_formula(Format::f16, code);
      if (!std::isnan(number) && code != 0x8000) {
        all.emplace(static_cast<float>(number), static_cast<std::uint16_t>(code));
      }
    }
    return all;
  }();
  if (std::isnan(value)) return 0x7E00;
  if (value == 0.0f) return std::signbit(value) ? 0x8000 : 0;
  return codes.at(value);
}

std::int64_t code_columns(const Quantized& codes) {
  return codes.form.codes == Format::e2m1 ? codes.cols / 2 : codes.cols;
}

}  // namespace

float round_product(double left, double right, Format format) {
  ExactSum sum;
  sum.add_product(left, right);
  return sum.round(format);
}

float round_sum(double left, double right, Format format) {
  ExactSum sum;
  sum.add(left);
  sum.add(right);
  return sum.round(format);
}

Matrix::Matrix(std::string new_name, Format new_format, std::int64_t new_rows,
               std::int64_t new_cols)
    : name(std::move(new_name)),
      format(new_format),
      rows(new_rows),
      cols(new_cols),
      values(at(new_rows * new_cols), 0.0f) {}

std::vector<std::byte> Matrix::bytes() const {
  std::vector<std::byte> all;
  for (const float value : values) {
    std::uint32_t code = std::bit_cast<std::uint32_t>(value);
    std::size_t width = 4;
    if (format != Format::f32) {
      code = format == Format::bf16 ? code >> 16 : f16_code(value);
      width = 2;
    }
    const auto* raw = reinterpret_cast<const std::byte*>(&code);
    all.insert(all.end(), raw, raw + width);
  }
  return all;
}

Matrix Matrix::picked(std::span<const std::int64_t> some) const {
  Matrix part(name, format, std::ssize(some), cols);
  for (std::size_t i = 0; i < some.size(); ++i) {
    for (std::int64_t col = 0; col < cols; ++col) {
      part(static_cast<std::int64_t>(i), col) = (*this)(some[i], col);
    }
  }
  return part;
}

ScaledMatrix Operand::row(std::int64_t row) const {
  if (codes != nullptr) return codes->row_matrix("codes", row);
  ScaledMatrix matrix;
  matrix.name = "numbers";
  matrix.rows = 1;
  matrix.cols = numbers->cols;
  matrix.codes = {reinterpret_cast<const std::byte*>(numbers->values.data()),
                  Format::f32,
                  NibbleOrder::low_first,
                  row * numbers->cols,
                  numbers->cols,
                  1};
  return matrix;
}

Operand operand_of(Matrix matrix) {
  return {std::make_shared<const Matrix>(std::move(matrix)), nullptr, false};
}

Operand operand_of(const ActivationQuantizer& use, Quantized codes) {
  const QuantizePlan plan =
      find_quantizer(use.quantizer)
          .plan(parse_options(use.quantizer, find_quantizer(use.quantizer).options, use.options),
                Format::bf16);
  const bool one = plan.form.block_rows == 0 && plan.form.block_cols == 0;
  return {nullptr, std::make_shared<const Quantized>(std::move(codes)), one};
}

Quantized quantized(const ActivationQuantizer& use, const Matrix& rows,
                    std::optional<float> given) {
  const std::vector<std::byte> bytes = rows.bytes();
  return quantize(use.quantizer, use.options, {rows.name, rows.format, rows.rows, rows.cols, bytes},
                  given, 1);
}

Matrix read_back(const Quantized& codes) {
  Matrix numbers("gemm1", Format::f32, codes.rows, codes.cols);
  const ScaledMatrix matrix = codes.matrix("codes");
  for (std::int64_t row = 0; row < codes.rows; ++row) {
    for (std::int64_t col = 0; col < codes.cols; ++col) {
      numbers(row, col) = round_product(value_at(matrix, row, col), 1.0, Format::f32);
    }
  }
  return numbers;
}

float Activate::operator()(float gate, float up) {
  const ActivationParameters& p = parameters_;
  const bool swiglu = p.form == ActivationForm::swiglu;
  const bool step = p.form == ActivationForm::silu_clamp_after;
  if (numerics_.clamp_nan == ClampNan::dropped && (step || (swiglu && numerics_.is_parametric))) {
    // min(NaN, L) = L: of the gate itself, or of its silu.
    if (step && std::isnan(gate)) {
      return round_product(p.limit, std::isnan(up) ? p.limit : clamped(up), output_);
    }
    if (std::isnan(gate)) gate = p.limit;
    if (std::isnan(up)) up = p.limit;
  }
  if (!numerics_.rounds_silu || !swiglu || p.alpha != 1.0f || p.beta != 0.0f) {
    return whole_(gate, up);
  }
  const float capped = std::isnan(gate) ? gate : std::min(gate, p.limit);
  return round_product(silu_(0.0f, capped), clamped(up), output_);
}

float Activate::clamped(float up) const {
  return std::isnan(up) ? up : std::max(std::min(up, parameters_.limit), -parameters_.limit);
}

StageKeeper::StageKeeper(const Route& route, RowOrder order, std::int64_t first_expert,
                         std::int64_t experts)
    : route_(route), order_(order) {
  for (std::int64_t expert = first_expert; expert < first_expert + experts; ++expert) {
    for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
      if (route.ids[slot] == expert) by_expert_.push_back(static_cast<std::int64_t>(slot));
    }
  }
}

void StageKeeper::keep(const Matrix& matrix) {
  add(matrix.name, stored_dtype(matrix.format), {matrix.rows, matrix.cols}, matrix.bytes());
}

void StageKeeper::keep_codes(const std::string& name, const Quantized& codes) {
  add(name, stored_dtype(codes.form.codes), {codes.rows, code_columns(codes)}, codes.codes);
}

void StageKeeper::keep_scales(const std::string& name, const Operand& operand) {
  const Quantized& codes = *operand.codes;
  Shape shape{codes.row_blocks, codes.col_blocks};
  if (operand.one_scale) shape = {1};
  add(name, stored_dtype(codes.form.scales), std::move(shape), codes.scales);
}

void StageKeeper::keep_slots(const Matrix& matrix) {
  add_slots(matrix.name, stored_dtype(matrix.format), matrix.cols, matrix.bytes());
}

void StageKeeper::keep_slot_codes(const std::string& name, const Quantized& codes) {
  add_slots(name, stored_dtype(codes.form.codes), code_columns(codes), codes.codes);
}

void StageKeeper::keep_slot_scales(const std::string& name, const Quantized& codes) {
  add_slots(name, stored_dtype(codes.form.scales), codes.col_blocks, codes.scales);
}

void StageKeeper::add(std::string name, DType dtype, Shape shape, std::vector<std::byte> bytes) {
  Tensor tensor{name, dtype, std::move(shape), std::move(bytes)};
  stages_.push_back({std::move(name), std::move(tensor)});
}

void StageKeeper::add_slots(std::string name, DType dtype, std::int64_t cols,
                            const std::vector<std::byte>& bytes) {
  if (order_ == RowOrder::slots) {
    return add(std::move(name), dtype, {route_.tokens, route_.top_k, cols}, bytes);
  }
  const std::size_t width = bytes.size() / std::max<std::size_t>(route_.ids.size(), 1);
  std::vector<std::byte> sorted;
  for (const std::int64_t slot : by_expert_) {
    const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(at(slot) * width);
    sorted.insert(sorted.end(), from, from + static_cast<std::ptrdiff_t>(width));
  }
  add(std::move(name), dtype, {std::ssize(by_expert_), cols}, std::move(sorted));
}

}  // namespace moeref::judge
