#include <cfloat>
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

// ----------------------------------------------------------------------------------- sgl-kernel

constexpr std::string_view kSglReplay =
    "precise: the SM100 library, fast_math: the SM90 library; expf, sigmoid and division measured "
    "on "
    "an H200, order of sums read";

RoutingKernel sgl() {
  RoutingKernel kernel;
  kernel.family = "sgl-kernel";
  kernel.logit_types = {Format::f32, Format::bf16, Format::f16};
  kernel.replays = {RoutingArithmetic::precise, RoutingArithmetic::fast_math};
  kernel.replay_evidence = kSglReplay;
  return kernel;
}

void add_sgl_gates(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel = sgl();
  kernel.name = "sgl_moe_fused_gate";
  kernel.summary =
      "sigmoid rounded to the logits' type, bias and group sums in that type; the worst groups "
      "leave "
      "one by one, of equal ones the last";
  kernel.source =
      "sglang@00c0d65c552f sgl-kernel/csrc/moe/moe_fused_gate.cu moe_fused_gate_impl; scaling: "
      "sglang@0470ac65465f python/sglang/jit_kernel/csrc/moe/moe_fused_gate.cuh";
  kernel.open =
      "the sum reads weights that other lanes stored without a barrier; routed_scaling_factor is a "
      "double there: equal if it is an f32";
  kernel.methods = {RoutingMethod::deepseek_v3, RoutingMethod::minimax2};
  kernel.score = ScoreForm::sigmoid;
  kernel.score_type = ValueType::of_logits;
  kernel.bias = BiasUse::score;
  kernel.bias_type = ValueType::of_logits;
  kernel.choice_type = ValueType::of_logits;
  kernel.group_score = GroupScore::top2_sum;
  kernel.group_order = GroupOrder::exclude_worst;
  kernel.floor = -FLT_MAX;
  kernel.share_use = ShareUse::always;
  kernel.share_sum = SumOrder::serial;
  kernel.scaling = ScalingUse::with_shares;
  kernel.rules = {{.size = Size::experts, .need = Need::power_of_two},
                  {.size = Size::width, .value = 32},
                  {.size = Size::width,
                   .need = Need::at_least,
                   .value = 2,
                   .reason = "it adds -FLT_MAX for the second expert of a group"},
                  {.size = Size::groups, .value = 32}};
  table.push_back(kernel);

  kernel.name = "sgl_kimi_k2_moe_fused_gate";
  kernel.summary =
      "sigmoid, bias and their sum in the logits' type, 384 experts in one group; shares if asked";
  kernel.source =
      "sglang@0983bc8a1e57 sgl-kernel/csrc/moe/kimi_k2_moe_fused_gate.cu "
      "kimi_k2_moe_fused_gate_kernel";
  kernel.open = "routed_scaling_factor is a double there: equal if it is an f32";
  kernel.group_score = GroupScore::none;
  kernel.group_order = GroupOrder::keep_best;
  kernel.share_use = ShareUse::if_asked;
  kernel.rules = {{.size = Size::experts, .value = 384},
                  {.size = Size::experts, .need = Need::at_least, .value = 384}};
  table.push_back(kernel);
}

void add_sgl_topk(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel = sgl();
  kernel.name = "sgl_topk_softmax";
  kernel.summary =
      "softmax of logit + bias, times the reciprocal of the sum, top-k; shares by a reciprocal too";
  kernel.source =
      "sglang@07a957966d5f sgl-kernel/csrc/moe/moe_topk_softmax_kernels.cu topkGatingSoftmax";
  kernel.open = "moe_softcapping is left out: tanhf of the fast-math build has no formula";
  kernel.methods = {RoutingMethod::softmax_topk, RoutingMethod::topk_softmax};
  kernel.score = ScoreForm::softmax_reciprocal;
  kernel.score_sum = SumOrder::vectors;
  kernel.bias = BiasUse::logit;
  kernel.share_use = ShareUse::if_asked;
  kernel.share = ShareForm::reciprocal;
  kernel.share_sum = SumOrder::serial;
  kernel.rules = {{.size = Size::experts, .need = Need::power_of_two},
                  {.size = Size::experts, .value = 512}};
  table.push_back(kernel);

  kernel.name = "sgl_topk_softmax_general";
  kernel.summary =
      "topk_softmax for other numbers of experts: two of them in each pass over the scores";
  kernel.source =
      "sglang@07a957966d5f sgl-kernel/csrc/moe/moe_topk_softmax_kernels.cu moeSoftmax, "
      "moeTopKFast, "
      "moeTopK";
  kernel.open =
      "equal scores: the order of a tree of pairs in the CUB release at hand (top_k 1: lower "
      "index)";
  kernel.score_sum = SumOrder::block_256;
  kernel.ties = TieRule::unspecified;
  kernel.rules = {{.size = Size::experts,
                   .need = Need::no_power_of_two,
                   .when = Size::experts,
                   .when_to = 512}};
  table.push_back(kernel);

  kernel = sgl();
  kernel.name = "sgl_topk_sigmoid";
  kernel.summary =
      "sigmoid + bias, top-k; the weight is what is left when the bias is subtracted again";
  kernel.source =
      "sglang@07a957966d5f sgl-kernel/csrc/moe/moe_topk_sigmoid_kernels.cu topkGatingSigmoid";
  kernel.methods = {RoutingMethod::sigmoid_topk, RoutingMethod::minimax2};
  kernel.score = ScoreForm::sigmoid;
  kernel.bias = BiasUse::score;
  kernel.floor = -10000.0f;
  kernel.weight = RouteWeightForm::choice_minus_bias;
  kernel.share_use = ShareUse::if_asked;
  kernel.share = ShareForm::reciprocal;
  kernel.share_sum = SumOrder::serial;
  kernel.rules = {{.size = Size::experts, .need = Need::power_of_two},
                  {.size = Size::experts, .value = 256}};
  table.push_back(kernel);

  kernel.name = "sgl_topk_sigmoid_general";
  kernel.summary =
      "topk_sigmoid for other numbers of experts; never takes a choice value of -1 or less";
  kernel.source =
      "sglang@07a957966d5f sgl-kernel/csrc/moe/moe_topk_sigmoid_kernels.cu moeSigmoid, moeTopK";
  kernel.floor = -1.0f;
  kernel.rules = {{.size = Size::experts,
                   .need = Need::no_power_of_two,
                   .when = Size::experts,
                   .when_to = 256}};
  table.push_back(kernel);
}

// --------------------------------------------------------------------------------------- SGLang

void add_sglang_jit(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel;
  kernel.family = "SGLang JIT";
  kernel.logit_types = {Format::f32};
  kernel.replays = {RoutingArithmetic::precise};

  kernel.name = "sglang_jit_grouped_topk";
  kernel.summary = "one group: sigmoid by __expf, + bias, shares with epsilon 1e-20";
  kernel.source =
      "sglang@517d0ca308bf python/sglang/jit_kernel/csrc/moe/grouped_topk.cuh "
      "grouped_topk_single_group_kernel";
  kernel.methods = {RoutingMethod::deepseek_v3, RoutingMethod::minimax2};
  kernel.score = ScoreForm::sigmoid_intrinsic;
  kernel.bias = BiasUse::score;
  kernel.floor = -FLT_MAX;
  kernel.share_use = ShareUse::if_asked;
  kernel.share = ShareForm::scaled_first;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::plus_epsilon;
  kernel.epsilon = kTinyF32;
  kernel.scaling = ScalingUse::always;
  kernel.replay_evidence = "__expf measured on an H200, order of sums read";
  kernel.rules = {{.size = Size::groups, .value = 1},
                  {.size = Size::experts, .value = 512},
                  {.size = Size::top_k, .value = 8}};
  table.push_back(kernel);

  kernel.name = "sglang_jit_sqrtsoftplus_gate";
  kernel.summary = "DeepSeek-V4, more than 512 tokens: sqrt(log1p(exp x)) + bias, shares";
  kernel.source =
      "1am9trash/sglang@a02edf4ec5a2 python/sglang/jit_kernel/csrc/moe/moe_fused_gate.cuh "
      "moe_fused_gate_kernel";
  kernel.methods = {RoutingMethod::sqrt_softplus};
  kernel.score = ScoreForm::sqrt_softplus;
  kernel.share_use = ShareUse::always;
  kernel.share = ShareForm::divided;
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::one_if_zero;
  kernel.epsilon = 0.0;
  kernel.replay_evidence = "expf measured on an H200, log1pf read off PTX, order of sums read";
  kernel.rules = {{.size = Size::experts, .value = 512}, {.size = Size::top_k, .value = 16}};
  table.push_back(kernel);

  kernel.name = "sglang_jit_sqrtsoftplus_gate_small";
  kernel.summary =
      "DeepSeek-V4, up to 512 tokens: shuffles that compare no indices, so that of equal values "
      "the warp and lane with the lowest reversed bits win";
  kernel.source =
      "1am9trash/sglang@a02edf4ec5a2 python/sglang/jit_kernel/csrc/moe/moe_fused_gate.cuh "
      "moe_fused_gate_kernel_small_token";
  kernel.ties = TieRule::reversed_lanes;
  constexpr std::string_view kUnwritten =
      "it compares entries of shared memory that it did not write";
  kernel.rules = {
      {.size = Size::experts, .value = 512},
      {.size = Size::experts, .need = Need::at_least, .value = 225, .reason = kUnwritten},
      {.size = Size::experts, .need = Need::outside, .value = 257, .to = 352, .reason = kUnwritten},
      {.size = Size::experts, .need = Need::outside, .value = 385, .to = 480, .reason = kUnwritten},
      {.size = Size::top_k, .value = 16}};
  table.push_back(kernel);

  kernel.name = "sglang_jit_hash_topk";
  kernel.summary =
      "DeepSeek-V4's hash layers: experts from a table by token id, weights "
      "sqrt(max(x, 0) + log1p(exp(-|x|))) over their sum";
  kernel.source =
      "sglang@ec7439fe756a python/sglang/jit_kernel/csrc/deepseek_v4/hash_topk.cuh "
      "moe_hash_topk_fused";
  kernel.selects = false;
  kernel.score = ScoreForm::sqrt_softplus_abs;
  kernel.bias = BiasUse::none;
  kernel.ties = TieRule::lower_index;
  kernel.floor.reset();
  kernel.share_sum = SumOrder::lanes_32;
  kernel.divisor = DivisorForm::sum;
  kernel.scaling = ScalingUse::none;
  kernel.rules = {{.size = Size::top_k, .value = 32}};
  table.push_back(kernel);
}

void add_sglang_torch(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel;
  kernel.family = "SGLang torch";
  kernel.logit_types = {Format::f32};
  kernel.ties = TieRule::unspecified;
  kernel.slots = SlotOrder::unspecified;
  constexpr std::string_view kOpen =
      "torch.topk breaks ties and lists slots as it likes; torch.compile chooses the order of "
      "sums, "
      "exp and division";

  kernel.name = "sglang_biased_grouped_topk";
  kernel.summary = "sigmoid + bias, groups by their top two, shares";
  kernel.source =
      "sglang@000328a8cd54 python/sglang/srt/layers/moe/topk.py biased_grouped_topk_impl";
  kernel.open = kOpen;
  kernel.methods = {RoutingMethod::deepseek_v3, RoutingMethod::minimax2};
  kernel.score = ScoreForm::sigmoid;
  kernel.bias = BiasUse::score;
  kernel.group_score = GroupScore::top2_sum;
  kernel.share_use = ShareUse::if_asked;
  kernel.scaling = ScalingUse::with_shares;
  kernel.rules = {{.size = Size::width, .need = Need::at_least, .value = 2}};
  table.push_back(kernel);

  kernel.name = "sglang_grouped_topk";
  kernel.summary = "softmax, groups by their largest, the others count as 0, shares if asked";
  kernel.source = "sglang@000328a8cd54 python/sglang/srt/layers/moe/topk.py grouped_topk_gpu";
  kernel.methods = {RoutingMethod::softmax_topk};
  kernel.score = ScoreForm::softmax_divided;
  kernel.bias = BiasUse::none;
  kernel.group_score = GroupScore::largest;
  kernel.mask_fill = MaskFill::zero;
  kernel.rules = {};
  table.push_back(kernel);

  kernel.name = "sglang_biased_topk_sqrtsoftplus";
  kernel.summary = "DeepSeek-V4: sqrt(softplus x) with torch's threshold 20, + bias, shares";
  kernel.source = "sglang@000328a8cd54 python/sglang/srt/layers/moe/topk.py biased_topk_impl";
  kernel.methods = {RoutingMethod::sqrt_softplus};
  kernel.score = ScoreForm::sqrt_softplus_20;
  kernel.bias = BiasUse::score;
  kernel.group_score = GroupScore::none;
  kernel.mask_fill = MaskFill::minus_infinity;
  kernel.share_use = ShareUse::always;
  table.push_back(kernel);

  kernel.name = "sglang_raw_logits_topk";
  kernel.summary = "top-k of the logits, softmax over the chosen in f32 (flashinfer_trtllm_routed)";
  kernel.source =
      "sglang@000328a8cd54 python/sglang/srt/layers/moe/topk.py "
      "fused_topk_softmax_torch_raw_logits";
  kernel.methods = {RoutingMethod::topk_softmax, RoutingMethod::softmax_topk};
  kernel.logit_types = {Format::f32, Format::bf16, Format::f16};
  kernel.score = ScoreForm::logit;
  kernel.bias = BiasUse::none;
  kernel.weight = RouteWeightForm::softmax_divided;
  kernel.scaling = ScalingUse::none;
  table.push_back(kernel);
}

// --------------------------------------------------------------------------------------- Triton

void add_triton(std::vector<RoutingKernel>& table) {
  RoutingKernel kernel;
  kernel.family = "Triton";
  kernel.name = "triton_kernels_topk";
  kernel.summary =
      "GPT-OSS: top-k of the logits, softmax over the chosen in f32, stored in the logits' type";
  kernel.source =
      "triton@08503c47e2d0 python/triton_kernels/triton_kernels/topk_details/_topk_forward.py "
      "streaming_topk, _topk_forward";
  kernel.open = "Triton's exp and the order of the sum";
  kernel.methods = {RoutingMethod::topk_softmax, RoutingMethod::softmax_topk};
  kernel.logit_types = {Format::f32, Format::bf16, Format::f16};
  kernel.nan_logits = NanLogits::chosen_first;
  kernel.minus_zero_first = true;
  kernel.slots = SlotOrder::rising_id;
  kernel.floor = -kInfinity;
  kernel.weight = RouteWeightForm::softmax_divided;
  kernel.share_use = ShareUse::always;
  kernel.output_type = ValueType::of_logits;
  kernel.rules = {{.size = Size::experts, .value = 32767}};
  table.push_back(kernel);

  kernel.name = "triton_kernels_softmax_topk";
  kernel.summary = "sm_first: torch.softmax in the logits' type, then its top-k";
  kernel.source =
      "sglang@000328a8cd54 python/sglang/srt/layers/moe/topk.py routing; "
      "triton@08503c47e2d0 python/triton_kernels/triton_kernels/topk_details/_topk_forward.py";
  kernel.open = "torch's exp and the order of the sum";
  kernel.methods = {RoutingMethod::softmax_topk};
  kernel.score = ScoreForm::softmax_divided;
  kernel.score_type = ValueType::of_logits;
  kernel.weight = RouteWeightForm::score;
  kernel.share_use = ShareUse::never;
  table.push_back(kernel);

  kernel = RoutingKernel{};
  kernel.family = "Triton";
  kernel.name = "sglang_triton_sqrtsoftplus_router";
  kernel.summary = "DeepSeek-V4: sqrt(log(1 + exp x)), above 20 sqrt(x), + bias, shares";
  kernel.source =
      "sglang@015538964db3 python/sglang/jit_kernel/moe_fused_gate.py _router_triton_kernel";
  kernel.open = "Triton's exp, log and division, and the order of the sum";
  kernel.methods = {RoutingMethod::sqrt_softplus};
  kernel.logit_types = {Format::f32, Format::bf16, Format::f16};
  kernel.score = ScoreForm::sqrt_softplus_log;
  kernel.bias = BiasUse::score;
  kernel.floor = -kInfinity;
  kernel.share_use = ShareUse::always;
  kernel.divisor = DivisorForm::one_if_zero;
  kernel.scaling = ScalingUse::always;
  table.push_back(kernel);
}

}  // namespace

void add_sglang_kernels(std::vector<RoutingKernel>& table) {
  add_sgl_gates(table);
  add_sgl_topk(table);
  add_sglang_jit(table);
  add_sglang_torch(table);
  add_triton(table);
}

}  // namespace moeref
