#include "io/synth/plan.hpp"

#include <cmath>
#include <initializer_list>
#include <map>
#include <span>

#include "io/synth/quantized_weight.hpp"
#include "io/synth/unit_table.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kFp8Block = 128;
constexpr std::int64_t kMxBlock = 32;
constexpr std::int64_t kNvfp4Block = 16;

/// Spread of block scales inside a tensor and of one-per-tensor scales between experts, relative to
/// their mean.
constexpr double kScaleSpread = 0.35;
/// Standard deviation of router logits and of GEMM1 outputs for inputs of unit variance. With a
/// limit, values beyond it occur: 1.3 % of gates, 0.4 % of ups.
constexpr double kLogitSigma = 1.5;
constexpr double kGateSigma = 1.5;
constexpr double kUpSigma = 1.0;
constexpr double kGateSigmaOfLimit = 0.45;
constexpr double kUpSigmaOfLimit = 0.35;
constexpr double kDownSigma = 0.5;
constexpr double kBiasSigma = 0.25;
constexpr double kSelectionBiasSigma = 0.1;
/// Activations calibrated to a largest value of 8.
constexpr double kActivationMax = 8.0;
constexpr double kE4m3Max = 448.0;
constexpr double kE2m1Max = 6.0;

/// Standard deviations of the weights.
struct WeightSigmas {
  double gate;
  double up;
  double down;
};

WeightSigmas weight_sigmas(const SynthModel& model, const SynthSizes& sizes) {
  const double limit = model.limit;
  const double width = static_cast<double>(sizes.latent != 0 ? sizes.latent : sizes.hidden);
  // sqrt is correctly rounded by IEEE 754, so these are the same numbers everywhere.
  return {.gate = (limit != 0 ? kGateSigmaOfLimit * limit : kGateSigma) / std::sqrt(width),
          .up = (limit != 0 ? kUpSigmaOfLimit * limit : kUpSigma) / std::sqrt(width),
          .down = kDownSigma / std::sqrt(static_cast<double>(sizes.intermediate))};
}

/// One projection of an expert: weight [rows, cols] with standard deviation `sigma`.
struct Projection {
  std::string name;  ///< without ".weight"
  std::int64_t rows;
  std::int64_t cols;
  double sigma;
  std::string shares_global_with;  ///< NVFP4: the projection whose global scale this one repeats;
                                   ///< empty = its own
};

class Planner {
 public:
  Planner(SynthPlan& plan, const SynthOptions& options, std::int64_t hash_layers)
      : plan_(plan), sizes_(plan.sizes), options_(options), hash_layers_(hash_layers) {
    const WeightSigmas sigmas = weight_sigmas(*plan.model, sizes_);
    gate_sigma_ = sigmas.gate;
    up_sigma_ = sigmas.up;
    down_sigma_ = sigmas.down;
  }

  void add_all() {
    const bool tiny = plan_.scale == SynthScale::tiny;
    const Names names = stand_in_names();
    if (tiny) add_normal(names.embedding, {sizes_.vocabulary, sizes_.hidden}, 1.0);
    for (const std::int64_t layer : plan_.moe_layers) {
      add_norm(fmt::format("{}{}.{}", names.layers, layer, names.layer_norm));
      add_layer(layer);
    }
    add_norm(names.final_norm);
    if (tiny) add_normal(names.head, {sizes_.vocabulary, sizes_.hidden}, 0.1);
  }

 private:
  struct Names {
    std::string embedding, head, final_norm, layers, layer_norm;
  };

  Names stand_in_names() const {
    switch (plan_.model->family) {
      case SynthFamily::deepseek_v4:
        return {"embed.weight", "head.weight", "norm.weight", "layers.", "ffn_norm.weight"};
      case SynthFamily::nemotron_h:
        return {"backbone.embeddings.weight", "lm_head.weight", "backbone.norm_f.weight",
                "backbone.layers.", "norm.weight"};
      case SynthFamily::qwen3_vl_moe:
        return {"model.language_model.embed_tokens.weight", "lm_head.weight",
                "model.language_model.norm.weight", "model.language_model.layers.",
                "post_attention_layernorm.weight"};
      default:
        return {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.",
                "post_attention_layernorm.weight"};
    }
  }

  SynthTensor& add(std::string name, DType dtype, Shape shape,
                   std::vector<UnitTablePointer> tables) {
    SynthTensor tensor;
    tensor.name = tensor.stream = std::move(name);
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    tensor.tables = std::move(tables);
    plan_.tensors.push_back(std::move(tensor));
    return plan_.tensors.back();
  }

  SynthTensor& add_normal(std::string name, Shape shape, double sigma) {
    return add(std::move(name), DType::bf16, std::move(shape),
               {tables_.get(UnitKind::normal_bf16, 0.0, sigma)});
  }

  void add_norm(std::string name) {
    add(std::move(name), DType::bf16, {sizes_.hidden},
        {tables_.get(UnitKind::normal_bf16, 1.0, 0.1)});
  }

  SynthTensor& add_scale(std::string name, DType dtype, Shape shape, double center) {
    const UnitKind kind = dtype == DType::f32       ? UnitKind::scale_f32
                          : dtype == DType::bf16    ? UnitKind::scale_bf16
                          : dtype == DType::f8_e4m3 ? UnitKind::scale_e4m3
                                                    : UnitKind::scale_e8m0;
    return add(std::move(name), dtype, std::move(shape), {tables_.get(kind, center, kScaleSpread)});
  }

  /// With a quantizer: the tensors from number `first` on, which are the codes, the scales and the
  /// global scale (if there is one) of a weight, become what it makes of BF16 numbers [.., rows,
  /// cols] of the stream `name`; row r has the standard deviation `sigmas[r % sigmas.size()]`.
  /// Weights with the same `global` have one global scale.
  void quantize(std::size_t first, std::string name, Shape shape,
                std::initializer_list<double> sigmas, const std::string& global) {
    if (!plan_.quantizer) return;
    SynthTensor values;
    values.name = values.stream = std::move(name);
    values.dtype = DType::bf16;
    values.run = shape.back();
    values.shape = std::move(shape);
    for (const double sigma : sigmas) {
      values.tables.push_back(tables_.get(UnitKind::normal_bf16, 0.0, sigma));
    }
    std::shared_ptr<DrawnAmax>& amax = amax_[global];
    if (!amax) amax = std::make_shared<DrawnAmax>();
    amax->add(values);
    const QuantizedForm stored = *weight_form(plan_.model->storage);
    const auto weight =
        std::make_shared<const QuantizedWeight>(plan_.quantizer, stored, values, amax);
    for (const WeightPart part : {WeightPart::codes, WeightPart::scales, WeightPart::global}) {
      if (part == WeightPart::global && stored.global == GlobalScaleOf::none) break;
      plan_.tensors[first].weight = weight;
      plan_.tensors[first++].part = part;
    }
  }

  UnitTablePointer e4m3_codes() { return tables_.get(UnitKind::codes_e4m3, 0.0, kE4m3Sigma); }
  UnitTablePointer e2m1_codes() { return tables_.get(UnitKind::codes_e2m1, 0.0, kE2m1Sigma); }

  void add_layer(std::int64_t layer) {
    switch (plan_.model->family) {
      case SynthFamily::gpt_oss:
        return add_gpt_oss(fmt::format("model.layers.{}.mlp.", layer));
      case SynthFamily::deepseek_v3:
      case SynthFamily::qwen3_moe:
        return add_per_expert(fmt::format("model.layers.{}.mlp.", layer), layer);
      case SynthFamily::deepseek_v4:
        return add_per_expert(fmt::format("layers.{}.ffn.", layer), layer);
      case SynthFamily::qwen3_vl_moe:
        return add_qwen3_vl(fmt::format("model.language_model.layers.{}.mlp.", layer));
      case SynthFamily::nemotron_h:
        return add_per_expert(fmt::format("backbone.layers.{}.mixer.", layer), layer);
    }
  }

  void add_router(const std::string& prefix) {
    SynthTensor& router = add_normal(prefix + ".weight", {sizes_.experts, sizes_.hidden},
                                     kLogitSigma / std::sqrt(static_cast<double>(sizes_.hidden)));
    router.row_units = sizes_.hidden;
    router.tied_pairs = options_.router_ties;
  }

  /// The last two experts have the same bias: they tie for a token of zeros.
  void add_expert_bias(std::string name, DType dtype, double sigma) {
    const UnitKind kind = dtype == DType::f32 ? UnitKind::normal_f32 : UnitKind::normal_bf16;
    SynthTensor& bias =
        add(std::move(name), dtype, {sizes_.experts}, {tables_.get(kind, 0.0, sigma)});
    bias.tied_pairs = std::max<std::int64_t>(1, options_.router_ties);
  }

  void add_gpt_oss(const std::string& prefix) {
    const auto& [hidden, intermediate] = std::pair(sizes_.hidden, sizes_.intermediate);
    const std::int64_t experts = sizes_.experts;
    add_router(prefix + "router");
    add_expert_bias(prefix + "router.bias", DType::bf16, kBiasSigma);
    const std::string gate_up = prefix + "experts.gate_up_proj";
    const std::string down = prefix + "experts.down_proj";
    if (plan_.model->storage == SynthStorage::bf16) {
      add(gate_up, DType::bf16, {experts, hidden, 2 * intermediate},
          {tables_.get(UnitKind::normal_bf16, 0.0, gate_sigma_),
           tables_.get(UnitKind::normal_bf16, 0.0, up_sigma_)});  // columns alternate
      add_normal(down, {experts, intermediate, hidden}, down_sigma_);
    } else {
      const std::int64_t blocks = hidden / kMxBlock;
      const std::size_t first = plan_.tensors.size();
      add(gate_up + "_blocks", DType::u8, {experts, 2 * intermediate, blocks, kMxBlock / 2},
          {e2m1_codes()});
      add(gate_up + "_scales", DType::u8, {experts, 2 * intermediate, blocks},
          {tables_.get(UnitKind::scale_e8m0, gate_sigma_ / kE2m1Sigma, kScaleSpread),
           tables_.get(UnitKind::scale_e8m0, up_sigma_ / kE2m1Sigma, kScaleSpread)})
          .run = blocks;  // rows alternate
      add(down + "_blocks", DType::u8, {experts, hidden, intermediate / kMxBlock, kMxBlock / 2},
          {e2m1_codes()});
      add(down + "_scales", DType::u8, {experts, hidden, intermediate / kMxBlock},
          {tables_.get(UnitKind::scale_e8m0, down_sigma_ / kE2m1Sigma, kScaleSpread)});
      quantize(first, gate_up, {experts, 2 * intermediate, hidden}, {gate_sigma_, up_sigma_},
               gate_up);
      quantize(first + 2, down, {experts, hidden, intermediate}, {down_sigma_}, down);
    }
    add(gate_up + "_bias", DType::bf16, {experts, 2 * intermediate},
        {tables_.get(UnitKind::normal_bf16, 0.0, kBiasSigma),
         tables_.get(UnitKind::normal_bf16, 0.0, 2 * kBiasSigma)});
    add_normal(down + "_bias", {experts, hidden}, kBiasSigma);
  }

  void add_qwen3_vl(const std::string& prefix) {
    add_router(prefix + "gate");
    add(prefix + "experts.gate_up_proj", DType::bf16,
        {sizes_.experts, sizes_.hidden, 2 * sizes_.intermediate},
        {tables_.get(UnitKind::normal_bf16, 0.0, gate_sigma_),
         tables_.get(UnitKind::normal_bf16, 0.0, up_sigma_)})
        .run = sizes_.intermediate;  // halves of each row
    add_normal(prefix + "experts.down_proj", {sizes_.experts, sizes_.intermediate, sizes_.hidden},
               down_sigma_);
  }

  void add_per_expert(const std::string& prefix, std::int64_t layer) {
    const SynthFamily family = plan_.model->family;
    add_router(prefix + "gate");
    if (family == SynthFamily::deepseek_v3 || family == SynthFamily::nemotron_h) {
      add_expert_bias(prefix + "gate.e_score_correction_bias", DType::f32, kSelectionBiasSigma);
    } else if (family == SynthFamily::deepseek_v4 && layer < hash_layers_) {
      add(prefix + "gate.tid2eid", DType::i64, {sizes_.vocabulary, sizes_.top_k}, {}).expert_ids =
          sizes_.experts;
    } else if (family == SynthFamily::deepseek_v4) {
      add_expert_bias(prefix + "gate.bias", DType::f32, kSelectionBiasSigma);
    }
    const std::int64_t width = sizes_.latent != 0 ? sizes_.latent : sizes_.hidden;
    for (std::int64_t expert = 0; expert < sizes_.experts; ++expert) {
      add_expert(fmt::format("{}experts.{}.", prefix, expert), width, sizes_.intermediate, false);
    }
    if (sizes_.shared_intermediate != 0) {
      add_expert(prefix + "shared_experts.", sizes_.hidden, sizes_.shared_intermediate, true);
    }
    if (sizes_.latent != 0) {
      add_normal(prefix + "fc1_latent_proj.weight", {sizes_.latent, sizes_.hidden},
                 1.0 / std::sqrt(static_cast<double>(sizes_.hidden)));
      add_normal(prefix + "fc2_latent_proj.weight", {sizes_.hidden, sizes_.latent},
                 1.0 / std::sqrt(static_cast<double>(sizes_.latent)));
    }
  }

  void add_expert(const std::string& prefix, std::int64_t width, std::int64_t intermediate,
                  bool shared) {
    const bool deepseek_names = plan_.model->family == SynthFamily::deepseek_v4;
    const std::string gate = prefix + (deepseek_names ? "w1" : "gate_proj");
    const std::string up = prefix + (deepseek_names ? "w3" : "up_proj");
    const std::string down = prefix + (deepseek_names ? "w2" : "down_proj");
    const bool gated = is_gated(plan_.model->family);
    const std::optional<QuantizedForm> form = weight_form(plan_.model->storage);
    const bool one_global =
        gated && form && form->global != GlobalScaleOf::none && !options_.split_global_scales;
    if (gated) add_projection({gate, intermediate, width, gate_sigma_, ""}, shared);
    add_projection({up, intermediate, width, up_sigma_, one_global ? gate : ""}, shared);
    add_projection({down, width, intermediate, down_sigma_, ""}, shared);
  }

  void add_projection(const Projection& projection, bool shared) {
    const std::size_t first = plan_.tensors.size();
    add_stored(projection, shared);
    const bool as_routed = !shared || plan_.model->storage != SynthStorage::mxfp4;
    if (as_routed) {
      const std::string& lead = projection.shares_global_with;
      quantize(first, projection.name + ".weight", {projection.rows, projection.cols},
               {projection.sigma}, lead.empty() ? projection.name : lead);
    }
  }

  /// Codes, scales, global scale; then the scale of activations.
  void add_stored(const Projection& projection, bool shared) {
    switch (plan_.model->storage) {
      case SynthStorage::bf16:
        add_normal(projection.name + ".weight", {projection.rows, projection.cols},
                   projection.sigma);
        return;
      case SynthStorage::mxfp4:
        return shared ? add_fp8_block(projection, ".scale", DType::f8_e8m0)
                      : add_v4_mxfp4(projection);
      case SynthStorage::fp8_block_f32:
        return add_fp8_block(projection, ".weight_scale_inv", DType::f32);
      case SynthStorage::fp8_block_bf16:
        return add_fp8_block(projection, ".weight_scale_inv", DType::bf16);
      case SynthStorage::fp8_channel:
        add_fp8_codes(projection);
        add_scale(projection.name + ".weight_scale", DType::bf16, {projection.rows, 1},
                  projection.sigma / kE4m3Sigma);
        return;
      case SynthStorage::fp8_tensor:
        add_fp8_codes(projection);
        add_scale(projection.name + ".weight_scale", DType::f32, {}, projection.sigma / kE4m3Sigma);
        add_scale(projection.name + ".input_scale", DType::f32, {}, kActivationMax / kE4m3Max);
        return;
      case SynthStorage::modelopt_nvfp4:
        return add_modelopt_nvfp4(projection);
      case SynthStorage::ct_nvfp4:
        return add_ct_nvfp4(projection);
    }
  }

  void add_fp8_codes(const Projection& projection) {
    add(projection.name + ".weight", DType::f8_e4m3, {projection.rows, projection.cols},
        {e4m3_codes()});
  }

  void add_fp8_block(const Projection& projection, std::string_view suffix, DType scale_dtype) {
    add_fp8_codes(projection);
    add_scale(fmt::format("{}{}", projection.name, suffix), scale_dtype,
              {ceil_div(projection.rows, kFp8Block), ceil_div(projection.cols, kFp8Block)},
              projection.sigma / kE4m3Sigma);
  }

  void add_v4_mxfp4(const Projection& projection) {
    add(projection.name + ".weight", DType::i8, {projection.rows, projection.cols / 2},
        {e2m1_codes()});
    add_scale(projection.name + ".scale", DType::f8_e8m0,
              {projection.rows, projection.cols / kMxBlock}, projection.sigma / kE2m1Sigma);
  }

  /// Block scales around `mean`; codes * block scale * global has the standard deviation `sigma`.
  /// With a global scale in common the difference between gate and up lies in the block scales.
  struct Nvfp4Scales {
    double block_mean;
    double global;
  };
  Nvfp4Scales nvfp4_scales(const Projection& projection) const {
    const double lead = projection.shares_global_with.empty() ? projection.sigma : gate_sigma_;
    const double global = lead / (kE2m1Sigma * kNvfp4ScaleMean);
    return {projection.sigma / (kE2m1Sigma * global), global};
  }

  void add_modelopt_nvfp4(const Projection& projection) {
    const Nvfp4Scales scales = nvfp4_scales(projection);
    const std::string& name = projection.name;
    add(name + ".weight", DType::u8, {projection.rows, projection.cols / 2}, {e2m1_codes()});
    add_scale(name + ".weight_scale", DType::f8_e4m3,
              {projection.rows, projection.cols / kNvfp4Block}, scales.block_mean);
    share(add_scale(name + ".weight_scale_2", DType::f32, {}, scales.global), projection,
          ".weight_scale_2");
    share(add_scale(name + ".input_scale", DType::f32, {}, kActivationMax / (kE4m3Max * kE2m1Max)),
          projection, ".input_scale");
  }

  void add_ct_nvfp4(const Projection& projection) {
    const Nvfp4Scales scales = nvfp4_scales(projection);
    const std::string& name = projection.name;
    add(name + ".weight_packed", DType::u8, {projection.rows, projection.cols / 2}, {e2m1_codes()});
    add_scale(name + ".weight_scale", DType::f8_e4m3,
              {projection.rows, projection.cols / kNvfp4Block}, scales.block_mean);
    share(add_scale(name + ".weight_global_scale", DType::f32, {1}, 1.0 / scales.global),
          projection, ".weight_global_scale");
    share(add_scale(name + ".input_global_scale", DType::f32, {1},
                    kE4m3Max * kE2m1Max / kActivationMax),
          projection, ".input_global_scale");
  }

  static void share(SynthTensor& scale, const Projection& projection, std::string_view suffix) {
    if (projection.shares_global_with.empty()) return;
    scale.stream = fmt::format("{}{}", projection.shares_global_with, suffix);
  }

  SynthPlan& plan_;
  const SynthSizes& sizes_;
  const SynthOptions& options_;
  std::int64_t hash_layers_;
  UnitTables tables_;
  std::map<std::string, std::shared_ptr<DrawnAmax>> amax_;  ///< by the name of the global scale
  double gate_sigma_ = 0;
  double up_sigma_ = 0;
  double down_sigma_ = 0;
};

}  // namespace

std::optional<WeightTarget> weight_target(const SynthModel& model, const SynthSizes& sizes) {
  const std::optional<QuantizedForm> stored = weight_form(model.storage);
  if (!stored) return std::nullopt;
  const WeightSigmas sigmas = weight_sigmas(model, sizes);
  UnitTables tables;
  WeightTarget target{model.name, *stored, {}};
  for (const double sigma : {sigmas.gate, sigmas.up, sigmas.down}) {
    target.values.push_back(tables.get(UnitKind::normal_bf16, 0.0, sigma));
  }
  return target;
}

void add_synth_tensors(SynthPlan& plan, const SynthOptions& options, std::int64_t hash_layers) {
  Planner(plan, options, hash_layers).add_all();
}

}  // namespace moeref
