#include <limits>
#include <string_view>
#include <vector>

#include "engine/routing_kernel_table.hpp"

namespace moeref {
namespace {

using Need = RoutingRule::Need;
using Size = RoutingSize;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTinyF32 = 1e-20f;  // an f32 literal

const std::vector<RoutingRule> kUpTo256Top8{{.size = Size::experts, .value = 256},
                                            {.size = Size::top_k, .value = 8}};

/// Every kernel of TRTLLM-Gen: keys of value bits over 65535 - index, weights in bf16.
RoutingKernel trtllm() {
  RoutingKernel kernel;
  kernel.family = "FlashInfer TRTLLM-Gen";
  kernel.logit_types = {Format::f32, Format::bf16};
  kernel.nan_logits = NanLogits::chosen_first;
  kernel.minus_zero_first = true;
  kernel.floor = -kInfinity;
  kernel.output_type = ValueType::bf16;
  return kernel;
}

constexpr std::string_view kTanhOpen =
    "the build has -use_fast_math: tanhf is tanh.approx, for which no formula is known, so there "
    "is "
    "no replay";
constexpr std::string_view kTrtllmReplay =
    "fast_math: expf and division measured on an H200; the kernels are built for SM100 and SM120 "
    "only, whose units are not measured";

void add_trtllm_softmax(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel = trtllm();
  kernel.name = "flashinfer_trtllm_default";
  kernel.summary =
      "Default: softmax over all, top-k; a warp for each token (up to 16 tokens; up to 256 if "
      "experts "
      "< 160; above 256 if experts < 256; above 1024)";
  kernel.source =
      "flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh "
      "SoftmaxPreprocess, NoOpPostprocess; RoutingKernel.cuh calcSoftmax";
  kernel.methods = {RoutingMethod::softmax_topk};
  kernel.score = ScoreForm::softmax_divided;
  kernel.score_sum = SumOrder::lanes_32;
  kernel.replays = {RoutingArithmetic::fast_math};
  kernel.replay_evidence = kTrtllmReplay;
  kernel.rules = kUpTo256Top8;
  table.push_back(kernel);

  kernel.name = "flashinfer_trtllm_default_block";
  kernel.summary =
      "Default, a block for each token (17 to 256 tokens if experts >= 160; to 1024 if experts are "
      "256): times the reciprocal of the sum";
  kernel.source =
      "flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh "
      "SoftmaxPreprocess::applyToSmem; csrc/fused_moe/trtllm_backend/"
      "trtllm_fused_moe_routing_custom.cuh run";
  kernel.score = ScoreForm::softmax_reciprocal;
  kernel.score_sum = SumOrder::block_256;
  table.push_back(kernel);

  kernel = trtllm();
  kernel.name = "flashinfer_trtllm_renormalize";
  kernel.summary = "Renormalize and RenormalizeNaive: top-k of the logits, softmax over the chosen";
  kernel.source =
      "flashinfer@fb28d7242b35 csrc/fused_moe/trtllm_backend/trtllm_fused_moe_routing_runner.cu "
      "Runner::run; RoutingCustomPolicy.cuh SoftmaxPostprocess";
  kernel.methods = {RoutingMethod::topk_softmax, RoutingMethod::softmax_topk};
  kernel.weight = RouteWeightForm::softmax_divided;
  kernel.share_use = ShareUse::always;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.replays = {RoutingArithmetic::fast_math};
  kernel.replay_evidence = kTrtllmReplay;
  kernel.rules = {{.size = Size::experts, .value = 2048}, {.size = Size::top_k, .value = 32}};
  table.push_back(kernel);

  kernel = trtllm();
  kernel.name = "flashinfer_trtllm_topk";
  kernel.summary = "TopK: top-k of the logits, which are the weights";
  kernel.source =
      "flashinfer@fb28d7242b35 csrc/fused_moe/trtllm_backend/trtllm_fused_moe_routing_runner.cu "
      "Runner::run; RoutingCustomPolicy.cuh NoOpPreprocess, NoOpPostprocess";
  kernel.methods = {RoutingMethod::topk_logits};
  kernel.rules = kUpTo256Top8;
  table.push_back(kernel);
}

void add_trtllm_sigmoid(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel = trtllm();
  kernel.open = kTanhOpen;
  kernel.name = "flashinfer_trtllm_llama4";
  kernel.summary = "Llama4: top-1 of the logits, then sigmoid; lanes compare, then keys";
  kernel.source =
      "flashinfer@fb28d7242b35 csrc/fused_moe/trtllm_backend/trtllm_fused_moe_routing_llama4.cu "
      "routingTopKExperts";
  kernel.methods = {RoutingMethod::llama4};
  kernel.lanes_first = true;
  kernel.weight = RouteWeightForm::sigmoid_tanh;
  kernel.rules = {{.size = Size::experts, .value = 128}, {.size = Size::top_k, .value = 1}};
  table.push_back(kernel);

  kernel = trtllm();
  kernel.open = kTanhOpen;
  kernel.name = "flashinfer_trtllm_topk_sigmoid";
  kernel.summary = "TopKSigmoid: top-k of the logits, then sigmoid";
  kernel.source =
      "flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh "
      "SigmoidPostprocess";
  kernel.methods = {RoutingMethod::sigmoid_topk};
  kernel.weight = RouteWeightForm::sigmoid_tanh;
  kernel.rules = kUpTo256Top8;
  table.push_back(kernel);

  kernel = trtllm();
  kernel.open = kTanhOpen;
  kernel.name = "flashinfer_trtllm_sigmoid";
  kernel.summary = "Sigmoid: sigmoid, top-k";
  kernel.source =
      "flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh "
      "SigmoidPreprocess, SumNormalizePostprocess";
  kernel.methods = {RoutingMethod::sigmoid_topk};
  kernel.score = ScoreForm::sigmoid_tanh;
  kernel.rules = kUpTo256Top8;
  table.push_back(kernel);

  kernel.name = "flashinfer_trtllm_sigmoid_renorm";
  kernel.summary = "SigmoidRenorm: sigmoid, top-k, divided by max(sum, 1e-20)";
  kernel.share_use = ShareUse::always;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::at_least;
  kernel.epsilon = kTinyF32;
  table.push_back(kernel);
}

void add_trtllm_biased(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel = trtllm();
  kernel.open = kTanhOpen;
  kernel.score = ScoreForm::sigmoid_tanh;
  kernel.bias = BiasUse::score;
  kernel.share_use = ShareUse::always;
  kernel.share = ShareForm::scaled_first;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::plus_epsilon;
  kernel.epsilon = kTinyF32;
  kernel.scaling = ScalingUse::always;

  kernel.name = "flashinfer_trtllm_deepseek_v3_one_group";
  kernel.summary = "DeepSeekV3 with one group: sigmoid + bias as it is stored";
  kernel.source =
      "flashinfer@fb28d7242b35 include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh "
      "SigmoidBiasPreprocess, ScaledSumNormalizePostprocess; "
      "csrc/fused_moe/trtllm_backend/trtllm_fused_moe_routing_runner.cu Runner::run";
  kernel.methods = {RoutingMethod::deepseek_v3};
  kernel.rules = {
      {.size = Size::groups, .value = 1, .reason = "take flashinfer_trtllm_deepseek_v3"},
      {.size = Size::experts, .value = 1024},
      {.size = Size::top_k, .value = 22},
      {.size = Size::top_k, .value = 8, .when = Size::experts, .when_to = 384},
      {.size = Size::top_k, .need = Need::below_kept_experts}};
  table.push_back(kernel);

  kernel.name = "flashinfer_trtllm_minimax2";
  kernel.summary = "MiniMax2: sigmoid + bias as it is stored, shares of the sigmoid";
  kernel.methods = {RoutingMethod::minimax2};
  kernel.rules = {{.size = Size::experts, .value = 1024}, {.size = Size::top_k, .value = 32}};
  table.push_back(kernel);

  kernel.name = "flashinfer_trtllm_deepseek_v3";
  kernel.summary = "DeepSeekV3: sigmoid + bias rounded to bf16, groups by their top two";
  kernel.source =
      "flashinfer@fb28d7242b35 csrc/fused_moe/trtllm_backend/trtllm_fused_moe_routing_deepseek.cu "
      "routingMainKernel; limits: csrc/trtllm_fused_moe_routing_binding.cu trtllm_gen_routing";
  kernel.methods = {RoutingMethod::deepseek_v3};
  kernel.bias_type = ValueType::bf16;
  kernel.group_score = GroupScore::top2_sum;
  kernel.rules = {{.size = Size::groups,
                   .need = Need::at_least,
                   .value = 2,
                   .reason = "take flashinfer_trtllm_deepseek_v3_one_group"},
                  {.size = Size::groups, .value = 8},
                  {.size = Size::kept_groups, .value = 4},
                  {.size = Size::width, .value = 32},
                  {.size = Size::width,
                   .need = Need::at_least,
                   .value = 2,
                   .reason = "it adds -infinity for the second expert of a group"},
                  {.size = Size::experts, .need = Need::multiple, .value = 4},
                  {.size = Size::top_k, .value = 8},
                  {.size = Size::top_k, .need = Need::below_kept_experts}};
  table.push_back(kernel);
}

void add_fused_topk_deepseek(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel;
  kernel.family = "FlashInfer";
  kernel.name = "flashinfer_fused_topk_deepseek";
  kernel.summary =
      "fused_topk_deepseek with groups: weights computed in f64, stored in the logits' type";
  kernel.source =
      "flashinfer@fb28d7242b35 csrc/fused_moe/noAuxTcKernels.cu deepseek_v3_topk_kernel; limits: "
      "flashinfer/fused_moe/fused_routing_dsv3.py";
  kernel.open = kTanhOpen;
  kernel.methods = {RoutingMethod::deepseek_v3, RoutingMethod::minimax2};
  kernel.logit_types = {Format::f32, Format::bf16, Format::f16};
  kernel.nan_logits = NanLogits::chosen_first;
  kernel.score = ScoreForm::sigmoid_tanh;
  kernel.bias = BiasUse::score;
  kernel.group_score = GroupScore::top2_sum;
  kernel.minus_zero_first = true;
  kernel.floor = -kInfinity;
  kernel.share_use = ShareUse::always;
  kernel.share = ShareForm::wide;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::plus_epsilon;
  kernel.epsilon = 1e-20;
  kernel.scaling = ScalingUse::always;
  kernel.output_type = ValueType::of_logits;
  kernel.rules = {
      {.size = Size::groups,
       .need = Need::at_least,
       .value = 2,
       .reason = "take flashinfer_fused_topk_deepseek_one_group"},
      {.size = Size::groups, .value = 8, .reason = "a warp for each group, eight of them"},
      {.size = Size::kept_groups, .value = 4, .reason = "it looks at four groups only"},
      {.size = Size::width, .value = 32},
      {.size = Size::width,
       .need = Need::at_least,
       .value = 2,
       .reason = "it adds -infinity for the second expert of a group"},
      {.size = Size::kept_experts, .value = 128},
      {.size = Size::experts, .value = 256},
      {.size = Size::top_k, .value = 8}};
  table.push_back(kernel);

  kernel.name = "flashinfer_fused_topk_deepseek_one_group";
  kernel.summary = "fused_topk_deepseek with one group: weights computed in f64 too";
  kernel.group_score = GroupScore::none;
  kernel.rules = {
      {.size = Size::groups, .value = 1, .reason = "take flashinfer_fused_topk_deepseek"},
      {.size = Size::experts, .value = 384},
      {.size = Size::top_k, .value = 8},
      {.size = Size::top_k,
       .need = Need::at_least,
       .value = 8,
       .reason = "it compares entries of shared memory that it did not write",
       .when = Size::experts,
       .when_from = 129}};
  table.push_back(kernel);
}

}  // namespace

void add_flashinfer_kernels(std::vector<RoutingKernel>& table) {
  add_trtllm_softmax(table);
  add_trtllm_biased(table);
  add_trtllm_sigmoid(table);
  add_fused_topk_deepseek(table);
}

}  // namespace moeref
