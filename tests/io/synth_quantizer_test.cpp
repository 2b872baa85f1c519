#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>

#include "io/checkpoint.hpp"
#include "io/counter_random.hpp"
#include "io/safetensors.hpp"
#include "io/synth/plan.hpp"
#include "io/synth/quantized_weight.hpp"
#include "io/synth/write.hpp"
#include "quant/cast.hpp"
#include "quant/row_decoder.hpp"
#include "tests/io/temp_folder.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::read_bytes;
using testing::TempFolder;

constexpr std::uint64_t kSeed = 11;

SynthOptions tiny(std::string_view model, const WeightQuantizer& quantizer) {
  SynthOptions options;
  options.model = model;
  options.seed = kSeed;
  options.quantizer = quantizer.quantizer->name;
  options.quantizer_options = changed_options(quantizer);
  return options;
}

std::vector<WeightQuantizer> fitting(std::string_view model) {
  const SynthModel& found = find_synth_model(model);
  return fitting_quantizers(weight_target(found, found.tiny).value());
}

/// Of every quantizer the choice of options nearest to its defaults.
std::vector<WeightQuantizer> nearest_fitting(std::string_view model) {
  std::vector<WeightQuantizer> nearest;
  for (const WeightQuantizer& quantizer : fitting(model)) {
    if (nearest.empty() || nearest.back().quantizer != quantizer.quantizer) {
      nearest.push_back(quantizer);
    }
  }
  return nearest;
}

/// The first and the last of them.
std::vector<WeightQuantizer> two_fitting(std::string_view model) {
  const std::vector<WeightQuantizer> all = nearest_fitting(model);
  return {all.front(), all.back()};
}

/// "deepgemm_fp4_token scale=ue8m0": the options that a quantizer needs to fit.
std::vector<std::string> fitting_names(std::string_view model) {
  std::vector<std::string> names;
  for (const WeightQuantizer& quantizer : nearest_fitting(model)) {
    names.emplace_back(quantizer.quantizer->name);
    for (const std::string& option : changed_options(quantizer)) names.back() += " " + option;
  }
  return names;
}

std::vector<std::string> quantized_models() {
  std::vector<std::string> names;
  for (const SynthModel& model : synth_models()) {
    if (weight_form(model.storage)) names.emplace_back(model.name);
  }
  return names;
}

std::map<std::string, std::string> write(const SynthOptions& options, const fs::path& folder,
                                         const SynthWriteOptions& how = {}) {
  write_checkpoint(plan_checkpoint(options), folder, how);
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_bytes(entry.path());
  }
  return files;
}

/// The standard deviations of weights, as documented: outputs for inputs of unit variance have 1.5,
/// 1 and 0.5; with a limit 0.45 and 0.35 of it before the activation.
struct Sigmas {
  double gate, up, down;
};
Sigmas sigmas_of(const SynthModel& model) {
  const double limit = model.limit;
  const double width = std::sqrt(
      static_cast<double>(model.tiny.latent != 0 ? model.tiny.latent : model.tiny.hidden));
  return {(limit != 0 ? 0.45 * limit : 1.5) / width, (limit != 0 ? 0.35 * limit : 1.0) / width,
          0.5 / std::sqrt(static_cast<double>(model.tiny.intermediate))};
}

/// A matrix of drawn bf16 numbers.
struct Drawn {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<std::byte> bytes;

  ValueMatrix matrix() const { return {"drawn", Format::bf16, rows, cols, bytes}; }
};

/// Number i of the stream is z(draw i) * sigma rounded to bf16, a zero +0; row r has the sigma
/// `sigmas[r % sigmas.size()]`.
Drawn draw(const std::string& stream, std::int64_t rows, std::int64_t cols,
           const std::vector<double>& sigmas) {
  const TensorRandom random(kSeed, stream);
  Drawn drawn{rows, cols, {}};
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const double sigma = sigmas[static_cast<std::size_t>(i / cols) % sigmas.size()];
    const double z = normal_variate(random.draw(static_cast<std::uint64_t>(i))) / 4096.0;
    const float number = cast<Format::bf16>(static_cast<float>(sigma * z));
    const auto code =
        number == 0.0f ? std::uint32_t{0} : std::bit_cast<std::uint32_t>(number) >> 16;
    drawn.bytes.push_back(static_cast<std::byte>(code & 0xFF));
    drawn.bytes.push_back(static_cast<std::byte>(code >> 8));
  }
  return drawn;
}

Drawn stacked(const Drawn& above, const Drawn& below) {
  Drawn both{above.rows + below.rows, above.cols, above.bytes};
  both.bytes.insert(both.bytes.end(), below.bytes.begin(), below.bytes.end());
  return both;
}

Quantized quantized(const WeightQuantizer& quantizer, const Drawn& drawn) {
  return quantize(quantizer.quantizer->name, changed_options(quantizer), drawn.matrix(),
                  std::nullopt, 1);
}

std::uint32_t code_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  return read_code(matrix.codes.data, matrix.codes.format, matrix.codes.nibbles,
                   element_number(matrix.codes, row, col));
}

float scale_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  const ScaleGrid& grid = matrix.scales.value();
  const std::int64_t number = (grid.row_begin + row) / grid.block_rows * grid.row_stride +
                              (grid.col_begin + col) / grid.block_cols * grid.col_stride;
  return decode(grid.format, read_code(grid.data, grid.format, NibbleOrder::low_first, number));
}

/// Row r of `loaded` is row first + step * r of `made`: codes, scales and global scale.
void expect_rows(const ScaledMatrix& loaded, const Quantized& made, std::int64_t first = 0,
                 std::int64_t step = 1) {
  const ScaledMatrix wanted = made.matrix("wanted");
  ASSERT_EQ(loaded.cols, wanted.cols) << loaded.name;
  ASSERT_EQ(loaded.codes.format, wanted.codes.format) << loaded.name;
  std::int64_t wrong_codes = 0;
  std::int64_t wrong_scales = 0;
  for (std::int64_t row = 0; row < loaded.rows; ++row) {
    for (std::int64_t col = 0; col < loaded.cols; ++col) {
      const std::int64_t from = first + step * row;
      wrong_codes += code_at(loaded, row, col) != code_at(wanted, from, col);
      wrong_scales += scale_at(loaded, row, col) != scale_at(wanted, from, col);
    }
  }
  EXPECT_EQ(wrong_codes, 0) << loaded.name;
  EXPECT_EQ(wrong_scales, 0) << loaded.name;
  EXPECT_EQ(loaded.global_rule, wanted.global_rule) << loaded.name;
  EXPECT_EQ(loaded.global_scale, wanted.global_scale) << loaded.name;
}

void expect_gpt_oss(const SynthModel& model, const MoeLayer& layer,
                    const WeightQuantizer& quantizer) {
  const auto [gate, up, down] = sigmas_of(model);
  const SynthSizes& sizes = model.tiny;
  const std::string prefix = fmt::format("model.layers.{}.mlp.experts.", layer.layer);
  const Quantized w13 =
      quantized(quantizer, draw(prefix + "gate_up_proj", sizes.experts * 2 * sizes.intermediate,
                                sizes.hidden, {gate, up}));
  const Quantized w2 = quantized(quantizer, draw(prefix + "down_proj", sizes.experts * sizes.hidden,
                                                 sizes.intermediate, {down}));
  for (std::int64_t expert = 0; expert < sizes.experts; ++expert) {
    const Expert& loaded = layer.experts[static_cast<std::size_t>(expert)];
    expect_rows(loaded.gate, w13, expert * 2 * sizes.intermediate, 2);
    expect_rows(loaded.up, w13, expert * 2 * sizes.intermediate + 1, 2);
    expect_rows(loaded.down, w2, expert * sizes.hidden);
  }
}

/// An expert with tensors of its own. A global scale that gate and up share is made of both.
void expect_expert(const SynthModel& model, const Expert& expert, const std::string& prefix,
                   const WeightQuantizer& quantizer, bool split_global) {
  const auto [gate_sigma, up_sigma, down_sigma] = sigmas_of(model);
  const bool deepseek_v4 = model.family == SynthFamily::deepseek_v4;
  const auto drawn = [&](std::string_view name, std::string_view name_v4, const ScaledMatrix& like,
                         double sigma) {
    return draw(fmt::format("{}{}.weight", prefix, deepseek_v4 ? name_v4 : name), like.rows,
                like.cols, {sigma});
  };
  const Drawn up = drawn("up_proj", "w3", expert.up, up_sigma);
  if (!is_gated(model.family)) {
    expect_rows(expert.up, quantized(quantizer, up));
  } else {
    const Drawn gate = drawn("gate_proj", "w1", expert.gate, gate_sigma);
    if (quantizer.plan.form.global == GlobalScaleOf::tensor && !split_global) {
      const Quantized both = quantized(quantizer, stacked(gate, up));
      expect_rows(expert.gate, both);
      expect_rows(expert.up, both, expert.gate.rows);
    } else {
      expect_rows(expert.gate, quantized(quantizer, gate));
      expect_rows(expert.up, quantized(quantizer, up));
    }
  }
  expect_rows(expert.down, quantized(quantizer, drawn("down_proj", "w2", expert.down, down_sigma)));
}

void expect_layer(const SynthModel& model, const MoeLayer& layer, const WeightQuantizer& quantizer,
                  bool split_global = false) {
  if (model.family == SynthFamily::gpt_oss) return expect_gpt_oss(model, layer, quantizer);
  const std::string prefix = model.family == SynthFamily::deepseek_v4
                                 ? fmt::format("layers.{}.ffn.", layer.layer)
                             : model.family == SynthFamily::nemotron_h
                                 ? fmt::format("backbone.layers.{}.mixer.", layer.layer)
                                 : fmt::format("model.layers.{}.mlp.", layer.layer);
  for (std::size_t expert = 0; expert < layer.experts.size(); ++expert) {
    expect_expert(model, layer.experts[expert], fmt::format("{}experts.{}.", prefix, expert),
                  quantizer, split_global);
  }
  if (!layer.shared || model.family == SynthFamily::deepseek_v4) return;
  expect_expert(model, *layer.shared, prefix + "shared_experts.", quantizer, split_global);
}

class SynthQuantizers : public ::testing::TestWithParam<std::string> {};

TEST_P(SynthQuantizers, EveryFittingOneMakesTheWeightsOfTheCheckpoint) {
  const SynthModel& model = find_synth_model(GetParam());
  for (const WeightQuantizer& quantizer : fitting(GetParam())) {
    SCOPED_TRACE(full_name(quantizer));
    const TempFolder folder;
    const SynthPlan plan = plan_checkpoint(tiny(GetParam(), quantizer));
    write_checkpoint(plan, folder / "model", {});
    const Checkpoint checkpoint = Checkpoint::open(folder / "model");
    EXPECT_EQ(checkpoint.moe_layers(), plan.moe_layers);
    expect_layer(model, checkpoint.load_layer(plan.moe_layers.front()), quantizer);
    const auto file = SafetensorsFile::open(folder / "model/model.safetensors");
    EXPECT_NE(file->metadata().at("moeref.synth").find(full_name(quantizer)), std::string::npos);
  }
}

TEST_P(SynthQuantizers, SameBytesWithAnyThreadsAndChunks) {
  for (const WeightQuantizer& quantizer : two_fitting(GetParam())) {
    SCOPED_TRACE(full_name(quantizer));
    const TempFolder folder;
    const SynthOptions options = tiny(GetParam(), quantizer);
    const auto whole = write(options, folder / "whole");
    for (const int threads : {1, 2, 7}) {
      SynthWriteOptions how;
      how.threads = threads;
      how.chunk_bytes = 100'003;
      EXPECT_EQ(write(options, folder / std::to_string(threads), how), whole) << threads;
    }
  }
}

TEST_P(SynthQuantizers, AnySliceMadeAloneEqualsTheFile) {
  for (const WeightQuantizer& quantizer : two_fitting(GetParam())) {
    SCOPED_TRACE(full_name(quantizer));
    const SynthPlan plan = plan_checkpoint(tiny(GetParam(), quantizer));
    std::size_t seen = 0;
    for (const SynthTensor& tensor : plan.tensors) {
      if (!tensor.weight || seen++ % 7 > 2) continue;
      std::vector<std::byte> whole(tensor.byte_count());
      make_bytes(tensor, plan.seed, 0, whole);
      const std::size_t size = whole.size();
      for (const auto& [first, count] :
           {std::pair(size / 3, size - size / 3), std::pair(size / 2, size / 4),
            std::pair(size / 2 + 1, size / 7), std::pair(size - 1, std::size_t{1})}) {
        std::vector<std::byte> slice(count);
        make_bytes(tensor, plan.seed, first, slice);
        EXPECT_TRUE(std::ranges::equal(slice, std::span(whole).subspan(first, count)))
            << tensor.name << " " << first;
      }
    }
    EXPECT_GT(seen, 0U);
  }
}

TEST_P(SynthQuantizers, OnlyTheWeightsChange) {
  const WeightQuantizer quantizer = fitting(GetParam()).front();
  const SynthPlan plan = plan_checkpoint(tiny(GetParam(), quantizer));
  SynthOptions drawn = tiny(GetParam(), quantizer);
  drawn.quantizer.reset();
  drawn.quantizer_options.clear();
  const SynthPlan without = plan_checkpoint(drawn);
  EXPECT_EQ(plan.config_json, without.config_json);
  EXPECT_EQ(plan.hf_quant_config_json, without.hf_quant_config_json);
  ASSERT_EQ(plan.tensors.size(), without.tensors.size());
  for (std::size_t i = 0; i < plan.tensors.size(); ++i) {
    const SynthTensor& tensor = plan.tensors[i];
    EXPECT_EQ(tensor.name, without.tensors[i].name);
    EXPECT_EQ(tensor.dtype, without.tensors[i].dtype);
    EXPECT_EQ(tensor.shape, without.tensors[i].shape);
    const bool of_experts = tensor.name.find("expert") != std::string::npos;
    const bool of_activations = tensor.name.find("input_") != std::string::npos;
    const bool bias = tensor.name.ends_with("_bias");
    const bool v4_shared = plan.model->family == SynthFamily::deepseek_v4 &&
                           tensor.name.find("shared") != std::string::npos;
    EXPECT_EQ(tensor.weight != nullptr, of_experts && !of_activations && !bias && !v4_shared)
        << tensor.name;
    if (tensor.weight) continue;
    std::vector<std::byte> bytes(tensor.byte_count());
    std::vector<std::byte> same(tensor.byte_count());
    make_bytes(tensor, plan.seed, 0, bytes);
    make_bytes(without.tensors[i], plan.seed, 0, same);
    EXPECT_EQ(bytes, same) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, SynthQuantizers, ::testing::ValuesIn(quantized_models()),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(FittingQuantizers, AreThoseWithTheFormOfTheModel) {
  using Names = std::vector<std::string>;
  const Names mxfp4{"sglang_mxfp4",
                    "deepgemm_fp4_token scale=ue8m0",
                    "modelopt_mxfp4",
                    "compressed_tensors_mxfp4",
                    "ocp_mx",
                    "nvidia_mx",
                    "torchao_mx",
                    "quark_mx",
                    "quark_triton_mxfp4",
                    "microxcaling",
                    "aiter_triton_mxfp4",
                    "aiter_hip_mxfp4",
                    "aiter_torch_mxfp4"};
  EXPECT_EQ(fitting_names("gpt-oss-20b"), mxfp4);
  EXPECT_EQ(fitting_names("deepseek-v4"), mxfp4);
  EXPECT_EQ(fitting_names("deepseek-v3"),
            (Names{"deepgemm_fp8_block", "modelopt_fp8 granularity=block",
                   "compressed_tensors_fp8 strategy=block"}));
  EXPECT_EQ(fitting_names("qwen3-30b"),
            (Names{"deepgemm_fp8_block scale=ue8m0", "modelopt_fp8 granularity=block",
                   "compressed_tensors_fp8 strategy=block"}));
  EXPECT_EQ(fitting_names("qwen3-235b-fp8-channel"),
            (Names{"modelopt_fp8 granularity=channel", "compressed_tensors_fp8"}));
  EXPECT_EQ(fitting_names("nemotron-h-fp8"),
            (Names{"sglang_fp8_input", "modelopt_fp8", "compressed_tensors_fp8 strategy=tensor",
                   "aiter_torch_fp8_tensor"}));
  EXPECT_EQ(fitting_names("nemotron-h-nvfp4"), Names{"modelopt_nvfp4"});
  EXPECT_EQ(fitting_names("qwen3-235b-nvfp4"), Names{"compressed_tensors_nvfp4"});
  EXPECT_EQ(fitting("nemotron-h-nvfp4").size(), 8U);  // device, blocks, e4m3_max
  EXPECT_EQ(fitting("deepseek-v3").front().options["scale"], "f32");
}

TEST(StoredScale, IsTheSameValueOrNothing) {
  const auto bits = [](float value) { return std::bit_cast<std::uint32_t>(value); };
  const auto e8m0 = [&](float value) {
    return stored_scale(Format::f32, bits(value), Format::e8m0);
  };
  EXPECT_EQ(e8m0(1.0f), 127U);
  EXPECT_EQ(e8m0(0x1p127f), 254U);
  EXPECT_EQ(e8m0(0x1p-126f), 1U);
  EXPECT_EQ(e8m0(0x1p-127f), 0U);
  EXPECT_EQ(e8m0(0x1p-128f), std::nullopt);
  EXPECT_EQ(e8m0(0.0f), std::nullopt);
  EXPECT_EQ(e8m0(-1.0f), std::nullopt);
  EXPECT_EQ(e8m0(1.5f), std::nullopt);
  EXPECT_EQ(e8m0(std::numeric_limits<float>::infinity()), std::nullopt);
  EXPECT_EQ(e8m0(std::numeric_limits<float>::quiet_NaN()), std::nullopt);
  EXPECT_EQ(stored_scale(Format::f32, bits(1.0f + 0x1p-7f), Format::bf16), 0x3F81U);
  EXPECT_EQ(stored_scale(Format::f32, bits(1.0f + 0x1p-8f), Format::bf16), std::nullopt);
  EXPECT_EQ(stored_scale(Format::f32, bits(0x1p-149f), Format::bf16), std::nullopt);
  EXPECT_EQ(stored_scale(Format::e8m0, 130, Format::f32), bits(8.0f));
  EXPECT_EQ(stored_scale(Format::e8m0, 255, Format::f32), std::nullopt);
  EXPECT_EQ(stored_scale(Format::e8m0, 255, Format::e8m0), 255U);
}

TEST(SynthQuantizer, GateAndUpHaveGlobalScalesOfTheirOwnIfSplit) {
  const std::string_view name = "qwen3-235b-nvfp4";
  const WeightQuantizer quantizer = fitting(name).front();
  for (const bool split : {false, true}) {
    const TempFolder folder;
    SynthOptions options = tiny(name, quantizer);
    options.split_global_scales = split;
    write(options, folder / "model");
    const MoeLayer layer = Checkpoint::open(folder / "model").load_layer(0);
    expect_layer(find_synth_model(name), layer, quantizer, split);
    for (const Expert& expert : layer.experts) {
      EXPECT_EQ(expert.gate.global_scale != expert.up.global_scale, split);
    }
  }
}

// The unquantized model of the same sizes holds the very numbers that are quantized.
TEST(SynthQuantizer, TheModelInBf16HasTheSameWeights) {
  const TempFolder folder;
  for (const auto& [quantized_model, bf16_model] :
       {std::pair("nemotron-h-fp8", "nemotron-h-bf16"),
        std::pair("nemotron-h-latent-fp8", "nemotron-h-latent-bf16")}) {
    SynthOptions bf16;
    bf16.model = bf16_model;
    bf16.seed = kSeed;
    write(bf16, folder / bf16_model);
    const auto numbers = SafetensorsFile::open(folder / bf16_model / "model.safetensors");
    for (const WeightQuantizer& quantizer : fitting(quantized_model)) {
      const std::string of = quantized_model + full_name(quantizer);
      write(tiny(quantized_model, quantizer), folder / of);
      const auto codes = SafetensorsFile::open(folder / of / "model.safetensors");
      int weights = 0;
      for (const auto& [name, view] : codes->tensors()) {
        if (view.dtype != DType::f8_e4m3) continue;
        const TensorView& from = numbers->at(name);
        const Quantized made =
            quantize(quantizer.plan, {name, Format::bf16, from.shape[0], from.shape[1], from.bytes},
                     std::nullopt, 1);
        EXPECT_TRUE(std::ranges::equal(view.bytes, made.codes)) << name;
        EXPECT_TRUE(std::ranges::equal(codes->at(name + "_scale").bytes, made.scales)) << name;
        ++weights;
      }
      EXPECT_EQ(weights, 2 * (find_synth_model(quantized_model).tiny.experts + 1));
    }
  }
}

TEST(SynthQuantizer, RefusesWhatDoesNotFit) {
  const auto refusal = [](std::string_view model, std::string_view quantizer,
                          std::vector<std::string> quantizer_options = {}) {
    SynthOptions options;
    options.model = model;
    options.quantizer = std::string(quantizer);
    options.quantizer_options = std::move(quantizer_options);
    return error_of([&] { plan_checkpoint(options); });
  };
  EXPECT_EQ(refusal("deepseek-v3", "ocp_mx"),
            "--quantizer: deepseek-v3 stores e4m3 codes with f32 scales of 128 x 128; ocp_mx "
            "block=32 elements=e2m1 makes e2m1 codes with e8m0 scales of 1 x 32; these fit: "
            "deepgemm_fp8_block, modelopt_fp8 --quantizer-option granularity=block, "
            "compressed_tensors_fp8 --quantizer-option strategy=block");
  EXPECT_EQ(refusal("qwen3-30b", "deepgemm_fp8_block"),
            "--quantizer: qwen3-30b stores e4m3 codes with bf16 scales of 128 x 128; "
            "deepgemm_fp8_block device=cuda group=128 scale=f32 makes f32 scales that bf16 does "
            "not hold exactly; these fit: deepgemm_fp8_block --quantizer-option scale=ue8m0, "
            "modelopt_fp8 --quantizer-option granularity=block, compressed_tensors_fp8 "
            "--quantizer-option strategy=block");
  EXPECT_THAT(refusal("deepseek-v4", "deepgemm_fp4_token"),
              HasSubstr("makes f32 scales that e8m0 does not hold exactly; these fit: "
                        "sglang_mxfp4, deepgemm_fp4_token --quantizer-option scale=ue8m0, "));
  EXPECT_EQ(refusal("qwen3-235b-nvfp4", "modelopt_nvfp4"),
            "--quantizer: qwen3-235b-nvfp4 stores e2m1 codes with ue4m3 scales of 1 x 16 and a "
            "global scale that divides; modelopt_nvfp4 blocks=dynamic device=cuda e4m3_max=448 "
            "makes e2m1 codes with ue4m3 scales of 1 x 16 and a global scale that multiplies; "
            "these fit: compressed_tensors_nvfp4");
  EXPECT_EQ(refusal("nemotron-h-nvfp4", "flashinfer_nvfp4"),
            "--quantizer: flashinfer_nvfp4 makes no weights of bf16 numbers; nemotron-h-nvfp4 "
            "stores e2m1 codes with ue4m3 scales of 1 x 16 and a global scale that multiplies; "
            "these fit: modelopt_nvfp4");
  EXPECT_THAT(refusal("nemotron-h-fp8", "modelopt_fp8", {"granularity=channel"}),
              HasSubstr("stores e4m3 codes with one f32 scale; modelopt_fp8 device=cuda "
                        "granularity=channel makes e4m3 codes with f32 scales of 1 row; these "));
  EXPECT_THAT(refusal("nemotron-h-fp8", "aiter_torch_fp8_tensor", {"elements=e4m3fnuz"}),
              HasSubstr("makes e4m3fnuz codes with one f32 scale; "));
  EXPECT_THAT(refusal("gpt-oss-20b", "ocp_mx", {"block=16"}),
              HasSubstr("makes e2m1 codes with e8m0 scales of 1 x 16; these fit: "));
  EXPECT_THAT(
      refusal("qwen3-235b-bf16", "modelopt_fp8"),
      HasSubstr(
          "--quantizer: qwen3-235b-bf16 has bf16 weights, modelopt_fp8 has nothing "
          "to quantize; models with quantized ones: gpt-oss-20b, gpt-oss-120b, deepseek-v3, "));
  EXPECT_THAT(refusal("gpt-oss-20b", "ocp_mx", {"blocks=16"}), HasSubstr("'blocks=16' is no"));
  EXPECT_THAT(refusal("gpt-oss-20b", "ocp"), HasSubstr("is no quantizer; is it ocp_mx or "));
  EXPECT_THAT(refusal("gpt-oss-20b", ""), HasSubstr("is no quantizer"));
  SynthOptions options;
  options.model = "gpt-oss-20b";
  options.quantizer_options = {"block=16"};
  EXPECT_EQ(error_of([&] { plan_checkpoint(options); }),
            "--quantizer-option: belongs to a quantizer; name it with --quantizer");
}

}  // namespace
}  // namespace moeref
