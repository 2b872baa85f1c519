#include "cli/conform/forward_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "cli/conform/layout_case.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::conform {
namespace {

using nlohmann::json;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kScaleBlock = 128;

/// The member of a JSON object, or null.
json member(const json& object, std::string_view key) {
  if (!object.is_object()) return {};
  const auto found = object.find(std::string(key));
  return found == object.end() ? json() : *found;
}

std::string text_of(const GoldenCase& golden, const std::string& path, const json& value) {
  if (!value.is_string()) fail(golden.subject("params." + path), "must be a text");
  return value.get<std::string>();
}

float number_of(const GoldenCase& golden, const std::string& path, const json& value) {
  if (!value.is_number()) fail(golden.subject("params." + path), "must be a number");
  return static_cast<float>(value.get<double>());
}

/// The activation as params.model.activation and in.swiglu_* say.
struct CaseActivation {
  Activation activation;
  bool given = false;  ///< alpha, beta, limit are passed to the kernel
  bool interleaved = false;
};

std::vector<float> floats(const TensorView& view) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < view.size(); ++i) values.push_back(view.at<float>(i));
  return values;
}

/// An F32 input of `count` numbers (0 = any). Error: another dtype or count.
std::vector<float> float_input(const GoldenCase& golden, std::string_view name,
                               std::int64_t count) {
  const TensorView& view = golden.input(name);
  if (view.dtype != DType::f32 || (count != 0 && view.size() != count)) {
    fail(golden.subject(view.name), "is {} of {} numbers, needs F32 of {}",
         moeref::name(view.dtype), view.size(), count);
  }
  return floats(view);
}

CaseActivation activation_of(const GoldenCase& golden, std::int64_t experts) {
  const json given = member(member(golden.params, "model"), "activation");
  const std::string id = text_of(golden, "model.activation.id", member(given, "id"));
  CaseActivation result;
  Activation& activation = result.activation;
  const auto set = [&](const char* key, float& value) {
    const json number = member(given, key);
    if (!number.is_null())
      value = number_of(golden, fmt::format("model.activation.{}", key), number);
  };
  if (id == "relu2") {
    activation.form = ActivationForm::relu2;
    return result;
  }
  if (id == "silu_clamp_after" || id == "swiglu_step") {
    activation.form = ActivationForm::silu_clamp_after;
    activation.limit = 7.0f;
    set("limit", activation.limit);
  } else if (id == "gptoss" || id == "clamp_silu" || id == "silu") {
    if (id != "silu") {
      set("alpha", activation.alpha);
      set("beta", activation.beta);
      set("limit", activation.limit);
    }
  } else {
    fail(golden.subject("params.model.activation.id"),
         "is '{}'; known: silu, gptoss, clamp_silu, silu_clamp_after, swiglu_step, relu2", id);
  }
  const json order = member(given, "gate_up");
  result.interleaved = order.is_string() && order.get<std::string>() == "interleaved";
  for (const auto& [name, values] :
       {std::pair{"swiglu_alpha", &activation.alphas}, std::pair{"swiglu_beta", &activation.betas},
        std::pair{"swiglu_limit", &activation.limits}}) {
    if (golden.find_input(name) == nullptr) continue;
    *values = float_input(golden, name, experts);
    result.given = true;
  }
  return result;
}

/// Matrices of all experts, [experts, rows, cols], in memory of their own.
struct Weights {
  Format format = Format::bf16;
  std::int64_t experts = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::shared_ptr<std::vector<std::byte>> bytes;
};

Format format_of(const GoldenCase& golden, const TensorView& view) {
  if (view.dtype == DType::bf16) return Format::bf16;
  if (view.dtype == DType::f16) return Format::f16;
  if (view.dtype == DType::f8_e4m3) return Format::e4m3;
  fail(golden.subject(view.name), "is {}; weights are BF16, F16 or F8_E4M3", name(view.dtype));
}

void append(const GoldenCase& golden, const TensorView& view, std::int64_t first_rows,
            Weights& weights) {
  if (view.shape.size() != 3 || view.shape[1] < first_rows) {
    fail(golden.subject(view.name), "has shape {}, needs [experts, {}, columns]",
         to_string(view.shape), first_rows);
  }
  const Format format = format_of(golden, view);
  const std::int64_t rows = first_rows != 0 ? first_rows : view.shape[1];
  if (weights.experts == 0) {
    weights.format = format;
    weights.rows = rows;
    weights.cols = view.shape[2];
    weights.bytes = std::make_shared<std::vector<std::byte>>();
  }
  if (format != weights.format || rows != weights.rows || view.shape[2] != weights.cols) {
    fail(golden.subject(view.name), "is {} {}, the experts before are {} [{}, {}]",
         moeref::name(view.dtype), to_string(view.shape), moeref::name(weights.format),
         weights.rows, weights.cols);
  }
  const std::int64_t row_bytes = weights.cols * info(format).bits / 8;
  for (std::int64_t e = 0; e < view.shape[0]; ++e) {
    const std::byte* from = view.bytes.data() + e * view.shape[1] * row_bytes;
    weights.bytes->insert(weights.bytes->end(), from, from + rows * row_bytes);
  }
  weights.experts += view.shape[0];
}

/// in.`name`, or the parts that params.weights names.
Weights read_weights(const GoldenCase& golden, const std::string& name) {
  Weights weights;
  const std::int64_t rows = name == "w13" ? integer_param(golden, "w13_rows", 0) : 0;
  if (rows < 0) fail(golden.subject("params.w13_rows"), "is {}", rows);
  if (const TensorView* view = golden.find_input(name)) {
    append(golden, *view, rows, weights);
    return weights;
  }
  const json files = member(member(golden.params, "weights"), name);
  if (!files.is_array() || files.empty()) {
    fail(golden.path.string(), "has neither in.{} nor params.weights.{}", name, name);
  }
  for (const json& file : files) {
    const std::string relative = text_of(golden, "weights." + name, file);
    if (std::filesystem::path(relative).is_absolute() || relative.find("..") != std::string::npos) {
      fail(golden.subject("params.weights." + name), "names {}, which is not beside the case",
           relative);
    }
    const auto opened = SafetensorsFile::open(golden.path.parent_path() / relative);
    append(golden, opened->at("in." + name), rows, weights);
  }
  return weights;
}

/// How the halves of w13 lie.
struct HalfRows {
  std::int64_t first = 0;
  std::int64_t stride = 1;
};

struct Halves {
  std::int64_t count = 1;
  std::int64_t rows = 0;
  HalfRows gate;
  HalfRows up;
};

Halves halves_of(GateOrder order, std::int64_t rows) {
  if (order == GateOrder::none) return {1, rows, {}, {0, 1}};
  const std::int64_t half = rows / 2;
  if (order == GateOrder::interleaved) return {2, half, {0, 2}, {1, 2}};
  if (order == GateOrder::up_gate) return {2, half, {half, 1}, {0, 1}};
  return {2, half, {0, 1}, {half, 1}};
}

ScaledMatrix matrix_of(const Weights& weights, const std::string& name, std::int64_t expert,
                       const HalfRows& from, std::int64_t rows) {
  ScaledMatrix matrix;
  matrix.name = fmt::format("{}[{}]", name, expert);
  matrix.rows = rows;
  matrix.cols = weights.cols;
  matrix.codes = {weights.bytes->data(),      weights.format,
                  NibbleOrder::low_first,     (expert * weights.rows + from.first) * weights.cols,
                  from.stride * weights.cols, 1};
  return matrix;
}

/// Adds the scales of one half: by blocks, by rows, or one number.
void add_scales(const GoldenCase& golden, const std::string& prefix, const Weights& weights,
                std::int64_t expert, const HalfRows& from, ScaledMatrix& matrix) {
  if (const TensorView* blocks = golden.find_input(prefix + "_scale_inv")) {
    const std::int64_t rows = (weights.rows + kScaleBlock - 1) / kScaleBlock;
    const std::int64_t cols = (weights.cols + kScaleBlock - 1) / kScaleBlock;
    const Shape wanted{weights.experts, rows, cols};
    if (blocks->dtype != DType::f32 || blocks->shape != wanted || from.stride != 1) {
      fail(golden.subject(blocks->name), "is {} {}, needs F32 {}", name(blocks->dtype),
           to_string(blocks->shape), to_string(wanted));
    }
    matrix.scales = ScaleGrid{.data = blocks->bytes.data() + expert * rows * cols * 4,
                              .format = Format::f32,
                              .block_rows = kScaleBlock,
                              .block_cols = kScaleBlock,
                              .row_begin = from.first,
                              .row_stride = cols,
                              .col_stride = 1};
    return;
  }
  const TensorView* scale = golden.find_input(prefix + "_weight_scale");
  if (scale == nullptr) return;
  const bool one = scale->size() == weights.experts;
  if (scale->dtype != DType::f32 || (!one && scale->size() != weights.experts * weights.rows)) {
    fail(golden.subject(scale->name), "is {} {}, needs F32 [{}] or [{}, {}, 1]", name(scale->dtype),
         to_string(scale->shape), weights.experts, weights.experts, weights.rows);
  }
  if (one) {
    matrix.global_rule = GlobalScaleRule::multiply;
    matrix.global_scale = scale->at<float>(expert);
    return;
  }
  matrix.scales = ScaleGrid{.data = scale->bytes.data() + (expert * weights.rows + from.first) * 4,
                            .format = Format::f32,
                            .block_rows = 1,
                            .block_cols = std::int64_t{1} << 40,
                            .row_stride = from.stride,
                            .col_stride = 0};
}

ScaledMatrix bias_of(const GoldenCase& golden, const std::string& name, std::int64_t experts,
                     std::int64_t rows, std::int64_t expert, const HalfRows& from,
                     std::int64_t count) {
  const TensorView* view = golden.find_input(name);
  if (view == nullptr) return {};
  if (view->dtype != DType::bf16 || view->shape != Shape{experts, rows}) {
    fail(golden.subject(view->name), "is {} {}, needs BF16 [{}, {}]", moeref::name(view->dtype),
         to_string(view->shape), experts, rows);
  }
  ScaledMatrix bias;
  bias.name = fmt::format("{}[{}]", name, expert);
  bias.rows = 1;
  bias.cols = count;
  bias.codes = {view->bytes.data(),         Format::bf16, NibbleOrder::low_first,
                expert * rows + from.first, count,        from.stride};
  return bias;
}

/// The layer as the tensors of the case lie, which is the order of the kernel.
KernelLayer plain_kernel_layer(const GoldenCase& golden, GateOrder order) {
  const Weights w13 = read_weights(golden, "w13");
  const Weights w2 = read_weights(golden, "w2");
  const Halves halves = halves_of(order, w13.rows);
  if (halves.rows * halves.count != w13.rows || w2.experts != w13.experts || w2.rows != w13.cols ||
      w2.cols != halves.rows) {
    fail(golden.subject("in.w2"), "is [{}, {}, {}]; w13 [{}, {}, {}] needs [{}, {}, {}]",
         w2.experts, w2.rows, w2.cols, w13.experts, w13.rows, w13.cols, w13.experts, w13.cols,
         halves.rows);
  }
  KernelLayer kernel;
  kernel.order = order;
  kernel.width = w13.cols;
  MoeLayer& layer = kernel.layer;
  layer.hidden = w13.cols;
  layer.intermediate = halves.rows;
  layer.storage = {w13.bytes, w2.bytes, golden.file};
  for (std::int64_t e = 0; e < w13.experts; ++e) {
    Expert expert;
    const auto half = [&](const HalfRows& from, ScaledMatrix& matrix, ScaledMatrix& bias) {
      matrix = matrix_of(w13, "w13", e, from, halves.rows);
      add_scales(golden, "w13", w13, e, from, matrix);
      bias = bias_of(golden, "w13_bias", w13.experts, w13.rows, e, from, halves.rows);
    };
    if (order != GateOrder::none) half(halves.gate, expert.gate, expert.gate_bias);
    half(halves.up, expert.up, expert.up_bias);
    expert.down = matrix_of(w2, "w2", e, {}, w2.rows);
    add_scales(golden, "w2", w2, e, {}, expert.down);
    expert.down_bias = bias_of(golden, "w2_bias", w2.experts, w2.rows, e, {}, w2.rows);
    layer.experts.push_back(std::move(expert));
  }
  return kernel;
}

/// The order of gate and up as params.checkpoint.w13 tells it: "[E, 2I, H], rows 0..I-1 up, ..".
GateOrder order_of(const GoldenCase& golden, const CaseActivation& activation) {
  if (!is_gated(activation.activation.form)) return GateOrder::none;
  const json told = member(member(golden.params, "checkpoint"), "w13");
  const std::string text = told.is_string() ? told.get<std::string>() : "";
  if (activation.interleaved || text.find("2j gate") != std::string::npos) {
    return GateOrder::interleaved;
  }
  return text.find("0..I-1 up") != std::string::npos ? GateOrder::up_gate : GateOrder::gate_up;
}

/// The calibrated scales of the activations, and what a kernel with one number per expert takes of
/// them.
void add_scalars(const GoldenCase& golden, KernelLayer& kernel) {
  if (golden.find_input("w13_input_scale") == nullptr) return;
  const std::int64_t experts = kernel.layer.local_experts();
  const float a1 = float_input(golden, "w13_input_scale", 1).front();
  const std::vector<float> a2 = float_input(golden, "w2_input_scale", 0);
  if (a2.size() != 1 && a2.size() != to_size(experts)) {
    fail(golden.subject("in.w2_input_scale"), "has {} numbers, needs 1 or {}", a2.size(), experts);
  }
  const std::vector<float> s13 = float_input(golden, "w13_weight_scale", experts);
  const std::vector<float> s2 = float_input(golden, "w2_weight_scale", experts);
  for (std::size_t e = 0; e < to_size(experts); ++e) {
    kernel.gate_factors.push_back(s13[e] * a1);
    kernel.down_factors.push_back(a2[a2.size() == 1 ? 0 : e] * s2[e]);
  }
  kernel.up_factors = kernel.gate_factors;
  std::vector<float> quant;
  for (const float scale : a2) quant.push_back(1.0f / scale);
  kernel.scalars = {{"w13_input_scale", {a1}},   {"w2_input_scale", a2},
                    {"fc1_input_dequant", {a1}}, {"fc1_dequant", kernel.gate_factors},
                    {"fc2_quant", quant},        {"fc2_dequant", kernel.down_factors}};
}

/// [experts, rows, ...] as [experts, rows, bytes].
TensorView flattened(const GoldenCase& golden, std::string_view name) {
  TensorView view = golden.input(name);
  if (view.shape.size() < 3) {
    fail(golden.subject(view.name), "has shape {}, needs [experts, rows, columns]",
         to_string(view.shape));
  }
  std::int64_t cols = 1;
  for (std::size_t axis = 2; axis < view.shape.size(); ++axis) cols *= view.shape[axis];
  view.shape = {view.shape[0], view.shape[1], cols};
  return view;
}

/// Gate and up of two tensors as the halves of one.
TensorStack two_halves(const GoldenCase& golden, std::string_view gate, std::string_view up,
                       int element_bits) {
  TensorStack first = dense_stack(flattened(golden, gate), GateOrder::none, element_bits);
  const TensorStack second = dense_stack(flattened(golden, up), GateOrder::none, element_bits);
  if (first.experts != second.experts || first.half_rows != second.half_rows ||
      first.cols != second.cols) {
    fail(golden.subject(second.name), "differs in shape from in.{}", gate);
  }
  std::vector<Plane> planes;
  for (std::size_t e = 0; e < to_size(first.experts); ++e) {
    planes.push_back(first.planes[e]);
    planes.push_back(second.planes[e]);
  }
  first.halves = 2;
  first.planes = std::move(planes);
  return first;
}

/// The tensors of an MXFP4 checkpoint.
LayerTensors checkpoint_tensors(const GoldenCase& golden, std::string_view form) {
  constexpr std::int64_t kBlock = 32;
  LayerTensors layer;
  const auto set = [&](Slot slot, TensorStack stack) {
    if (is_scale(slot)) stack.block_cols = kBlock;
    layer.stacks[static_cast<std::size_t>(slot)] = std::move(stack);
  };
  if (form == "gptoss") {
    using enum GateOrder;
    set(Slot::w13, dense_stack(flattened(golden, "gate_up_proj_blocks"), interleaved, 4));
    set(Slot::w13_scale, dense_stack(golden.input("gate_up_proj_scales"), interleaved, 8));
    set(Slot::w2, dense_stack(flattened(golden, "down_proj_blocks"), none, 4));
    set(Slot::w2_scale, dense_stack(golden.input("down_proj_scales"), none, 8));
    for (const auto& [slot, name, order] :
         {std::tuple{Slot::w13_bias, "gate_up_proj_bias", interleaved},
          std::tuple{Slot::w2_bias, "down_proj_bias", none}}) {
      if (golden.find_input(name) == nullptr) continue;
      TensorView bias = golden.input(name);
      bias.shape.push_back(1);
      set(slot, dense_stack(bias, order, info(bias.dtype).bits));
    }
  } else {
    set(Slot::w13, two_halves(golden, "w1", "w3", 4));
    set(Slot::w13_scale, two_halves(golden, "w1_scale", "w3_scale", 8));
    set(Slot::w2, dense_stack(flattened(golden, "w2"), GateOrder::none, 4));
    set(Slot::w2_scale, dense_stack(golden.input("w2_scale"), GateOrder::none, 8));
  }
  const TensorStack& w13 = layer.at(Slot::w13);
  const TensorStack& w2 = layer.at(Slot::w2);
  for (const auto& [scale, weight] :
       {std::pair{Slot::w13_scale, &w13}, std::pair{Slot::w2_scale, &w2}}) {
    const TensorStack& stack = layer.at(scale);
    if (stack.experts == weight->experts && stack.rows() == weight->rows() &&
        stack.cols * kBlock == weight->cols) {
      continue;
    }
    fail(golden.subject(stack.name), "is [{}, {}, {}]; its weight needs [{}, {}, {}]",
         stack.experts, stack.rows(), stack.cols, weight->experts, weight->rows(),
         weight->cols / kBlock);
  }
  if (w2.experts != w13.experts || w2.rows() != w13.cols || w2.cols != w13.half_rows) {
    fail(golden.subject(w2.name), "is [{}, {}, {}]; the first GEMM needs [{}, {}, {}]", w2.experts,
         w2.rows(), w2.cols, w13.experts, w13.cols, w13.half_rows);
  }
  LayerShape& shape = layer.shape;
  shape.model = golden.path.filename().string();
  shape.weight_format = "mxfp4";
  shape.experts = shape.total_experts = w13.experts;
  shape.hidden = w13.cols;
  shape.intermediate = shape.stride = shape.full_intermediate = w13.half_rows;
  shape.bias = layer.find(Slot::w13_bias) != nullptr;
  describe_scales(layer);
  return layer;
}

/// Prepares the weights of a checkpoint and reads them back as the kernel does.
void prepare(const GoldenCase& golden, std::string_view form, const CaseActivation& activation,
             ForwardCase& forward_case) {
  LayerTensors tensors = with_unit_factors(checkpoint_tensors(golden, form));
  const Activation& given = activation.activation;
  if (!given.alphas.empty()) tensors.scalars.alpha = given.alphas;
  if (!given.betas.empty()) tensors.scalars.beta = given.betas;
  if (!given.limits.empty()) tensors.scalars.limit = given.limits;
  const Backend& backend = *forward_case.backend;
  std::vector<std::string> options;
  if (golden.text_param("weight_layout").value_or("sm90_mixed_fp4_v2") == "sm90_mixed_fp4_v2") {
    options.emplace_back("layout=v2");
  } else {
    fail(golden.subject("params.weight_layout"), "is '{}'; known: sm90_mixed_fp4_v2",
         *golden.text_param("weight_layout"));
  }
  const PreparedLayer prepared =
      plan_tensors(backend, parse_options(backend, options), std::move(tensors));
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, 1));
  forward_case.kernel = prepared_kernel_layer(prepared, made, 1);
  for (Tensor& tensor : made) {
    std::string name = tensor.name;
    forward_case.prepared.emplace(std::move(name), std::move(tensor));
  }
}

/// What params say of the kernels, as key=value.
std::vector<std::string> kernel_texts(const GoldenCase& golden, const Backend& backend) {
  std::vector<std::string> texts;
  const json tactic = member(golden.params, "tactic");
  for (const OptionInfo& option : backend.kernel_options) {
    const std::string key(option.name);
    json value = member(tactic, key);
    if (value.is_null()) value = member(golden.params, key);
    if (key == "finalize") {
      value = flag_param(golden, "use_fused_finalize", false) ? "fused" : "unfused";
    }
    if (key == "gemm" && value.is_string()) {
      value = value.get<std::string>().starts_with("deepgemm") ? "deepgemm" : "builtin";
    }
    if (key == "tile_k") {
      // "64x16x128"
      const json tile = member(member(tactic, "gemm1"), "tile");
      if (tile.is_string()) {
        const std::string text = tile.get<std::string>();
        value = text.substr(text.rfind('x') + 1);
      }
    }
    if (value.is_null()) continue;
    texts.push_back(
        fmt::format("{}={}", key, value.is_string() ? value.get<std::string>() : value.dump()));
  }
  return texts;
}

Route route_of(const GoldenCase& golden, std::int64_t tokens, std::int64_t experts) {
  const TensorView& ids = golden.input("topk_ids");
  const TensorView& weights = golden.input("topk_weights");
  if (ids.shape.size() != 2 || ids.shape[0] != tokens || weights.shape != ids.shape ||
      ids.dtype != DType::i32 || weights.dtype != DType::f32) {
    fail(golden.subject("in.topk_ids"), "and topk_weights need I32 and F32 [{}, slots]", tokens);
  }
  Route route;
  route.tokens = tokens;
  route.top_k = ids.shape[1];
  for (std::int64_t i = 0; i < ids.size(); ++i) {
    route.ids.push_back(ids.at<std::int32_t>(i));
    route.weights.push_back(weights.at<float>(i));
  }
  check_route(route, experts, golden.subject("in.topk_ids"));
  return route;
}

}  // namespace

ForwardCase read_forward_case(const GoldenCase& golden) {
  ForwardCase result;
  result.backend = &find_backend(golden.text_param("backend").value_or(""));
  const Backend& backend = *result.backend;
  const TensorView& hidden = golden.input("hidden_states");
  if (hidden.shape.size() != 2 || hidden.dtype != DType::bf16) {
    fail(golden.subject(hidden.name), "is {} {}, needs BF16 [tokens, hidden]", name(hidden.dtype),
         to_string(hidden.shape));
  }
  result.hidden.name = golden.subject(hidden.name);
  result.hidden.rows = hidden.shape[0];
  result.hidden.cols = hidden.shape[1];
  result.hidden.codes = {
      hidden.bytes.data(), Format::bf16, NibbleOrder::low_first, 0, hidden.shape[1], 1};

  const json experts = member(member(golden.params, "model"), "experts");
  if (!experts.is_number_integer()) {
    fail(golden.subject("params.model.experts"), "must be an integer");
  }
  const CaseActivation activation = activation_of(golden, experts.get<std::int64_t>());
  const json checkpoint = member(golden.params, "checkpoint");
  const std::string form = checkpoint.is_string() ? checkpoint.get<std::string>() : "";
  if (form == "gptoss" || form == "deepseek_v4") {
    prepare(golden, form, activation, result);
  } else {
    result.kernel = plain_kernel_layer(golden, order_of(golden, activation));
    add_scalars(golden, result.kernel);
  }
  MoeLayer& layer = result.kernel.layer;
  layer.activation = activation.activation;
  result.route = route_of(golden, hidden.shape[0], layer.local_experts());

  NumericsRequest request;
  request.shape.hidden = result.kernel.width;
  request.shape.intermediate = request.shape.stride = layer.intermediate;
  request.shape.experts = request.shape.total_experts = layer.local_experts();
  request.options = parse_options(backend, {});
  request.kernel = parse_kernel_options(backend, kernel_texts(golden, backend));
  request.tokens = result.route.tokens;
  request.top_k = result.route.top_k;
  if (golden.params.contains("routed_scaling_factor")) {
    request.routed_scaling = static_cast<float>(golden.number_param("routed_scaling_factor"));
  }
  request.activation = activation.activation;
  request.static_scales = golden.find_input("w13_input_scale") != nullptr;
  request.weighs_input = flag_param(golden, "apply_router_weight_on_input", false);
  const std::string level = golden.text_param("numerics").value_or("replay");
  if (level != "replay" && level != "backend") {
    fail(golden.subject("params.numerics"), "is '{}'; known: backend, replay", level);
  }
  result.level = level == "replay" ? NumericsLevel::replay : NumericsLevel::backend;
  request.level = result.level;
  result.numerics = numerics_for(backend, request);
  if (activation.given) result.numerics.activation.is_parametric = true;
  result.options.output = Format::bf16;
  result.options.keep_stages = true;
  result.options.threads = 1;
  result.options.routed_scaling = request.routed_scaling;
  return result;
}

}  // namespace moeref::conform
