#include "quant/quantize.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "quant/error.hpp"
#include "quant/nearest_names.hpp"
#include "quant/quantize_blocks.hpp"
#include "quant/row_decoder.hpp"
#include "quant/tensor.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

constexpr std::array kQuantizers{
#define MOEREF_QUANTIZER(name) &quantizers::name,
#include "quant/quantizers.inc"
#undef MOEREF_QUANTIZER
};

std::int64_t whole_if_zero(std::int64_t block, std::int64_t size) {
  return block == 0 ? std::max<std::int64_t>(size, 1) : block;
}

}  // namespace

std::span<const Quantizer* const> all_quantizers() { return kQuantizers; }

const Quantizer& find_quantizer(std::string_view name) {
  for (const Quantizer* quantizer : kQuantizers) {
    if (quantizer->name == name) return *quantizer;
  }
  std::vector<std::string> names;
  for (const Quantizer* quantizer : kQuantizers) names.emplace_back(quantizer->name);
  fail(name, "is no quantizer; is it {}? `moeref quantize --list` shows all",
       fmt::join(nearest_names(name, names), " or "));
}

void quantize(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
              int threads, Quantized& out) {
  const bool takes_scale = plan.form.global == GlobalScaleOf::given;
  if (takes_scale && !given) fail(values.name, "needs a scale: the quantizer's is calibrated");
  if (!takes_scale && given) fail(values.name, "takes no scale: the quantizer makes its own");
  const simd::DefaultFloatEnvironment environment;
  carry_out(plan, values, given, std::nullopt, threads, out);
}

Quantized quantize(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
                   int threads) {
  Quantized out;
  quantize(plan, values, given, threads, out);
  return out;
}

Quantized quantize_rows(const QuantizePlan& plan, const ValueMatrix& rows, float amax,
                        int threads) {
  if (plan.form.global == GlobalScaleOf::given) {
    fail(rows.name, "needs a scale: the quantizer's is calibrated");
  }
  const simd::DefaultFloatEnvironment environment;
  Quantized out;
  carry_out(plan, rows, std::nullopt, amax, threads, out);
  return out;
}

Quantized quantize(std::string_view quantizer, std::span<const std::string> options,
                   const ValueMatrix& values, std::optional<float> given, int threads) {
  const Quantizer& found = find_quantizer(quantizer);
  if (std::find(found.inputs.begin(), found.inputs.end(), values.format) == found.inputs.end()) {
    std::vector<std::string_view> names;
    for (const Format format : found.inputs) names.push_back(name(format));
    fail(values.name, "is {}; the quantizer {} takes {}", name(values.format), found.name,
         fmt::join(names, ", "));
  }
  const Options chosen = parse_options(found.name, found.options, options);
  return quantize(found.plan(chosen, values.format), values, given, threads);
}

ScaledMatrix Quantized::matrix(const std::string& name) const {
  ScaledMatrix matrix;
  matrix.name = name;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = {.data = codes.data(), .format = form.codes, .row_stride = cols};
  matrix.scales = ScaleGrid{.data = scales.data(),
                            .format = form.scales,
                            .block_rows = whole_if_zero(form.block_rows, rows),
                            .block_cols = whole_if_zero(form.block_cols, cols),
                            .row_stride = col_blocks,
                            .col_stride = 1};
  if (form.global_rule != GlobalScaleRule::none) {
    matrix.global_rule = form.global_rule;
    matrix.global_scale = global.front();
  }
  return matrix;
}

ScaledMatrix Quantized::row_matrix(const std::string& name, std::int64_t row) const {
  ScaledMatrix whole = matrix(name);
  if (form.global == GlobalScaleOf::row) whole.global_scale = global[static_cast<std::size_t>(row)];
  return row_slice(whole, row, 1);
}

std::vector<float> Quantized::scale_values() const {
  std::vector<float> values;
  for (std::int64_t i = 0; i < row_blocks * col_blocks; ++i) {
    values.push_back(
        decode(form.scales, read_code(scales.data(), form.scales, NibbleOrder::low_first, i)));
  }
  return values;
}

}  // namespace moeref
