#include "io/synth/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iterator>

#include "quant/error.hpp"

namespace moeref {
namespace {

/// The layers to write. Models that have experts everywhere start at 0; NemotronH takes the next E
/// layers of its pattern.
std::vector<std::int64_t> choose_layers(const SynthModel& model, const SynthSizes& sizes,
                                        const SynthOptions& options) {
  const std::int64_t first = options.first_layer.value_or(sizes.first_layer);
  const bool experts_everywhere =
      model.family == SynthFamily::gpt_oss || model.family == SynthFamily::deepseek_v4;
  if (options.layers < 1) fail("--layers", "is {}; at least one layer is needed", options.layers);
  if (first < 0) fail("--layer", "is {}; the first layer is 0", first);
  if (experts_everywhere && first != 0) {
    fail("--layer",
         "is {}, but every layer of {} has experts, so the first written is 0; write {} "
         "layers (--layers) to get that one",
         first, model.name, first + 1);
  }
  std::vector<std::int64_t> layers;
  for (std::int64_t layer = first; layer < sizes.layers && std::ssize(layers) < options.layers;
       ++layer) {
    const bool moe = model.family != SynthFamily::nemotron_h ||
                     kNemotronNanoPattern[static_cast<std::size_t>(layer)] == 'E';
    if (moe) layers.push_back(layer);
  }
  if (std::ssize(layers) < options.layers) {
    fail("--layers", "{} has {} layers with experts from layer {} on, {} are asked for", model.name,
         layers.size(), first, options.layers);
  }
  return layers;
}

void check_sizes(const SynthModel& model, const SynthSizes& sizes, const SynthOptions& options) {
  if (sizes.experts < 2 || sizes.experts % sizes.groups != 0 ||
      sizes.experts / sizes.groups * sizes.kept_groups < sizes.top_k ||
      (sizes.groups > 1 && sizes.experts / sizes.groups < 2)) {
    fail("--experts",
         "is {}; {} needs a multiple of its {} groups with at least {} experts in {} of them",
         sizes.experts, model.name, sizes.groups, sizes.top_k, sizes.kept_groups);
  }
  if (sizes.vocabulary < 1) fail("--vocabulary", "is {}; at least 1 is needed", sizes.vocabulary);
  if (options.router_ties < 0 || 2 * options.router_ties > sizes.experts) {
    fail("--router-ties", "is {}; {} experts make at most {} pairs", options.router_ties,
         sizes.experts, sizes.experts / 2);
  }
  if (options.split_global_scales && model.storage != SynthStorage::ct_nvfp4) {
    fail("--split-global-scales",
         "{} has no gate and up with NVFP4 global scales; only qwen3-235b-nvfp4 has", model.name);
  }
}

std::int64_t choose_hash_layers(const SynthModel& model, const SynthOptions& options) {
  if (model.family != SynthFamily::deepseek_v4) {
    if (options.hash_layers)
      fail("--hash-layers", "{} routes no layer by token id; only deepseek-v4 does", model.name);
    return 0;
  }
  const std::int64_t count = options.hash_layers.value_or(options.layers > 1 ? 1 : 0);
  if (count < 0 || count > options.layers) {
    fail("--hash-layers", "is {}; {} layers are written", count, options.layers);
  }
  return count;
}

std::shared_ptr<const WeightQuantizer> choose_quantizer(const SynthModel& model,
                                                        const SynthSizes& sizes,
                                                        const SynthOptions& options) {
  if (!options.quantizer) {
    if (!options.quantizer_options.empty()) {
      fail("--quantizer-option", "belongs to a quantizer; name it with --quantizer");
    }
    return nullptr;
  }
  const std::optional<WeightTarget> target = weight_target(model, sizes);
  if (!target) {
    std::vector<std::string_view> quantized;
    for (const SynthModel& other : synth_models()) {
      if (weight_form(other.storage)) quantized.push_back(other.name);
    }
    fail("--quantizer",
         "{} has bf16 weights, {} has nothing to quantize; models with quantized ones: {}",
         model.name, *options.quantizer, fmt::join(quantized, ", "));
  }
  return std::make_shared<WeightQuantizer>(
      choose_quantizer(*target, *options.quantizer, options.quantizer_options));
}

}  // namespace

std::uint64_t SynthPlan::total_bytes() const {
  std::uint64_t total = 0;
  for (const SynthTensor& tensor : tensors) total += tensor.byte_count();
  return total;
}

SynthPlan plan_checkpoint(const SynthOptions& options) {
  const SynthModel& model = find_synth_model(options.model);
  SynthPlan plan;
  plan.model = &model;
  plan.scale = options.scale;
  plan.seed = options.seed;
  plan.sizes = options.scale == SynthScale::tiny ? model.tiny : model.full;
  if (options.experts) plan.sizes.experts = *options.experts;
  if (options.vocabulary) plan.sizes.vocabulary = *options.vocabulary;
  check_sizes(model, plan.sizes, options);
  plan.quantizer = choose_quantizer(model, plan.sizes, options);
  plan.moe_layers = choose_layers(model, plan.sizes, options);
  const std::int64_t hash_layers = choose_hash_layers(model, options);
  add_synth_tensors(plan, options, hash_layers);
  plan.config_json = synth_config_json(plan, hash_layers);
  plan.hf_quant_config_json = synth_hf_quant_config_json(plan);
  return plan;
}

}  // namespace moeref
