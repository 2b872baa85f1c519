#include "engine/stage_operand.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Takes the scale of each row out of the matrix.
std::vector<float> take_row_scales(const std::string& name, Quantized& quantized) {
  if (quantized.form.global != GlobalScaleOf::row) return {};
  if (quantized.form.global_rule != GlobalScaleRule::multiply) {
    fail(name, "is quantized with a scale per row that does not multiply");
  }
  quantized.form.global = GlobalScaleOf::none;
  quantized.form.global_rule = GlobalScaleRule::none;
  return std::exchange(quantized.global, {});
}

StageOperand operand_of(const std::string& name, Quantized made) {
  auto owned = std::make_shared<Quantized>(std::move(made));
  StageOperand operand;
  operand.row_scales = take_row_scales(name, *owned);
  operand.whole_scale = owned->form.block_rows == 0 && owned->form.block_cols == 0;
  operand.matrix = owned->matrix(name);
  operand.quantized = owned;
  operand.owner = owned;
  return operand;
}

/// The rows of each expert under the scale of that expert.
Quantized quantize_groups(const QuantizePlan& plan, const Rows& rows, std::span<const float> scales,
                          std::span<const std::vector<std::int64_t>> groups, int threads) {
  Quantized all = quantize(plan, rows.values(), scales.front(), threads);
  const auto row_bytes = all.codes.size() / to_size(std::max<std::int64_t>(rows.rows(), 1));
  const auto row_scales = all.scales.size() / to_size(std::max<std::int64_t>(all.row_blocks, 1));
  std::vector<float> values(to_size(rows.cols()));
  for (std::size_t group = 0; group < groups.size(); ++group) {
    if (groups[group].empty()) continue;
    Rows part(rows.name(), rows.format(), std::ssize(groups[group]), rows.cols());
    for (std::size_t i = 0; i < groups[group].size(); ++i) {
      rows.get(groups[group][i], 0, values);
      part.put(static_cast<std::int64_t>(i), 0, values);
    }
    const Quantized made = quantize(plan, part.values(), scales[group], threads);
    for (std::size_t i = 0; i < groups[group].size(); ++i) {
      const std::size_t to = to_size(groups[group][i]);
      std::copy_n(made.codes.begin() + static_cast<std::ptrdiff_t>(i * row_bytes), row_bytes,
                  all.codes.begin() + static_cast<std::ptrdiff_t>(to * row_bytes));
      if (all.row_blocks != rows.rows()) continue;
      std::copy_n(made.scales.begin() + static_cast<std::ptrdiff_t>(i * row_scales), row_scales,
                  all.scales.begin() + static_cast<std::ptrdiff_t>(to * row_scales));
    }
  }
  return all;
}

}  // namespace

Tensor StageOperand::codes(std::string name) const {
  const Format format = quantized->form.codes;
  const bool packed = format == Format::e2m1;
  return {std::move(name),
          packed ? DType::u8 : stored_dtype(format),
          {quantized->rows, packed ? (quantized->cols + 1) / 2 : quantized->cols},
          quantized->codes};
}

Tensor StageOperand::scales(std::string name) const {
  const Format format = quantized->form.scales;
  Shape shape{quantized->row_blocks, quantized->col_blocks};
  if (whole_scale) shape = {1};
  return {std::move(name), stored_dtype(format), std::move(shape), quantized->scales};
}

StageOperand with_codes(const StageOperand& operand, const Tensor* codes, const Tensor* scales) {
  auto changed = std::make_shared<Quantized>(*operand.quantized);
  const auto take = [](const Tensor* from, std::vector<std::byte>& to) {
    if (from == nullptr) return;
    if (from->bytes.size() != to.size()) {
      fail(from->name, "has {} bytes, the stage has {}", from->bytes.size(), to.size());
    }
    to = from->bytes;
  };
  take(codes, changed->codes);
  take(scales, changed->scales);
  StageOperand result = operand;
  result.matrix = changed->matrix(operand.matrix.name);
  result.quantized = changed;
  result.owner = changed;
  return result;
}

StageOperand plain_operand(const ScaledMatrix& rows) {
  StageOperand operand;
  operand.matrix = rows;
  return operand;
}

StageOperand quantized_operand(const ActivationQuantizer& quantizer, const Rows& rows,
                               std::span<const float> scales,
                               std::span<const std::vector<std::int64_t>> groups, int threads) {
  const Quantizer& found = find_quantizer(quantizer.quantizer);
  const QuantizePlan plan =
      found.plan(parse_options(found.name, found.options, quantizer.options), rows.format());
  if (plan.form.global != GlobalScaleOf::given) {
    return operand_of(rows.name(), quantize(plan, rows.values(), std::nullopt, threads));
  }
  if (scales.empty()) {
    fail(rows.name(), "{} needs the calibrated scale {}, which is not prepared", found.name,
         quantizer.scale);
  }
  const bool one =
      std::adjacent_find(scales.begin(), scales.end(), std::not_equal_to<>()) == scales.end();
  if (one) {
    return operand_of(rows.name(), quantize(plan, rows.values(), scales.front(), threads));
  }
  if (scales.size() != groups.size()) {
    fail(rows.name(), "{} is given {} scales for {} experts", found.name, scales.size(),
         groups.size());
  }
  return operand_of(rows.name(), quantize_groups(plan, rows, scales, groups, threads));
}

}  // namespace moeref
