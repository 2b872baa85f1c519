#include "io/synth/geometry.hpp"

#include <array>
#include <string>

#include "quant/error.hpp"

namespace moeref {
namespace {

using Family = SynthFamily;
using Storage = SynthStorage;

constexpr std::int64_t kNanoLayers = kNemotronNanoPattern.size();

// Released sizes: config.json of openai/gpt-oss-20b and -120b, deepseek-ai/DeepSeek-V3,
// Qwen/Qwen3-30B-A3B and -235B-A22B, Qwen/Qwen3-VL-235B-A22B-Instruct,
// nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B and -Super-120B-A12B; DeepSeek-V4-Flash: model description,
// its vocabulary is taken to be DeepSeek-V3's.
//                             hidden inter shared latent experts k groups kept first layers
//                             vocabulary
constexpr SynthSizes kGptOss20b{2880, 2880, 0, 0, 32, 4, 1, 1, 0, 24, 201088};
constexpr SynthSizes kGptOss120b{2880, 2880, 0, 0, 128, 4, 1, 1, 0, 36, 201088};
constexpr SynthSizes kDeepseekV3{7168, 2048, 2048, 0, 256, 8, 8, 4, 3, 61, 129280};
constexpr SynthSizes kDeepseekV4{4096, 2048, 2048, 0, 256, 6, 1, 1, 0, 43, 129280};
constexpr SynthSizes kQwen30b{2048, 768, 0, 0, 128, 8, 1, 1, 0, 48, 151936};
constexpr SynthSizes kQwen235b{4096, 1536, 0, 0, 128, 8, 1, 1, 0, 94, 151936};
constexpr SynthSizes kNano{2688, 1856, 3712, 0, 128, 6, 1, 1, 1, kNanoLayers, 131072};
constexpr SynthSizes kSuper{4096, 2688, 5376, 1024, 512, 22, 1, 1, 1, kNanoLayers, 131072};

constexpr std::array<SynthModel, 17> kModels{{
    {"gpt-oss-20b",
     "GPT-OSS 20B: MXFP4, gate and up rows interleaved, biases",
     Family::gpt_oss,
     Storage::mxfp4,
     7.0f,
     0.0f,
     kGptOss20b,
     {96, 160, 0, 0, 6, 3, 1, 1, 0, 24, 32}},
    {"gpt-oss-120b",
     "GPT-OSS 120B: as 20B with 128 experts",
     Family::gpt_oss,
     Storage::mxfp4,
     7.0f,
     0.0f,
     kGptOss120b,
     {160, 96, 0, 0, 11, 4, 1, 1, 0, 36, 32}},
    {"gpt-oss-20b-bf16",
     "GPT-OSS 20B unquantized: [E, H, 2I] transposed, columns interleaved",
     Family::gpt_oss,
     Storage::bf16,
     7.0f,
     0.0f,
     kGptOss20b,
     {72, 56, 0, 0, 6, 3, 1, 1, 0, 24, 32}},
    {"deepseek-v3",
     "DeepSeek-V3 / R1: FP8, F32 scales of 128 x 128 blocks, grouped sigmoid routing",
     Family::deepseek_v3,
     Storage::fp8_block_f32,
     0.0f,
     2.5f,
     kDeepseekV3,
     {200, 136, 136, 0, 12, 4, 4, 2, 1, 61, 32}},
    {"deepseek-v4",
     "DeepSeek-V4-Flash: MXFP4 experts, FP8 shared expert with E8M0 block scales",
     Family::deepseek_v4,
     Storage::mxfp4,
     10.0f,
     1.5f,
     kDeepseekV4,
     {160, 96, 96, 0, 7, 3, 1, 1, 0, 43, 32}},
    {"qwen3-30b",
     "Qwen3-30B-A3B FP8: BF16 scales of 128 x 128 blocks",
     Family::qwen3_moe,
     Storage::fp8_block_bf16,
     0.0f,
     0.0f,
     kQwen30b,
     {160, 136, 0, 0, 10, 3, 1, 1, 0, 48, 32}},
    {"qwen3-235b",
     "Qwen3-235B-A22B FP8: BF16 scales of 128 x 128 blocks",
     Family::qwen3_moe,
     Storage::fp8_block_bf16,
     0.0f,
     0.0f,
     kQwen235b,
     {264, 72, 0, 0, 9, 3, 1, 1, 0, 94, 32}},
    {"qwen3-235b-fp8-channel",
     "Qwen3-235B-A22B, compressed-tensors FP8: BF16 scale a row",
     Family::qwen3_moe,
     Storage::fp8_channel,
     0.0f,
     0.0f,
     kQwen235b,
     {152, 88, 0, 0, 9, 3, 1, 1, 0, 94, 32}},
    {"qwen3-235b-nvfp4",
     "Qwen3-235B-A22B, compressed-tensors NVFP4: dividing global scales",
     Family::qwen3_moe,
     Storage::ct_nvfp4,
     0.0f,
     0.0f,
     kQwen235b,
     {112, 80, 0, 0, 9, 3, 1, 1, 0, 94, 32}},
    {"qwen3-235b-bf16",
     "Qwen3-235B-A22B unquantized",
     Family::qwen3_moe,
     Storage::bf16,
     0.0f,
     0.0f,
     kQwen235b,
     {104, 56, 0, 0, 9, 3, 1, 1, 0, 94, 32}},
    {"qwen3-vl-moe-bf16",
     "Qwen3-VL-235B-A22B unquantized: [E, H, 2I] transposed, halves gate and up",
     Family::qwen3_vl_moe,
     Storage::bf16,
     0.0f,
     0.0f,
     kQwen235b,
     {104, 52, 0, 0, 9, 3, 1, 1, 0, 94, 32}},
    {"nemotron-h-fp8",
     "Nemotron-3-Nano, ModelOpt FP8: one scale a tensor, relu2, no gate",
     Family::nemotron_h,
     Storage::fp8_tensor,
     0.0f,
     2.5f,
     kNano,
     {136, 120, 200, 0, 10, 3, 1, 1, 1, kNanoLayers, 32}},
    {"nemotron-h-nvfp4",
     "Nemotron-3-Nano, ModelOpt NVFP4: multiplying global scales, relu2, no gate",
     Family::nemotron_h,
     Storage::modelopt_nvfp4,
     0.0f,
     2.5f,
     kNano,
     {144, 112, 176, 0, 10, 3, 1, 1, 1, kNanoLayers, 32}},
    {"nemotron-h-bf16",
     "Nemotron-3-Nano unquantized",
     Family::nemotron_h,
     Storage::bf16,
     0.0f,
     2.5f,
     kNano,
     {136, 120, 200, 0, 10, 3, 1, 1, 1, kNanoLayers, 32}},
    {"nemotron-h-latent-fp8",
     "Nemotron-3-Super, ModelOpt FP8: experts behind latent projections",
     Family::nemotron_h,
     Storage::fp8_tensor,
     0.0f,
     5.0f,
     kSuper,
     {168, 120, 200, 72, 18, 5, 1, 1, 1, kNanoLayers, 32}},
    {"nemotron-h-latent-nvfp4",
     "Nemotron-3-Super, ModelOpt NVFP4: experts behind latent projections",
     Family::nemotron_h,
     Storage::modelopt_nvfp4,
     0.0f,
     5.0f,
     kSuper,
     {176, 112, 208, 80, 18, 5, 1, 1, 1, kNanoLayers, 32}},
    {"nemotron-h-latent-bf16",
     "Nemotron-3-Super unquantized: experts behind latent projections",
     Family::nemotron_h,
     Storage::bf16,
     0.0f,
     5.0f,
     kSuper,
     {168, 120, 200, 72, 18, 5, 1, 1, 1, kNanoLayers, 32}},
}};

}  // namespace

std::span<const SynthModel> synth_models() { return kModels; }

const SynthModel& find_synth_model(std::string_view name) {
  std::string known;
  for (const SynthModel& model : kModels) {
    if (model.name == name) return model;
    known += known.empty() ? "" : ", ";
    known += model.name;
  }
  fail("synth", "unknown model '{}'; known: {}", name, known);
}

bool is_gated(SynthFamily family) { return family != SynthFamily::nemotron_h; }

std::optional<QuantizedForm> weight_form(SynthStorage storage) {
  const auto fp8 = [](Format scales, std::int64_t rows, std::int64_t cols) {
    return QuantizedForm{
        .codes = Format::e4m3, .scales = scales, .block_rows = rows, .block_cols = cols};
  };
  const auto nvfp4 = [](GlobalScaleRule rule) {
    return QuantizedForm{.codes = Format::e2m1,
                         .scales = Format::ue4m3,
                         .block_rows = 1,
                         .block_cols = 16,
                         .global = GlobalScaleOf::tensor,
                         .global_rule = rule};
  };
  switch (storage) {
    case Storage::bf16:
      return std::nullopt;
    case Storage::mxfp4:
      return QuantizedForm{
          .codes = Format::e2m1, .scales = Format::e8m0, .block_rows = 1, .block_cols = 32};
    case Storage::fp8_block_f32:
      return fp8(Format::f32, 128, 128);
    case Storage::fp8_block_bf16:
      return fp8(Format::bf16, 128, 128);
    case Storage::fp8_channel:
      return fp8(Format::bf16, 1, 0);
    case Storage::fp8_tensor:
      return fp8(Format::f32, 0, 0);
    case Storage::modelopt_nvfp4:
      return nvfp4(GlobalScaleRule::multiply);
    case Storage::ct_nvfp4:
      return nvfp4(GlobalScaleRule::divide);
  }
  return std::nullopt;
}

}  // namespace moeref
