#include <cstring>

#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_nvfp4";
constexpr std::int64_t kBlock = 16;

/// The numbers from which all scalars are made; f32, products from left to right. With activation
/// scales per token a1 and a2 are 1.
struct Factors {
  bool per_token = false;

  float a1(const ExpertScalars& s) const { return per_token ? 1.0f : max_input_scale_13(s, kName); }
  float a2(const ExpertScalars& s) const { return per_token ? 1.0f : max_input_scale_2(s, kName); }
  /// a1 * the global scale of `half` (0 = first: gate, or up if not gated) of each expert.
  std::vector<float> w13(const ExpertScalars& s, const LayerShape& shape, int half) const {
    const auto halves = static_cast<std::size_t>(shape.halves());
    std::vector<float> alphas;
    for (auto i = static_cast<std::size_t>(half); i < s.w13_scale.size(); i += halves) {
      alphas.push_back(a1(s) * s.w13_scale[i]);
    }
    return alphas;
  }
  std::vector<float> gate(const ExpertScalars& s, const LayerShape& shape) const {
    return w13(s, shape, 0);
  }
  std::vector<float> up(const ExpertScalars& s, const LayerShape& shape) const {
    return w13(s, shape, shape.halves() - 1);
  }
  std::vector<float> w2(const ExpertScalars& s) const {
    std::vector<float> alphas;
    for (const float scale : s.w2_scale) alphas.push_back(a2(s) * scale);
    return alphas;
  }
  /// The kernel multiplies the activation by it before it quantizes.
  std::vector<float> output1(const ExpertScalars& s, const LayerShape& shape) const {
    const float quant = 1.0f / a2(s);
    if (!shape.gated) return std::vector<float>(static_cast<std::size_t>(shape.experts), quant);
    std::vector<float> scales = up(s, shape);
    for (float& scale : scales) scale = quant * scale;
    return scales;
  }
  /// The kernel clamps accumulators before it scales them; empty: no limit.
  std::vector<float> limit(const ExpertScalars& s, const LayerShape& shape) const {
    bool any = false;
    std::vector<float> limits = gate(s, shape);
    for (std::size_t e = 0; e < limits.size() && e < s.limit.size(); ++e) {
      any = any || s.limit[e] != kNoLimit;
      limits[e] = s.limit[e] / limits[e];
    }
    return any && shape.gated ? limits : std::vector<float>{};
  }
};

/// Source: sglang modelopt_quant.py ModelOptNvFp4FusedMoEMethod, sglang@02962d78
/// flashinfer_trtllm.py align_fp4_moe_weights_for_flashinfer_trtllm.
std::vector<ScalarRecipe> scalars(const LayerShape& shape, const Factors& factors) {
  using S = const ExpertScalars&;
  using L = const LayerShape&;
  return {
      {"g1_alphas", "a1 * w13_scale_2[e][first]", true,
       [factors](S s, L layer) { return factors.gate(s, layer); }},
      {"g1_alphas_up", "a1 * w13_scale_2[e][up]", true,
       [factors](S s, L layer) { return factors.up(s, layer); }},
      {"g1_scale_c", shape.gated ? "(1 / a2) * g1_alphas_up[e]" : "1 / a2", true,
       [factors](S s, L layer) { return factors.output1(s, layer); }},
      {"g2_alphas", "a2 * w2_scale_2[e]", true, [factors](S s, L) { return factors.w2(s); }},
      {"w13_input_scale_quant", "1 / a1", false,
       [factors](S s, L) { return std::vector<float>{1.0f / factors.a1(s)}; }},
      {"w2_input_scale_quant", "1 / a2", false,
       [factors](S s, L) { return std::vector<float>{1.0f / factors.a2(s)}; }},
      {"gemm1_clamp_limit", "limit[e] / g1_alphas[e]", true,
       [factors](S s, L layer) { return factors.limit(s, layer); }},
  };
}

/// alpha and beta of the activation, passed only if they are not those of SiLU.
ScalarRecipe swiglu_parameter(std::string name, std::vector<float> ExpertScalars::*values) {
  ScalarRecipe array = trtllm::activation_array(std::move(name), values);
  array.values = [all = array.values](const ExpertScalars& s, const LayerShape& shape) {
    const auto differs = [](const std::vector<float>& numbers, float silu) {
      for (const float number : numbers) {
        if (number != silu) return true;
      }
      return false;
    };
    const bool passed = differs(s.alpha, 1.0f) || differs(s.beta, 0.0f);
    return passed ? all(s, shape) : std::vector<float>{};
  };
  return array;
}

/// Biases in units of the accumulators, since the kernel adds them before it scales: f32 bias /
/// factor. Source: flashinfer@fb28d7242 trtllmGen_bmm_export/KernelParams.h ptrBias.
class DivideBias final : public Recoder {
 public:
  /// `factors`: [experts][halves].
  DivideBias(Format from, std::vector<float> factors, std::int64_t halves, std::int64_t half_rows)
      : from_(from), factors_(std::move(factors)), halves_(halves), half_rows_(half_rows) {}

  std::string name() const override { return "divide_bias"; }
  int in_bits() const override { return info(from_).bits; }
  int out_bits() const override { return 32; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    const float divisor =
        factors_[static_cast<std::size_t>(at.expert * halves_ + at.row / half_rows_)];
    const auto width = static_cast<std::size_t>(in_bits()) / 8;
    for (std::size_t i = 0; i < in.size() / width; ++i) {
      std::uint32_t code = 0;
      std::memcpy(&code, in.data() + i * width, width);
      const float divided = decode(from_, code) / divisor;
      std::memcpy(out.data() + i * sizeof(float), &divided, sizeof(float));
    }
  }

 private:
  Format from_;
  std::vector<float> factors_;
  std::int64_t halves_;
  std::int64_t half_rows_;
};

Format bias_format(const TensorStack& stack) {
  for (const auto& [dtype, format] :
       {std::pair{DType::f32, Format::f32}, std::pair{DType::bf16, Format::bf16},
        std::pair{DType::f16, Format::f16}}) {
    if (stack.dtype == dtype) return format;
  }
  fail(stack.name, "is {}; divide_bias takes F32, BF16 or F16", info(stack.dtype).name);
}

Step divide_bias(Slot slot, const Factors& factors) {
  const auto make = [slot, factors](const LayerTensors& layer) {
    const TensorStack& stack = layer.at(slot);
    const ExpertScalars& scalars = layer.scalars;
    std::vector<float> divisors;
    if (slot == Slot::w2_bias) {
      divisors = factors.w2(scalars);
    } else {
      const std::vector<float> gate = factors.gate(scalars, layer.shape);
      const std::vector<float> up = factors.up(scalars, layer.shape);
      for (std::size_t e = 0; e < up.size(); ++e) {
        if (layer.shape.gated) divisors.push_back(gate[e]);
        divisors.push_back(up[e]);
      }
    }
    return std::make_shared<const DivideBias>(bias_format(stack), std::move(divisors), stack.halves,
                                              stack.half_rows);
  };
  return Recode{.name = "divide_bias",
                .summary = "f32 bias / (weight's global scale * activation scale)",
                .out_bits = 32,
                .dtype = DType::f32,
                .make = make};
}

/// output1_scale_gate_scalar = g1_alphas, output1_scale_scalar = g1_scale_c (up and the
/// quantization of GEMM2's input in one), output2_scale_scalar = g2_alphas.
void read_factors(KernelReading& kernel, const LayerShape& shape) {
  kernel.gate_factor = factor("g1_alphas");
  kernel.up_factor = kernel.gate_factor;
  if (shape.gated) {
    kernel.up_factor = [output1 = factor("g1_scale_c"), quant = factor("w2_input_scale_quant")](
                           const ScalarValues& values, std::int64_t e) {
      return output1(values, e) / quant(values, e);
    };
  }
  kernel.down_factor = factor("g2_alphas");
  kernel.input_scale_13 = reciprocal("w13_input_scale_quant");
  kernel.input_scale_2 = reciprocal("w2_input_scale_quant");
  kernel.bias_before_factor = true;
  // Both accumulators are clamped at gemm1_clamp_limit, then scaled.
  const auto clamped = [clamp = parameter("gemm1_clamp_limit", shape, kNoLimit)](
                           const char* alphas) -> ScalarReader {
    return [clamp, of = factor(alphas)](const ScalarValues& values, std::int64_t e) {
      const float limit = clamp(values, e);
      return limit == kNoLimit ? limit : limit * of(values, e);
    };
  };
  kernel.alpha = parameter("gemm1_alpha", shape, 1.0f);
  kernel.beta = parameter("gemm1_beta", shape, 0.0f);
  kernel.limit = clamped("g1_alphas");
  kernel.up_limit = clamped("g1_alphas_up");
  kernel.limit_is_folded = true;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const Factors factors{options.is("activation", "per_token")};
  const std::int64_t hidden = options.is("hidden", "to_256") ? 256 : 1;
  // 2 P rows in scale tiles of 128 rows; vLLM's later alignment.
  const trtllm::Padding padding =
      trtllm::pad_by_options(shape, options, shape.gated ? 64 : 128, hidden);
  Recipe recipe;
  recipe.tensors = trtllm::block_scaled_tensors(padding);
  if (shape.bias) {
    const Steps halves(padding.w13.begin(), padding.w13.end() - 1);  // without the columns
    recipe.tensors.push_back(tensor("w13_bias", Slot::w13_bias,
                                    Steps{divide_bias(Slot::w13_bias, factors)} + halves,
                                    trtllm::w13_rows()));
    recipe.tensors.push_back(
        tensor("w2_bias", Slot::w2_bias,
               Steps{divide_bias(Slot::w2_bias, factors), PadRows{.to = padding.hidden}},
               trtllm::w2_rows()));
  }
  recipe.scalars = scalars(shape, factors);
  recipe.scalars.push_back(swiglu_parameter("gemm1_alpha", &ExpertScalars::alpha));
  recipe.scalars.push_back(swiglu_parameter("gemm1_beta", &ExpertScalars::beta));
  recipe.kernel = trtllm::reading(shape, padding, Format::e2m1, Format::ue4m3, 1, kBlock);
  read_factors(recipe.kernel, shape);
  recipe.notes = {"the activation scales are the maxima over all experts of the layer",
                  "gemm1_clamp_limit is in units of gate's accumulator and also clamps up",
                  "biases are divided by weight scale * activation scale: the kernel adds them "
                  "before it scales"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, kName);
  numerics.gemm1.factor = numerics.gemm2.factor = SumFactor::expert;
  numerics.activation.output = Format::bf16;  // what the quantizer reads
  if (request.options.is("activation", "per_token")) {
    // GEMM1 writes bf16; activation and quantizer are a kernel of their own.
    numerics.gemm1.output = Format::bf16;
    numerics.input = numerics.intermediate = by("flashinfer_nvfp4_token");
    return numerics;
  }
  numerics.input = by("flashinfer_nvfp4", {}, "w13_input_scale_quant");
  numerics.intermediate = by("flashinfer_nvfp4", {}, "w2_input_scale_quant");
  return numerics;
}

}  // namespace

/// Source: vllm@01b817db flashinfer_fp4_moe.py prepare_static_weights_for_trtllm_fp4_moe,
/// vllm@00af4049 flashinfer_utils.py align_trtllm_fp4_moe_hidden_dim_for_fi.
const Backend flashinfer_trtllm_nvfp4{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "NVFP4 weights and activations, SM100",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {trtllm::loader_option(),
                trtllm::pad_option(),
                trtllm::align_option(),
                {"hidden", {"as_is", "to_256"}, "to_256: pads hidden to a multiple of 256 (vLLM)"},
                {"activation",
                 {"static", "per_token"},
                 "per_token: activation scales are made per token, the stored ones are not used"},
                {"swiglu",
                 {"as_model", "gate_limit_upstream"},
                 "gate_limit_upstream: up is clamped in units of gate, though its global scale "
                 "differs"}},
    .rules = {{"hidden", kBlock, "hidden=to_256", "scale blocks of 16 columns"},
              {"hidden", 128, "hidden=as_is",
               "the scale tiles have 128 rows of w2 and are not padded; hidden=to_256 pads"},
              {"padded intermediate", 64, "gated", trtllm::kAlignToScaleTiles},
              {"padded intermediate", 128, "not gated", trtllm::kAlignToScaleTiles}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("f32")},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
