#include "io/layer_inputs.hpp"

#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "io/counter_random.hpp"
#include "io/safetensors.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

/// One input file and its tensors by short name.
class InputTensors {
 public:
  explicit InputTensors(const std::filesystem::path& path) : file_(SafetensorsFile::open(path)) {}

  const TensorView* find(std::string_view name) const {
    if (const TensorView* tensor = file_->find("in." + std::string(name))) return tensor;
    return file_->find(name);
  }
  std::string label(std::string_view name) const {
    return file_->path().string() + ": " + std::string(name);
  }
  const std::shared_ptr<const SafetensorsFile>& file() const { return file_; }

 private:
  std::shared_ptr<const SafetensorsFile> file_;
};

ScaleGrid grid(const TensorView& scale, Format format, std::int64_t block_rows,
               std::int64_t block_cols, std::int64_t row_stride, std::int64_t col_stride) {
  return {scale.bytes.data(), format, block_rows, block_cols, 0, 0, row_stride, col_stride};
}

/// Error: a scale that is NaN or infinite, or a negative NVFP4 block scale.
void check_scales(const std::string& label, const TensorView& tensor, Format format) {
  const int width = info(format).bits / 8;
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    std::uint32_t code = 0;
    std::memcpy(&code, tensor.bytes.data() + i * width, static_cast<std::size_t>(width));
    const float scale = decode(format, code);
    if (!std::isfinite(scale) || (format == Format::ue4m3 && std::signbit(scale))) {
      fail(label, "scale number {} is {}; scales must be finite numbers{}", i, scale,
           format == Format::ue4m3 ? " without a sign" : "");
    }
  }
}

/// The scales of FP8 or FP4 hidden states, told apart by dtype and shape; nothing if they are none
/// of the known forms.
std::optional<ScaleGrid> scales_of(const TensorView& scale, std::int64_t tokens,
                                   std::int64_t hidden, bool fp4) {
  const Shape& shape = scale.shape;
  const bool bytes = scale.dtype == DType::u8 || scale.dtype == DType::f8_e8m0;
  if (bytes && shape == Shape{tokens, hidden / 32} && hidden % 32 == 0) {
    return grid(scale, Format::e8m0, 1, 32, hidden / 32, 1);
  }
  if (fp4) {
    if (scale.dtype == DType::f8_e4m3 && shape == Shape{tokens, hidden / 16} && hidden % 16 == 0) {
      return grid(scale, Format::ue4m3, 1, 16, hidden / 16, 1);
    }
    return std::nullopt;
  }
  if (scale.dtype != DType::f32) return std::nullopt;
  if (scale.size() == 1) return grid(scale, Format::f32, tokens, hidden, 0, 0);
  if (shape == Shape{tokens} || shape == Shape{tokens, 1}) {
    return grid(scale, Format::f32, 1, hidden, 1, 0);
  }
  if (shape == Shape{tokens, ceil_div(hidden, 128)}) {
    return grid(scale, Format::f32, 1, 128, ceil_div(hidden, 128), 1);
  }
  return std::nullopt;
}

void read_hidden(const InputTensors& file, std::int64_t hidden, LayerInputs& inputs) {
  const TensorView* codes = file.find("hidden_states");
  if (codes == nullptr) codes = file.find("hidden");
  if (codes == nullptr) {
    fail(file.file()->path().string(),
         "has no tensor hidden_states; save the layer's input under that name");
  }
  const std::string label = file.label(codes->name);
  const bool fp4 = codes->dtype == DType::u8 || codes->dtype == DType::f4;
  const std::int64_t stored = codes->dtype == DType::u8 ? hidden / 2 : hidden;
  if (codes->shape.size() != 2 || codes->shape[1] != stored || codes->shape[0] < 1) {
    fail(label, "is {} {}; the layer needs [tokens, {}]", name(codes->dtype),
         to_string(codes->shape), stored);
  }
  ScaledMatrix& matrix = inputs.hidden;
  matrix.name = "hidden_states";
  matrix.rows = codes->shape[0];
  matrix.cols = hidden;
  matrix.codes.data = codes->bytes.data();
  matrix.codes.row_stride = hidden;
  inputs.tensors.push_back(*codes);
  inputs.tensors.back().name = "hidden_states";
  if (const auto plain = float_format(codes->dtype)) {
    matrix.codes.format = *plain;
    if (const TensorView* scale = file.find("hidden_states_scale")) {
      fail(file.label(scale->name), "is there, but hidden_states are {}, which takes no scale",
           name(codes->dtype));
    }
    return;
  }
  if (codes->dtype != DType::f8_e4m3 && !fp4) {
    fail(label, "has dtype {}; give BF16, F16, F32, F8_E4M3 or packed FP4 (U8)",
         name(codes->dtype));
  }
  matrix.codes.format = fp4 ? Format::e2m1 : Format::e4m3;
  const TensorView* scale = file.find("hidden_states_scale");
  if (scale == nullptr) {
    fail(label, "is {} without hidden_states_scale; save its scales under that name",
         name(codes->dtype));
  }
  matrix.scales = scales_of(*scale, matrix.rows, hidden, fp4);
  if (!matrix.scales) {
    fail(file.label(scale->name), "is {} {}; no scale of {} hidden states {} has that form",
         name(scale->dtype), to_string(scale->shape), name(codes->dtype), to_string(codes->shape));
  }
  check_scales(file.label(scale->name), *scale, matrix.scales->format);
  inputs.tensors.push_back(*scale);
  inputs.tensors.back().name = "hidden_states_scale";
  if (const TensorView* global = file.find("hidden_states_global_scale")) {
    if (global->dtype != DType::f32 || global->size() != 1) {
      fail(file.label(global->name), "is {} {}; it must be one F32", name(global->dtype),
           to_string(global->shape));
    }
    matrix.global_rule = GlobalScaleRule::multiply;
    matrix.global_scale = global->at<float>(0);
    check_scales(file.label(global->name), *global, Format::f32);
    inputs.tensors.push_back(*global);
    inputs.tensors.back().name = "hidden_states_global_scale";
  }
}

std::vector<std::int64_t> integers(const InputTensors& file, const TensorView& tensor) {
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    if (tensor.dtype == DType::i64) {
      values.push_back(tensor.at<std::int64_t>(i));
    } else if (tensor.dtype == DType::i32) {
      values.push_back(tensor.at<std::int32_t>(i));
    } else {
      fail(file.label(tensor.name), "has dtype {}; ids are I32 or I64", name(tensor.dtype));
    }
  }
  return values;
}

void read_routing(const InputTensors& file, LayerInputs& inputs) {
  const TensorView* ids = file.find("topk_ids");
  const TensorView* weights = file.find("topk_weights");
  if (ids == nullptr && weights == nullptr) return;
  const std::string path = file.file()->path().string();
  if (ids == nullptr || weights == nullptr) {
    fail(path, "has {} without {}; a routing needs both",
         ids != nullptr ? "topk_ids" : "topk_weights",
         ids != nullptr ? "topk_weights" : "topk_ids");
  }
  if (ids->shape.size() != 2 || ids->shape != weights->shape ||
      ids->shape[0] != inputs.hidden.rows || ids->shape[1] < 1) {
    fail(path, "topk_ids is {}, topk_weights {}; both must be [{}, top_k]", to_string(ids->shape),
         to_string(weights->shape), inputs.hidden.rows);
  }
  const auto format = float_format(weights->dtype);
  if (!format) {
    fail(file.label(weights->name), "has dtype {}; give F32, BF16 or F16", name(weights->dtype));
  }
  inputs.top_k = ids->shape[1];
  const std::vector<std::int64_t> wide_ids = integers(file, *ids);
  for (std::size_t i = 0; i < wide_ids.size(); ++i) {
    const auto id = static_cast<std::int32_t>(wide_ids[i]);
    if (id != wide_ids[i]) {
      fail(file.label(ids->name), "holds the expert id {} (token {}, slot {})", wide_ids[i],
           static_cast<std::int64_t>(i) / inputs.top_k,
           static_cast<std::int64_t>(i) % inputs.top_k);
    }
    inputs.topk_ids.push_back(id);
    const auto index = static_cast<std::int64_t>(i);
    inputs.topk_weights.push_back(*format == Format::f32
                                      ? weights->at<float>(index)
                                      : decode(*format, weights->at<std::uint16_t>(index)));
  }
  inputs.tensors.push_back(*ids);
  inputs.tensors.back().name = "topk_ids";
  inputs.tensors.push_back(*weights);
  inputs.tensors.back().name = "topk_weights";
}

/// Moves a tensor into the inputs' storage and lists it.
const TensorView& own(LayerInputs& inputs, Tensor tensor) {
  const auto owned = std::make_shared<const Tensor>(std::move(tensor));
  inputs.storage.push_back(owned);
  inputs.tensors.push_back(owned->view());
  return inputs.tensors.back();
}

}  // namespace

LayerInputs read_layer_inputs(const std::filesystem::path& path, std::int64_t hidden) {
  const InputTensors file(path);
  LayerInputs inputs;
  inputs.origin = path.string();
  inputs.storage.push_back(file.file());
  read_hidden(file, hidden, inputs);
  if (const TensorView* ids = file.find("input_ids")) {
    if (ids->shape != Shape{inputs.hidden.rows}) {
      fail(file.label(ids->name), "is {}; the hidden states have {} tokens", to_string(ids->shape),
           inputs.hidden.rows);
    }
    inputs.input_ids = integers(file, *ids);
    inputs.tensors.push_back(*ids);
    inputs.tensors.back().name = "input_ids";
  }
  read_routing(file, inputs);
  return inputs;
}

LayerInputs random_layer_inputs(std::int64_t tokens, std::int64_t hidden, std::uint64_t seed,
                                std::int64_t vocabulary) {
  constexpr std::int64_t kMostTokens = 1 << 24;
  if (tokens < 1 || tokens > kMostTokens) {
    fail("--tokens", "is {}; give 1 to {}", tokens, kMostTokens);
  }
  LayerInputs inputs;
  const auto count = static_cast<std::size_t>(tokens * hidden);
  std::vector<std::uint16_t> draws(count);
  TensorRandom(seed, "hidden_states").draws(0, draws);
  for (std::uint16_t& draw : draws) {
    const float value = static_cast<float>(normal_variate(draw)) / static_cast<float>(kNormalUnit);
    draw = static_cast<std::uint16_t>(encode(Format::bf16, value, EncodePolicy::eigen));
  }
  const TensorView& codes = own(
      inputs, make_tensor<std::uint16_t>("hidden_states", DType::bf16, {tokens, hidden}, draws));
  inputs.hidden.name = "hidden_states";
  inputs.hidden.rows = tokens;
  inputs.hidden.cols = hidden;
  inputs.hidden.codes.data = codes.bytes.data();
  inputs.hidden.codes.format = Format::bf16;
  inputs.hidden.codes.row_stride = hidden;
  if (vocabulary > 0) {
    const TensorRandom random(seed, "input_ids");
    for (std::int64_t token = 0; token < tokens; ++token) {
      const auto at = static_cast<std::uint64_t>(2 * token);
      const std::int64_t wide = (std::int64_t{random.draw(at)} << 16) | random.draw(at + 1);
      inputs.input_ids.push_back(wide % vocabulary);
    }
    own(inputs, make_tensor<std::int64_t>("input_ids", DType::i64, {tokens}, inputs.input_ids));
  }
  return inputs;
}

}  // namespace moeref
