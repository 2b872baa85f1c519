#include "tests/io/checkpoint_builder.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "io/safetensors.hpp"
#include "quant/dequantize.hpp"

namespace moeref::testing {
namespace {

struct StorageInfo {
  Storage storage;
  const char* format;
  const char* weight;
  DType weight_dtype;
  const char* scale;
  DType scale_dtype;
  const char* global;
  const char* input;
};

constexpr std::array<StorageInfo, 23> kStorages{{
    {Storage::bf16, "bf16", ".weight", DType::bf16, "", DType::f32, "", ""},
    {Storage::f16, "f16", ".weight", DType::f16, "", DType::f32, "", ""},
    {Storage::f32, "f32", ".weight", DType::f32, "", DType::f32, "", ""},
    {Storage::fp8_block, "fp8_block", ".weight", DType::f8_e4m3, ".weight_scale_inv", DType::f32,
     "", ""},
    {Storage::fp8_block_bf16, "fp8_block", ".weight", DType::f8_e4m3, ".weight_scale_inv",
     DType::bf16, "", ""},
    {Storage::fp8_block_f16, "fp8_block", ".weight", DType::f8_e4m3, ".weight_scale_inv",
     DType::f16, "", ""},
    {Storage::fp8_block_v4, "fp8_block", ".weight", DType::f8_e4m3, ".scale", DType::f8_e8m0, "",
     ""},
    {Storage::fp8_block_v4_u8, "fp8_block", ".weight", DType::f8_e4m3, ".scale", DType::u8, "", ""},
    {Storage::fp8_block_v4_f32, "fp8_block", ".weight", DType::f8_e4m3, ".scale", DType::f32, "",
     ""},
    {Storage::fp8_block_ct, "fp8_block", ".weight", DType::f8_e4m3, ".weight_scale", DType::f32, "",
     ""},
    {Storage::fp8_channel, "fp8_channel", ".weight", DType::f8_e4m3, ".weight_scale", DType::f32,
     "", ""},
    {Storage::fp8_channel_flat, "fp8_channel", ".weight", DType::f8_e4m3, ".weight_scale",
     DType::bf16, "", ""},
    {Storage::fp8_tensor, "fp8_tensor", ".weight", DType::f8_e4m3, ".weight_scale", DType::f32, "",
     ".input_scale"},
    {Storage::fp8_tensor_1, "fp8_tensor", ".weight", DType::f8_e4m3, ".weight_scale", DType::f32,
     "", ".input_scale"},
    {Storage::fp8_tensor_bf16, "fp8_tensor", ".weight", DType::f8_e4m3, ".weight_scale",
     DType::bf16, "", ""},
    {Storage::mxfp8, "mxfp8", ".weight", DType::f8_e4m3, ".weight_scale", DType::u8, "", ""},
    {Storage::mxfp4_v4, "mxfp4", ".weight", DType::i8, ".scale", DType::f8_e8m0, "", ""},
    {Storage::mxfp4_v4_u8, "mxfp4", ".weight", DType::u8, ".scale", DType::u8, "", ""},
    {Storage::nvfp4, "nvfp4", ".weight", DType::u8, ".weight_scale", DType::f8_e4m3,
     ".weight_scale_2", ".input_scale"},
    {Storage::nvfp4_i8, "nvfp4", ".weight", DType::i8, ".weight_scale", DType::f8_e4m3,
     ".weight_scale_2", ".input_scale"},
    {Storage::nvfp4_ct, "nvfp4_ct", ".weight_packed", DType::u8, ".weight_scale", DType::f8_e4m3,
     ".weight_global_scale", ".input_global_scale"},
    {Storage::nvfp4_ct_weight_only, "nvfp4_ct", ".weight_packed", DType::u8, ".weight_scale",
     DType::f8_e4m3, ".weight_global_scale", ""},
    {Storage::mxfp4_ct, "mxfp4", ".weight_packed", DType::u8, ".weight_scale", DType::u8, "", ""},
}};

const StorageInfo& info_of(Storage storage) {
  return *std::find_if(kStorages.begin(), kStorages.end(),
                       [&](const StorageInfo& entry) { return entry.storage == storage; });
}

bool is_fp4(const StorageInfo& entry) {
  return entry.weight_dtype == DType::u8 || entry.weight_dtype == DType::i8;
}
bool is_e8m0(const StorageInfo& entry) {
  return entry.scale_dtype == DType::u8 || entry.scale_dtype == DType::f8_e8m0;
}

/// Rows and columns of weights for one scale.
std::array<std::int64_t, 2> block_of(Storage storage, std::int64_t rows, std::int64_t cols,
                                     std::int64_t block) {
  switch (storage) {
    case Storage::fp8_channel:
    case Storage::fp8_channel_flat:
      return {1, cols};
    case Storage::fp8_tensor:
    case Storage::fp8_tensor_1:
    case Storage::fp8_tensor_bf16:
      return {rows, cols};
    case Storage::nvfp4:
    case Storage::nvfp4_i8:
    case Storage::nvfp4_ct:
    case Storage::nvfp4_ct_weight_only:
      return {1, 16};
    case Storage::mxfp8:
    case Storage::mxfp4_v4:
    case Storage::mxfp4_v4_u8:
    case Storage::mxfp4_ct:
      return {1, 32};
    default:
      return {block, block};
  }
}

Shape scale_shape(Storage storage, std::int64_t rows, std::int64_t cols, std::int64_t block) {
  switch (storage) {
    case Storage::fp8_channel_flat:
      return {rows};
    case Storage::fp8_tensor:
      return {};
    case Storage::fp8_tensor_1:
      return {1};
    default: {
      const auto [block_rows, block_cols] = block_of(storage, rows, cols, block);
      return {ceil_div(rows, block_rows), ceil_div(cols, block_cols)};
    }
  }
}

Shape scalar_shape(Storage storage) {
  return storage == Storage::nvfp4 || storage == Storage::fp8_tensor ? Shape{} : Shape{1};
}

double power(int exponent) { return std::ldexp(1.0, exponent); }

/// A float with `mantissa_bits` bits behind the point and `exponent_bits` bits of exponent.
double small_float(unsigned bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double sign = ((bits >> (mantissa_bits + exponent_bits)) & 1u) != 0 ? -1.0 : 1.0;
  const double fraction = mantissa * power(-mantissa_bits);
  return sign *
         (exponent == 0 ? fraction * power(1 - bias) : (1.0 + fraction) * power(exponent - bias));
}

}  // namespace

std::string format_name(Storage storage) { return info_of(storage).format; }

std::uint64_t CheckpointBuilder::random() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return state_ >> 33;
}

void CheckpointBuilder::add(const std::string& name, DType dtype, Shape shape) {
  const auto count = static_cast<std::size_t>(element_count(shape));
  std::vector<std::byte> bytes;
  const auto append = [&](auto value) {
    const auto raw = std::as_bytes(std::span(&value, 1));
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  };
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t draw = random();
    switch (dtype) {
      case DType::f8_e4m3:  // every code but the NaNs
        append(static_cast<std::uint8_t>((draw & 0x7F) == 0x7F ? 0x38 : draw));
        break;
      case DType::u8:
      case DType::i8:
        append(static_cast<std::uint8_t>(draw));
        break;
      case DType::bf16:  // sign, exponents 120 to 127
        append(static_cast<std::uint16_t>((draw & 0x83FF) | 0x3C00));
        break;
      case DType::f16:  // sign, exponents 8 to 15
        append(static_cast<std::uint16_t>((draw & 0x9FFF) | 0x2000));
        break;
      case DType::i64:
        append(static_cast<std::int64_t>(draw % 4));
        break;
      default:
        append(std::bit_cast<float>(static_cast<std::uint32_t>((draw & 0x83FFFFFF) | 0x3C000000)));
    }
  }
  tensors[name] = {name, dtype, std::move(shape), std::move(bytes)};
}

void CheckpointBuilder::add_e8m0(const std::string& name, DType dtype, Shape shape) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(element_count(shape)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(112 + random() % 24);
  add_values(name, dtype, std::move(shape), bytes);
}

void CheckpointBuilder::add_linear(const std::string& module, Storage storage, std::int64_t rows,
                                   std::int64_t cols, std::int64_t block) {
  const StorageInfo& entry = info_of(storage);
  add(module + entry.weight, entry.weight_dtype, {rows, is_fp4(entry) ? cols / 2 : cols});
  if (*entry.scale != '\0') {
    const std::string name = module + entry.scale;
    const Shape shape = scale_shape(storage, rows, cols, block);
    if (is_e8m0(entry)) {
      add_e8m0(name, entry.scale_dtype, shape);
    } else {
      add(name, entry.scale_dtype, shape);
      std::vector<std::byte>& bytes = tensors[name].bytes;
      const auto width = static_cast<std::size_t>(info(entry.scale_dtype).bits / 8);
      for (std::size_t i = width - 1; i < bytes.size(); i += width) bytes[i] &= std::byte{0x7F};
    }
  }
  if (*entry.global != '\0') {
    const float value = 0.001f * static_cast<float>(1 + random() % 1000);
    add_values<float>(module + entry.global, DType::f32, scalar_shape(storage), {value});
  }
  if (*entry.input != '\0') {
    const float value = 0.25f * static_cast<float>(1 + random() % 1000);
    add_values<float>(module + entry.input, DType::f32, scalar_shape(storage), {value});
  }
}

void CheckpointBuilder::add_expert(const std::string& module, Storage storage,
                                   std::int64_t intermediate, std::int64_t width,
                                   const std::vector<std::string>& up_like, const std::string& down,
                                   std::int64_t block) {
  for (const std::string& name : up_like) {
    add_linear(module + "." + name, storage, intermediate, width, block);
  }
  add_linear(module + "." + down, storage, width, intermediate, block);
}

void CheckpointBuilder::write(int shards) {
  write_bytes(folder / "config.json", config.dump(2));
  if (shards == 1) {
    std::vector<TensorView> views;
    for (const auto& [name, tensor] : tensors) views.push_back(tensor.view());
    write_safetensors(folder / "model.safetensors", views, {{"format", "pt"}});
    return;
  }
  std::vector<std::vector<TensorView>> parts(static_cast<std::size_t>(shards));
  nlohmann::json index{{"metadata", {{"total_size", 0}}}, {"weight_map", nlohmann::json::object()}};
  std::size_t part = 0;
  for (const auto& [name, tensor] : tensors) {
    parts[part].push_back(tensor.view());
    index["weight_map"][name] = fmt::format("model-{:05}-of-{:05}.safetensors", part + 1, shards);
    part = (part + 1) % parts.size();
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    write_safetensors(folder / fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards),
                      parts[i], {{"format", "pt"}});
  }
  write_bytes(folder / "model.safetensors.index.json", index.dump());
}

double stored_value(const Tensor& tensor, std::int64_t index) {
  const TensorView view = tensor.view();
  switch (tensor.dtype) {
    case DType::f8_e4m3:
      return small_float(view.at<std::uint8_t>(index), 4, 3);
    case DType::bf16:
      return small_float(view.at<std::uint16_t>(index), 8, 7);
    case DType::f16:
      return small_float(view.at<std::uint16_t>(index), 5, 10);
    default:
      return view.at<float>(index);
  }
}

double stored_e8m0(const Tensor& tensor, std::int64_t index) {
  return power(tensor.view().at<std::uint8_t>(index) - 127);
}

double stored_fp4(const Tensor& tensor, std::int64_t nibble) {
  const unsigned byte = tensor.view().at<std::uint8_t>(nibble / 2);
  return small_float((nibble % 2 == 0 ? byte : byte >> 4) & 15u, 2, 1);
}

double linear_value(const CheckpointBuilder& builder, const std::string& module, Storage storage,
                    std::int64_t row, std::int64_t col, std::int64_t block) {
  const StorageInfo& entry = info_of(storage);
  const Tensor& weight = builder.tensors.at(module + entry.weight);
  const std::int64_t rows = weight.shape[0];
  const std::int64_t cols = is_fp4(entry) ? 2 * weight.shape[1] : weight.shape[1];
  const std::int64_t element = row * cols + col;
  const double code = is_fp4(entry) ? stored_fp4(weight, element) : stored_value(weight, element);
  if (*entry.scale == '\0') return code;
  const auto [block_rows, block_cols] = block_of(storage, rows, cols, block);
  const std::int64_t number = row / block_rows * ceil_div(cols, block_cols) + col / block_cols;
  const Tensor& scale = builder.tensors.at(module + entry.scale);
  return code * (is_e8m0(entry) ? stored_e8m0(scale, number) : stored_value(scale, number));
}

double read_value(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  return element_at(matrix, row, col) * static_cast<double>(scale_at(matrix, row, col));
}

void expect_linear(const CheckpointBuilder& builder, const ScaledMatrix& matrix,
                   const std::string& module, Storage storage, std::int64_t rows, std::int64_t cols,
                   std::int64_t block) {
  const StorageInfo& entry = info_of(storage);
  ASSERT_EQ(matrix.rows, rows) << module;
  ASSERT_EQ(matrix.cols, cols) << module;
  EXPECT_EQ(matrix.name, module + entry.weight);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const double found = read_value(matrix, row, col);
      const double written = linear_value(builder, module, storage, row, col, block);
      ASSERT_EQ(found, written) << module << " " << row << " " << col;
      ASSERT_EQ(std::signbit(found), std::signbit(written)) << module << " " << row << " " << col;
    }
  }
  const bool divides = std::string_view(entry.global) == ".weight_global_scale";
  EXPECT_EQ(matrix.global_rule, *entry.global == '\0' ? GlobalScaleRule::none
                                : divides             ? GlobalScaleRule::divide
                                                      : GlobalScaleRule::multiply);
  if (*entry.global != '\0') {
    EXPECT_EQ(matrix.global_scale, stored_value(builder.tensors.at(module + entry.global), 0));
  }
}

void expect_expert(const CheckpointBuilder& builder, const Expert& expert,
                   const std::string& module, Storage storage, std::int64_t intermediate,
                   std::int64_t width, const std::vector<std::string>& up_like,
                   const std::string& down, std::int64_t block) {
  const std::string& up = up_like.back();
  if (up_like.size() == 2) {
    expect_linear(builder, expert.gate, module + "." + up_like[0], storage, intermediate, width,
                  block);
  } else {
    EXPECT_FALSE(expert.gate);
  }
  expect_linear(builder, expert.up, module + "." + up, storage, intermediate, width, block);
  expect_linear(builder, expert.down, module + "." + down, storage, width, intermediate, block);
  const char* input = info_of(storage).input;
  EXPECT_EQ(expert.up_input_scale.has_value(), *input != '\0');
  if (*input != '\0') {
    EXPECT_EQ(*expert.up_input_scale,
              stored_value(builder.tensors.at(module + "." + up + input), 0));
    EXPECT_EQ(*expert.down_input_scale,
              stored_value(builder.tensors.at(module + "." + down + input), 0));
  }
}

std::string fact(const MoeLayer& layer, std::string_view item) {
  for (const Provenance& entry : layer.provenance) {
    if (entry.item == item) return entry.value + " from " + entry.source;
  }
  return "absent";
}

nlohmann::json fp8_config(std::int64_t block) {
  return {{"quant_method", "fp8"}, {"weight_block_size", {block, block}}};
}

void build_qwen3(CheckpointBuilder& builder, Storage storage, const Sizes& sizes) {
  builder.config = {{"model_type", "qwen3_moe"},
                    {"hidden_size", sizes.hidden},
                    {"moe_intermediate_size", sizes.intermediate},
                    {"num_experts", sizes.experts},
                    {"num_experts_per_tok", sizes.top_k},
                    {"num_hidden_layers", sizes.layers},
                    {"norm_topk_prob", true}};
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
    builder.add(prefix + "gate.weight", DType::bf16, {sizes.experts, sizes.hidden});
    for (std::int64_t e = 0; e < sizes.experts; ++e) {
      builder.add_expert(fmt::format("{}experts.{}", prefix, e), storage, sizes.intermediate,
                         sizes.hidden, kGated, "down_proj");
    }
  }
}

void build_deepseek_v3(CheckpointBuilder& builder, Storage storage, const Sizes& sizes) {
  builder.config = {{"model_type", "deepseek_v3"},
                    {"hidden_size", sizes.hidden},
                    {"moe_intermediate_size", sizes.intermediate},
                    {"n_routed_experts", sizes.experts},
                    {"num_experts_per_tok", sizes.top_k},
                    {"num_hidden_layers", sizes.layers},
                    {"first_k_dense_replace", 0},
                    {"n_group", 2},
                    {"topk_group", 1},
                    {"n_shared_experts", 1}};
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
    builder.add(prefix + "gate.weight", DType::bf16, {sizes.experts, sizes.hidden});
    builder.add(prefix + "gate.e_score_correction_bias", DType::f32, {sizes.experts});
    for (std::int64_t e = 0; e < sizes.experts; ++e) {
      builder.add_expert(fmt::format("{}experts.{}", prefix, e), storage, sizes.intermediate,
                         sizes.hidden, kGated, "down_proj");
    }
    builder.add_expert(prefix + "shared_experts", storage, sizes.intermediate, sizes.hidden, kGated,
                       "down_proj");
  }
}

void build_deepseek_v4(CheckpointBuilder& builder, Storage experts, Storage shared,
                       const Sizes& sizes, std::int64_t block) {
  builder.config = {
      {"model_type", "deepseek_v4"},
      {"hidden_size", sizes.hidden},
      {"moe_intermediate_size", sizes.intermediate},
      {"n_routed_experts", sizes.experts},
      {"num_experts_per_tok", sizes.top_k},
      {"num_hidden_layers", sizes.layers},
      {"n_shared_experts", 1},
      {"vocab_size", 10},
      {"swiglu_limit", 10.0},
      {"expert_dtype", "fp4"},
      {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {block, block}}}}};
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string prefix = fmt::format("layers.{}.ffn.", layer);
    builder.add(prefix + "gate.weight", DType::bf16, {sizes.experts, sizes.hidden});
    builder.add(prefix + "gate.bias", DType::f32, {sizes.experts});
    for (std::int64_t e = 0; e < sizes.experts; ++e) {
      builder.add_expert(fmt::format("{}experts.{}", prefix, e), experts, sizes.intermediate,
                         sizes.hidden, {"w1", "w3"}, "w2", block);
    }
    builder.add_expert(prefix + "shared_experts", shared, sizes.intermediate, sizes.hidden,
                       {"w1", "w3"}, "w2", block);
  }
}

void build_nemotron_h(CheckpointBuilder& builder, Storage up, Storage down, const Sizes& sizes,
                      const std::string& root, std::int64_t latent) {
  const std::int64_t shared = 2 * sizes.intermediate;
  builder.config = {{"model_type", "nemotron_h"},
                    {"hidden_size", sizes.hidden},
                    {"moe_intermediate_size", sizes.intermediate},
                    {"moe_shared_expert_intermediate_size", shared},
                    {"n_routed_experts", sizes.experts},
                    {"n_shared_experts", 1},
                    {"num_experts_per_tok", sizes.top_k},
                    {"num_hidden_layers", 3},
                    {"hybrid_override_pattern", "ME-"},
                    {"mlp_hidden_act", "relu2"},
                    {"routed_scaling_factor", 2.5}};
  const std::string prefix = root + "layers.1.mixer.";
  builder.add(prefix + "gate.weight", DType::f32, {sizes.experts, sizes.hidden});
  builder.add(prefix + "gate.e_score_correction_bias", DType::f32, {sizes.experts});
  const std::int64_t width = latent != 0 ? latent : sizes.hidden;
  if (latent != 0) {
    builder.config["moe_latent_size"] = latent;
    builder.add(prefix + "fc1_latent_proj.weight", DType::bf16, {latent, sizes.hidden});
    builder.add(prefix + "fc2_latent_proj.weight", DType::bf16, {sizes.hidden, latent});
  }
  for (std::int64_t e = 0; e < sizes.experts; ++e) {
    const std::string module = fmt::format("{}experts.{}", prefix, e);
    builder.add_linear(module + ".up_proj", up, sizes.intermediate, width);
    builder.add_linear(module + ".down_proj", down, width, sizes.intermediate);
  }
  builder.add_linear(prefix + "shared_experts.up_proj", up, shared, sizes.hidden);
  builder.add_linear(prefix + "shared_experts.down_proj", down, sizes.hidden, shared);
}

void build_gpt_oss(CheckpointBuilder& builder, const Sizes& sizes) {
  builder.config = {{"model_type", "gpt_oss"},
                    {"hidden_size", sizes.hidden},
                    {"intermediate_size", sizes.intermediate},
                    {"num_local_experts", sizes.experts},
                    {"experts_per_token", sizes.top_k},
                    {"num_hidden_layers", sizes.layers},
                    {"quantization_config", {{"quant_method", "mxfp4"}}}};
  const std::int64_t e = sizes.experts;
  const std::int64_t h = sizes.hidden;
  const std::int64_t i = sizes.intermediate;
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
    builder.add(prefix + "router.weight", DType::bf16, {e, h});
    builder.add(prefix + "router.bias", DType::bf16, {e});
    builder.add(prefix + "experts.gate_up_proj_blocks", DType::u8, {e, 2 * i, h / 32, 16});
    builder.add_e8m0(prefix + "experts.gate_up_proj_scales", DType::u8, {e, 2 * i, h / 32});
    builder.add(prefix + "experts.gate_up_proj_bias", DType::bf16, {e, 2 * i});
    builder.add(prefix + "experts.down_proj_blocks", DType::u8, {e, h, i / 32, 16});
    builder.add_e8m0(prefix + "experts.down_proj_scales", DType::u8, {e, h, i / 32});
    builder.add(prefix + "experts.down_proj_bias", DType::bf16, {e, h});
  }
}

}  // namespace moeref::testing
