#include "cli/quantized_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cli/layout_json.hpp"
#include "cli/prepared_file.hpp"
#include "io/json_file.hpp"
#include "layout/step.hpp"
#include "layout/tensor_stack.hpp"
#include "layout/transform.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

struct RuleName {
  std::string_view name;
  GlobalScaleRule rule;
};
constexpr RuleName kRules[] = {{"none", GlobalScaleRule::none},
                               {"multiply", GlobalScaleRule::multiply},
                               {"divide", GlobalScaleRule::divide}};

std::string_view rule_name(GlobalScaleRule rule) {
  return std::find_if(std::begin(kRules), std::end(kRules),
                      [&](const RuleName& entry) { return entry.rule == rule; })
      ->name;
}

Format format_of(const Fields& fields, const char* key) {
  const auto format = parse_format(fields.string(key));
  if (!format) fail(fields.subject(), "metadata '{}' is no number format", key);
  return *format;
}

GlobalScaleRule rule_of(const Fields& fields, const char* key) {
  const std::string name = fields.string(key);
  for (const RuleName& entry : kRules) {
    if (entry.name == name) return entry.rule;
  }
  fail(fields.subject(), "metadata '{}' must be none, multiply or divide", key);
}

/// Two or more sizes whose product is not beyond reason.
Shape shape_of(const Fields& fields, const char* key) {
  const json& sizes = fields.at(key);
  Shape shape;
  std::int64_t count = 1;
  bool fits = sizes.is_array() && sizes.size() >= 2;
  for (std::size_t i = 0; fits && i < sizes.size(); ++i) {
    const std::int64_t size = sizes[i].is_number_integer() ? sizes[i].get<std::int64_t>() : -1;
    fits = size >= 0 && size <= kMostElements && (size == 0 || count <= kMostElements / size);
    shape.push_back(size);
    count *= fits ? std::max<std::int64_t>(size, 1) : 1;
  }
  if (!fits) fail(fields.subject(), "metadata '{}' must be two or more sizes", key);
  return shape;
}

/// The scales as a layout sees them, without data.
TensorStack scale_stack_of(const QuantizedEntry& entry) {
  const Shape shape = entry.row_scales_shape();
  TensorStack stack;
  stack.name = entry.scales;
  stack.dtype = stored_dtype(entry.form.scales);
  stack.element_bits = info(entry.form.scales).bits;
  stack.experts = entry.experts();
  stack.half_rows = shape[shape.size() - 2];
  stack.cols = shape.back();
  stack.block_rows = std::max<std::int64_t>(entry.form.block_rows, 1);
  stack.block_cols = std::max<std::int64_t>(entry.form.block_cols, 1);
  return stack;
}

/// `option`: where the steps stand.
PreparedLayer plan_scales(const QuantizedEntry& entry, TensorStack stack, const std::string& option,
                          const std::string& subject) {
  return plan_single(subject, std::move(stack), parse_steps(option, entry.scale_steps),
                     kMostElements);
}

std::string subject_of(const SafetensorsFile& file, const std::string& tensor) {
  return file.path().string() + ": " + tensor;
}

/// Error: another dtype; bytes may stand for codes of 8 bits.
void check_dtype(const SafetensorsFile& file, const TensorView& view, DType needed) {
  const bool is_bytes = view.dtype == DType::u8 || view.dtype == DType::i8;
  if (view.dtype == needed || (is_bytes && info(needed).bits == 8)) return;
  fail(subject_of(file, view.name), "is {} {}; the metadata need {}", moeref::name(view.dtype),
       to_string(view.shape), moeref::name(needed));
}

void check_shape(const SafetensorsFile& file, const TensorView& view, const Shape& needed) {
  if (view.shape == needed) return;
  fail(subject_of(file, view.name), "is {} {}; the metadata need {}", moeref::name(view.dtype),
       to_string(view.shape), to_string(needed));
}

}  // namespace

std::int64_t QuantizedEntry::experts() const {
  return element_count(Shape(shape.begin(), shape.end() - 2));
}

Shape QuantizedEntry::row_scales_shape() const {
  Shape result(shape.begin(), shape.end() - 2);
  result.push_back(form.block_rows == 0 ? std::min<std::int64_t>(rows(), 1)
                                        : ceil_div(rows(), form.block_rows));
  result.push_back(form.block_cols == 0 ? std::min<std::int64_t>(cols(), 1)
                                        : ceil_div(cols(), form.block_cols));
  return result;
}

json to_json(const QuantizedEntry& entry) {
  json result{{"name", entry.name},
              {"shape", entry.shape},
              {"codes", entry.codes},
              {"scales", entry.scales},
              {"code_format", name(entry.form.codes)},
              {"scale_format", name(entry.form.scales)},
              {"block_rows", entry.form.block_rows},
              {"block_cols", entry.form.block_cols},
              {"global_rule", rule_name(entry.form.global_rule)}};
  if (!entry.global.empty()) result["global"] = entry.global;
  if (!entry.scale_steps.empty()) result["scale_steps"] = entry.scale_steps;
  return result;
}

bool is_quantized(const SafetensorsFile& file) {
  const auto op = file.metadata().find("op");
  return op != file.metadata().end() && op->second == kQuantizedTensors;
}

std::vector<QuantizedEntry> quantized_entries(const SafetensorsFile& file) {
  const std::string subject = file.path().string();
  const auto text = file.metadata().find("params");
  const json params = text == file.metadata().end()
                          ? json::object()
                          : parse_json_object(subject + ": metadata params", text->second);
  if (!params.contains("tensors") || !params["tensors"].is_array()) {
    fail(subject, "has no list of tensors in its metadata; write it with moeref quantize");
  }
  std::vector<QuantizedEntry> entries;
  for (const json& stored : params["tensors"]) {
    const Fields fields(subject, stored);
    QuantizedEntry entry;
    entry.name = fields.string("name");
    entry.shape = shape_of(fields, "shape");
    entry.codes = fields.string("codes");
    entry.scales = fields.string("scales");
    if (fields.has("scale_steps")) entry.scale_steps = fields.string("scale_steps");
    entry.form.codes = format_of(fields, "code_format");
    entry.form.scales = format_of(fields, "scale_format");
    entry.form.block_rows = fields.integer("block_rows", 0, kMostElements);
    entry.form.block_cols = fields.integer("block_cols", 0, kMostElements);
    entry.form.global_rule = rule_of(fields, "global_rule");
    if (entry.form.global_rule != GlobalScaleRule::none) entry.global = fields.string("global");
    if (info(entry.form.codes).bits > 8 || entry.form.scales == Format::e2m1 ||
        entry.form.scales == Format::f64) {
      fail(subject, "metadata params.tensors: {} codes with {} scales are no quantized tensor",
           name(entry.form.codes), name(entry.form.scales));
    }
    if (entry.form.codes == Format::e2m1 && entry.cols() % 2 != 0) {
      fail(subject, "metadata params.tensors: {} has an odd number of packed columns", entry.name);
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

Tensor with_steps(const TensorView& scales, const QuantizedEntry& entry, int threads) {
  TensorView matrices = scales;
  matrices.shape = {entry.experts(), entry.row_scales_shape()[entry.shape.size() - 2],
                    entry.row_scales_shape().back()};
  TensorStack stack = dense_stack(matrices, GateOrder::none, info(scales.dtype).bits);
  stack.block_rows = std::max<std::int64_t>(entry.form.block_rows, 1);
  stack.block_cols = std::max<std::int64_t>(entry.form.block_cols, 1);
  const PreparedLayer layer = plan_scales(entry, std::move(stack), "--scale-steps", entry.scales);
  Tensor tensor = make(layer.tensors.front(), threads);
  tensor.shape = written_shape(layer.tensors.front());
  tensor.name = entry.scales;
  return tensor;
}

std::vector<std::byte> without_steps(const SafetensorsFile& file, const QuantizedEntry& entry,
                                     int threads) {
  const std::string subject = subject_of(file, entry.scales);
  const TensorView& stored = file.at(entry.scales);
  const PreparedLayer layer =
      plan_scales(entry, scale_stack_of(entry), subject + ": scale_steps", subject);
  const Plan& plan = layer.tensors.front().plan;
  check_dtype(file, stored, layer.tensors.front().dtype);
  check_shape(file, stored, written_shape(layer.tensors.front()));
  std::vector<std::byte> scales(static_cast<std::size_t>(element_count(entry.row_scales_shape())) *
                                static_cast<std::size_t>(info(entry.form.scales).bits / 8));
  const UndoReport report = undo(plan.map, stored.bytes, plan.recoders, scales, threads);
  if (report.wrong_pads != 0 || report.wrong_copies != 0) {
    fail(subject, "has {} pads and {} copies that {} would not write", report.wrong_pads,
         report.wrong_copies, entry.scale_steps);
  }
  return scales;
}

void check_stored(const SafetensorsFile& file, const QuantizedEntry& entry) {
  const TensorView& codes = file.at(entry.codes);
  Shape code_shape = entry.shape;
  if (entry.form.codes == Format::e2m1) code_shape.back() /= 2;
  check_dtype(file, codes, stored_dtype(entry.form.codes));
  check_shape(file, codes, code_shape);
  const TensorView& scales = file.at(entry.scales);
  if (entry.scale_steps.empty()) {
    check_dtype(file, scales, stored_dtype(entry.form.scales));
    check_shape(file, scales, entry.row_scales_shape());
  }
  if (entry.form.global_rule == GlobalScaleRule::none) return;
  const TensorView& global = file.at(entry.global);
  const std::int64_t count = global.size();
  if (global.dtype != DType::f32 ||
      (count != entry.experts() && count != entry.experts() * entry.rows())) {
    fail(subject_of(file, entry.global), "is {} {}; one F32 a matrix or a row is needed",
         moeref::name(global.dtype), to_string(global.shape));
  }
}

bool has_row_scales(const SafetensorsFile& file, const QuantizedEntry& entry) {
  if (entry.form.global_rule == GlobalScaleRule::none) return false;
  const std::int64_t count = file.at(entry.global).size();
  return count == entry.experts() * entry.rows() && count != entry.experts();
}

ScaledMatrix stored_matrix(const SafetensorsFile& file, const QuantizedEntry& entry,
                           std::span<const std::byte> scales, std::int64_t number,
                           std::optional<std::int64_t> row) {
  const std::int64_t rows = entry.rows();
  const std::int64_t cols = entry.cols();
  const std::int64_t code_bytes = entry.form.codes == Format::e2m1 ? rows * cols / 2 : rows * cols;
  const Shape blocks = entry.row_scales_shape();
  const std::int64_t row_blocks = blocks[blocks.size() - 2];
  const std::int64_t width = info(entry.form.scales).bits / 8;
  ScaledMatrix matrix;
  matrix.name = subject_of(file, entry.codes);
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = {.data = file.at(entry.codes).bytes.data() + number * code_bytes,
                  .format = entry.form.codes,
                  .row_stride = cols};
  matrix.scales =
      ScaleGrid{.data = scales.data() + number * row_blocks * blocks.back() * width,
                .format = entry.form.scales,
                .block_rows = entry.form.block_rows != 0 ? entry.form.block_rows
                                                         : std::max<std::int64_t>(rows, 1),
                .block_cols = entry.form.block_cols != 0 ? entry.form.block_cols
                                                         : std::max<std::int64_t>(cols, 1),
                .row_stride = blocks.back(),
                .col_stride = 1};
  if (entry.form.global_rule != GlobalScaleRule::none) {
    const TensorView& global = file.at(entry.global);
    const bool one_a_row = has_row_scales(file, entry);
    matrix.global_rule = entry.form.global_rule;
    matrix.global_scale = global.at<float>(one_a_row ? number * rows + row.value_or(0) : number);
  }
  return row ? row_slice(matrix, *row, 1) : matrix;
}

}  // namespace moeref::cli
