#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "io/synth/plan.hpp"

namespace moeref {
namespace {

using Json = nlohmann::json;

/// Attention and other sizes outside the MoE layer: they only make the config whole.
struct SideSizes {
  std::int64_t heads, key_value_heads, head_dim, dense_intermediate;
};

SideSizes side_sizes(const SynthPlan& plan) {
  if (plan.scale == SynthScale::tiny) return {2, 1, 16, 64};
  switch (plan.model->family) {
    case SynthFamily::gpt_oss:
      return {64, 8, 64, 0};
    case SynthFamily::deepseek_v3:
      return {128, 128, 192, 18432};
    case SynthFamily::deepseek_v4:
      return {64, 1, 512, 0};
    case SynthFamily::nemotron_h:
      return {32, 2, 128, plan.sizes.intermediate};
    default:
      return plan.sizes.hidden == 2048 ? SideSizes{32, 4, 128, 6144} : SideSizes{64, 4, 128, 12288};
  }
}

std::int64_t layer_count(const SynthPlan& plan) { return plan.moe_layers.back() + 1; }

/// `form` with {} for the layer, for each layer written.
std::vector<std::string> for_layers(const SynthPlan& plan, std::string_view form) {
  std::vector<std::string> names;
  for (const std::int64_t layer : plan.moe_layers) {
    names.push_back(fmt::format(fmt::runtime(form), layer));
  }
  return names;
}

Json common_config(const SynthPlan& plan) {
  const SideSizes side = side_sizes(plan);
  return {{"attention_bias", false},
          {"attention_dropout", 0.0},
          {"hidden_act", "silu"},
          {"hidden_size", plan.sizes.hidden},
          {"initializer_range", 0.02},
          {"num_attention_heads", side.heads},
          {"num_experts_per_tok", plan.sizes.top_k},
          {"num_hidden_layers", layer_count(plan)},
          {"num_key_value_heads", side.key_value_heads},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"},
          {"use_cache", true},
          {"vocab_size", plan.sizes.vocabulary}};
}

Json gpt_oss_config(const SynthPlan& plan) {
  Json config = common_config(plan);
  std::vector<std::string> kinds;
  for (std::int64_t layer = 0; layer < layer_count(plan); ++layer) {
    kinds.push_back(layer % 2 == 0 ? "sliding_attention" : "full_attention");
  }
  config.update({{"architectures", {"GptOssForCausalLM"}},
                 {"attention_bias", true},
                 {"eos_token_id", std::min<std::int64_t>(200002, plan.sizes.vocabulary - 1)},
                 {"experts_per_token", plan.sizes.top_k},
                 {"head_dim", side_sizes(plan).head_dim},
                 {"initial_context_length", 4096},
                 {"intermediate_size", plan.sizes.intermediate},
                 {"layer_types", kinds},
                 {"max_position_embeddings", 131072},
                 {"model_type", "gpt_oss"},
                 {"num_local_experts", plan.sizes.experts},
                 {"output_router_logits", false},
                 {"pad_token_id", std::min<std::int64_t>(199999, plan.sizes.vocabulary - 1)},
                 {"rms_norm_eps", 1e-5},
                 {"rope_scaling",
                  {{"beta_fast", 32.0},
                   {"beta_slow", 1.0},
                   {"factor", 32.0},
                   {"original_max_position_embeddings", 4096},
                   {"rope_type", "yarn"},
                   {"truncate", false}}},
                 {"rope_theta", 150000},
                 {"router_aux_loss_coef", 0.9},
                 {"sliding_window", 128},
                 {"swiglu_limit", plan.model->limit}});
  if (plan.model->storage == SynthStorage::mxfp4) {
    config["quantization_config"] = {{"modules_to_not_convert",
                                      {"model.layers.*.self_attn", "model.layers.*.mlp.router",
                                       "model.embed_tokens", "lm_head"}},
                                     {"quant_method", "mxfp4"}};
  }
  return config;
}

Json fp8_block_config() {
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"quant_method", "fp8"},
          {"weight_block_size", {128, 128}}};
}

/// What DeepSeek-V3 and -V4 have in common.
Json deepseek_config(const SynthPlan& plan) {
  const bool tiny = plan.scale == SynthScale::tiny;
  Json config = common_config(plan);
  config.update({{"bos_token_id", 0},
                 {"eos_token_id", 1},
                 {"moe_intermediate_size", plan.sizes.intermediate},
                 {"n_routed_experts", plan.sizes.experts},
                 {"n_shared_experts", 1},
                 {"norm_topk_prob", true},
                 {"num_nextn_predict_layers", 0},
                 {"q_lora_rank", tiny ? 32 : 1536},
                 {"qk_rope_head_dim", tiny ? 8 : 64},
                 {"quantization_config", fp8_block_config()},
                 {"rms_norm_eps", 1e-6},
                 {"rope_theta", 10000},
                 {"routed_scaling_factor", plan.model->routed_scaling},
                 {"topk_method", "noaux_tc"}});
  return config;
}

Json deepseek_v3_config(const SynthPlan& plan) {
  const bool tiny = plan.scale == SynthScale::tiny;
  Json config = deepseek_config(plan);
  config.update({{"architectures", {"DeepseekV3ForCausalLM"}},
                 {"ep_size", 1},
                 {"first_k_dense_replace", plan.moe_layers.front()},
                 {"intermediate_size", side_sizes(plan).dense_intermediate},
                 {"kv_lora_rank", tiny ? 16 : 512},
                 {"max_position_embeddings", 163840},
                 {"model_type", "deepseek_v3"},
                 {"moe_layer_freq", 1},
                 {"n_group", plan.sizes.groups},
                 {"qk_nope_head_dim", tiny ? 16 : 128},
                 {"rope_scaling",
                  {{"beta_fast", 32},
                   {"beta_slow", 1},
                   {"factor", 40},
                   {"mscale", 1.0},
                   {"mscale_all_dim", 1.0},
                   {"original_max_position_embeddings", 4096},
                   {"type", "yarn"}}},
                 {"scoring_func", "sigmoid"},
                 {"topk_group", plan.sizes.kept_groups},
                 {"v_head_dim", tiny ? 16 : 128}});
  return config;
}

Json deepseek_v4_config(const SynthPlan& plan, std::int64_t hash_layers) {
  const bool tiny = plan.scale == SynthScale::tiny;
  Json config = deepseek_config(plan);
  config["quantization_config"]["scale_fmt"] = "ue8m0";
  config.update(
      {{"architectures", {"DeepseekV4ForCausalLM"}},
       {"compress_ratios", std::vector<int>(static_cast<std::size_t>(layer_count(plan)), 0)},
       {"compress_rope_theta", 160000},
       {"expert_dtype", "fp4"},
       {"hc_eps", 1e-6},
       {"hc_mult", 4},
       {"hc_sinkhorn_iters", 20},
       {"head_dim", side_sizes(plan).head_dim},
       {"index_head_dim", tiny ? 16 : 128},
       {"index_n_heads", tiny ? 2 : 64},
       {"index_topk", tiny ? 16 : 512},
       {"max_position_embeddings", 1048576},
       {"model_type", "deepseek_v4"},
       {"num_hash_layers", hash_layers},
       {"o_groups", tiny ? 1 : 8},
       {"o_lora_rank", tiny ? 16 : 1024},
       {"rope_scaling",
        {{"beta_fast", 32},
         {"beta_slow", 1},
         {"factor", 16},
         {"original_max_position_embeddings", 65536},
         {"type", "yarn"}}},
       {"scoring_func", "sqrtsoftplus"},
       {"sliding_window", 128},
       {"swiglu_limit", plan.model->limit}});
  return config;
}

/// One entry of `config_groups` as compressed-tensors writes it.
Json compressed_tensors_arguments(int bits, const Json& dynamic, const Json& group_size,
                                  const Json& observer, std::string_view strategy) {
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", dynamic},
          {"group_size", group_size},
          {"num_bits", bits},
          {"observer", observer},
          {"observer_kwargs", Json::object()},
          {"strategy", strategy},
          {"symmetric", true},
          {"type", "float"}};
}

Json compressed_tensors_config(const SynthPlan& plan) {
  const bool nvfp4 = plan.model->storage == SynthStorage::ct_nvfp4;
  const std::string_view format = nvfp4 ? "nvfp4-pack-quantized" : "float-quantized";
  std::vector<std::string> ignore{"lm_head"};
  std::ranges::move(for_layers(plan, "model.layers.{}.mlp.gate"), std::back_inserter(ignore));
  Json group = {{"format", format}, {"output_activations", nullptr}, {"targets", {"Linear"}}};
  if (nvfp4) {
    group["input_activations"] =
        compressed_tensors_arguments(4, "local", 16, "minmax", "tensor_group");
    group["weights"] = compressed_tensors_arguments(4, false, 16, "minmax", "tensor_group");
  } else {
    group["input_activations"] = compressed_tensors_arguments(8, true, nullptr, nullptr, "token");
    group["weights"] = compressed_tensors_arguments(8, false, nullptr, "minmax", "channel");
  }
  return {{"config_groups", {{"group_0", group}}},
          {"format", format},
          {"global_compression_ratio", nullptr},
          {"ignore", ignore},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

Json qwen3_text_config(const SynthPlan& plan) {
  Json config = common_config(plan);
  std::vector<std::int64_t> dense;
  for (std::int64_t layer = 0; layer < plan.moe_layers.front(); ++layer) dense.push_back(layer);
  config.update({{"decoder_sparse_step", 1},
                 {"head_dim", side_sizes(plan).head_dim},
                 {"intermediate_size", side_sizes(plan).dense_intermediate},
                 {"max_position_embeddings", 40960},
                 {"mlp_only_layers", dense},
                 {"moe_intermediate_size", plan.sizes.intermediate},
                 {"norm_topk_prob", true},
                 {"num_experts", plan.sizes.experts},
                 {"rms_norm_eps", 1e-6},
                 {"rope_scaling", nullptr},
                 {"rope_theta", 1000000.0},
                 {"router_aux_loss_coef", 0.001}});
  return config;
}

Json qwen3_moe_config(const SynthPlan& plan) {
  Json config = qwen3_text_config(plan);
  config.update({{"architectures", {"Qwen3MoeForCausalLM"}},
                 {"bos_token_id", std::min<std::int64_t>(151643, plan.sizes.vocabulary - 1)},
                 {"eos_token_id", std::min<std::int64_t>(151645, plan.sizes.vocabulary - 1)},
                 {"max_window_layers", layer_count(plan)},
                 {"model_type", "qwen3_moe"},
                 {"output_router_logits", false},
                 {"sliding_window", nullptr},
                 {"use_sliding_window", false}});
  switch (plan.model->storage) {
    case SynthStorage::fp8_block_bf16: {
      std::vector<std::string> kept{"lm_head"};
      for (const std::string_view form :
           {"model.layers.{}.mlp.gate", "model.layers.{}.post_attention_layernorm"}) {
        std::ranges::move(for_layers(plan, form), std::back_inserter(kept));
      }
      config["quantization_config"] = fp8_block_config();
      config["quantization_config"]["modules_to_not_convert"] = kept;
      break;
    }
    case SynthStorage::fp8_channel:
    case SynthStorage::ct_nvfp4:
      config["quantization_config"] = compressed_tensors_config(plan);
      break;
    default:
      break;
  }
  return config;
}

Json qwen3_vl_moe_config(const SynthPlan& plan) {
  Json text = qwen3_text_config(plan);
  text.update({{"model_type", "qwen3_vl_moe_text"}, {"max_position_embeddings", 262144}});
  text.erase("tie_word_embeddings");
  return {
      {"architectures", {"Qwen3VLMoeForConditionalGeneration"}},
      {"image_token_id", 151655},
      {"model_type", "qwen3_vl_moe"},
      {"text_config", text},
      {"tie_word_embeddings", false},
      {"torch_dtype", "bfloat16"},
      {"video_token_id", 151656},
      {"vision_config",
       {{"depth", 0}, {"hidden_size", 1152}, {"model_type", "qwen3_vl_moe"}, {"patch_size", 16}}},
      {"vision_end_token_id", 151653},
      {"vision_start_token_id", 151652}};
}

/// The pattern of the released model up to the last layer written, with experts only in the layers
/// written.
std::string nemotron_pattern(const SynthPlan& plan) {
  std::string pattern(kNemotronNanoPattern.substr(0, static_cast<std::size_t>(layer_count(plan))));
  std::ranges::replace(pattern, 'E', 'M');
  for (const std::int64_t layer : plan.moe_layers) pattern[static_cast<std::size_t>(layer)] = 'E';
  return pattern;
}

std::vector<std::string> nemotron_unquantized(const SynthPlan& plan) {
  std::vector<std::string> modules{"lm_head"};
  std::ranges::move(for_layers(plan, "backbone.layers.{}.mixer.gate"), std::back_inserter(modules));
  if (plan.sizes.latent != 0) {
    for (const std::string_view form :
         {"backbone.layers.{}.mixer.fc1_latent_proj", "backbone.layers.{}.mixer.fc2_latent_proj"}) {
      std::ranges::move(for_layers(plan, form), std::back_inserter(modules));
    }
  }
  std::ranges::sort(modules);
  return modules;
}

const Json kModelOptProducer = {{"name", "modelopt"}, {"version", "0.29.0"}};

/// `config.json: quantization_config` as ModelOpt's export converts it from hf_quant_config.json.
Json modelopt_config(const SynthPlan& plan) {
  const bool nvfp4 = plan.model->storage == SynthStorage::modelopt_nvfp4;
  Json arguments = {{"dynamic", false}, {"num_bits", nvfp4 ? 4 : 8}, {"type", "float"}};
  if (nvfp4) arguments["group_size"] = 16;
  return {{"config_groups",
           {{"group_0",
             {{"input_activations", arguments}, {"targets", {"Linear"}}, {"weights", arguments}}}}},
          {"ignore", nemotron_unquantized(plan)},
          {"kv_cache_scheme", {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}}},
          {"producer", kModelOptProducer},
          {"quant_algo", nvfp4 ? "NVFP4" : "FP8"},
          {"quant_method", "modelopt"}};
}

Json nemotron_h_config(const SynthPlan& plan) {
  const bool tiny = plan.scale == SynthScale::tiny;
  const SideSizes side = side_sizes(plan);
  Json config = common_config(plan);
  config.erase("hidden_act");
  config.update({{"architectures", {"NemotronHForCausalLM"}},
                 {"bos_token_id", 1},
                 {"chunk_size", 128},
                 {"conv_kernel", 4},
                 {"eos_token_id", 2},
                 {"expand", 2},
                 {"head_dim", side.head_dim},
                 {"hidden_dropout", 0.0},
                 {"hybrid_override_pattern", nemotron_pattern(plan)},
                 {"intermediate_size", side.dense_intermediate},
                 {"layer_norm_epsilon", 1e-5},
                 {"mamba_head_dim", tiny ? 16 : 64},
                 {"mamba_hidden_act", "silu"},
                 {"mamba_num_heads", tiny                     ? 8
                                     : plan.sizes.latent != 0 ? 128
                                                              : 64},
                 {"mamba_proj_bias", false},
                 {"max_position_embeddings", 262144},
                 {"mlp_bias", false},
                 {"mlp_hidden_act", "relu2"},
                 {"model_type", "nemotron_h"},
                 {"moe_intermediate_size", plan.sizes.intermediate},
                 {"moe_shared_expert_intermediate_size", plan.sizes.shared_intermediate},
                 {"n_group", 1},
                 {"n_groups", tiny ? 1 : 8},
                 {"n_routed_experts", plan.sizes.experts},
                 {"n_shared_experts", 1},
                 {"norm_eps", 1e-5},
                 {"norm_topk_prob", true},
                 {"num_logits_to_keep", 1},
                 {"pad_token_id", 0},
                 {"rescale_prenorm_residual", true},
                 {"residual_in_fp32", false},
                 {"routed_scaling_factor", plan.model->routed_scaling},
                 {"ssm_state_size", tiny ? 16 : 128},
                 {"time_step_floor", 1e-4},
                 {"time_step_max", 0.1},
                 {"time_step_min", 0.001},
                 {"topk_group", 1},
                 {"use_bias", false},
                 {"use_conv_bias", true},
                 {"use_mamba_kernels", false}});
  if (plan.sizes.latent != 0) config["moe_latent_size"] = plan.sizes.latent;
  if (plan.model->storage != SynthStorage::bf16)
    config["quantization_config"] = modelopt_config(plan);
  return config;
}

}  // namespace

std::string synth_config_json(const SynthPlan& plan, std::int64_t hash_layers) {
  const Json config = [&] {
    switch (plan.model->family) {
      case SynthFamily::gpt_oss:
        return gpt_oss_config(plan);
      case SynthFamily::deepseek_v3:
        return deepseek_v3_config(plan);
      case SynthFamily::deepseek_v4:
        return deepseek_v4_config(plan, hash_layers);
      case SynthFamily::qwen3_moe:
        return qwen3_moe_config(plan);
      case SynthFamily::qwen3_vl_moe:
        return qwen3_vl_moe_config(plan);
      case SynthFamily::nemotron_h:
        return nemotron_h_config(plan);
    }
    return Json();
  }();
  return config.dump(2) + "\n";
}

std::string synth_hf_quant_config_json(const SynthPlan& plan) {
  const bool nvfp4 = plan.model->storage == SynthStorage::modelopt_nvfp4;
  if (!nvfp4 && plan.model->storage != SynthStorage::fp8_tensor) return "";
  Json quantization = {{"exclude_modules", nemotron_unquantized(plan)},
                       {"kv_cache_quant_algo", "FP8"},
                       {"quant_algo", nvfp4 ? "NVFP4" : "FP8"}};
  if (nvfp4) quantization["group_size"] = 16;
  return Json{{"producer", kModelOptProducer}, {"quantization", quantization}}.dump(2) + "\n";
}

}  // namespace moeref
