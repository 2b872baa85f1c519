// What routing kernels refuse, each in one line.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/routing_kernels.hpp"
#include "tests/engine/routing_fixtures.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

std::string error_for(std::string_view kernel, const Routing& routing, std::int64_t experts,
                      Floats logits = {}, const Floats& bias = {}) {
  return error_of(
      [&] { route_logits_as(find_routing_kernel(kernel), routing, logits, experts, bias); });
}

void expect_starts(const std::string& error, const std::string& start) {
  EXPECT_TRUE(starts_with(error, start)) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

Routing grouped(std::int64_t top_k, std::int64_t groups, std::int64_t kept) {
  Routing routing = make(RoutingMethod::deepseek_v3, top_k);
  routing.groups = groups;
  routing.kept_groups = kept;
  return routing;
}

TEST(RoutingKernelErrors, NameTheNearestKernel) {
  expect_starts(error_of([] { find_routing_kernel("sgl_topk_sigmod"); }),
                "sgl_topk_sigmod: is no routing kernel; nearest: sgl_topk_sigmoid");
}

TEST(RoutingKernelErrors, NameTheFirstNaN) {
  Floats logits(5 * 128, 1.0f);
  logits[3 * 128 + 5] = kNaN;
  logits[4 * 128 + 1] = kNaN;
  expect_starts(error_for("sgl_topk_softmax", make(RoutingMethod::topk_softmax, 2), 128, logits),
                "router logits: token 3, expert 5 is NaN, sgl_topk_softmax has no defined answer");
  expect_starts(
      error_for("flashinfer_trtllm_topk", make(RoutingMethod::topk_logits, 2), 128, logits),
      "router logits: token 3, expert 5 is NaN, flashinfer_trtllm_topk chooses it first and makes "
      "every weight of the token NaN");
  Floats bias(128, 0.0f);
  bias[9] = kNaN;
  expect_starts(error_for("sgl_topk_sigmoid", make(RoutingMethod::minimax2, 2), 128, {}, bias),
                "router selection bias: expert 9 is NaN");
  bias[9] = kInfinity;
  expect_starts(error_for("sgl_topk_sigmoid", make(RoutingMethod::minimax2, 2), 128, {}, bias),
                "router selection bias: expert 9 is +infinity");
}

TEST(RoutingKernelErrors, NameInfiniteLogits) {
  Floats logits(2 * 128, 1.0f);
  logits[128 + 7] = kInfinity;
  for (const std::string_view kernel :
       {"sgl_topk_softmax", "triton_kernels_topk", "flashinfer_trtllm_renormalize",
        "sglang_raw_logits_topk"}) {
    expect_starts(error_for(kernel, make(RoutingMethod::topk_softmax, 2), 128, logits),
                  "router logits: token 1: the largest of ");
  }
  expect_starts(
      error_for("sglang_biased_topk_sqrtsoftplus", make(RoutingMethod::sqrt_softplus, 2), 128,
                logits),
      "router logits: token 1: the weight of expert 7 is NaN in sglang_biased_topk_sqrtsoftplus");
  // expf overflows at 89 where the kernel has no threshold.
  logits[128 + 7] = 89.0f;
  expect_starts(
      error_for("sglang_jit_sqrtsoftplus_gate", make(RoutingMethod::sqrt_softplus, 2), 128, logits),
      "router logits: token 1: the weight of expert 7 is NaN");
  EXPECT_EQ(error_for("sglang_biased_topk_sqrtsoftplus", make(RoutingMethod::sqrt_softplus, 2), 128,
                      logits),
            "no error");
  logits[128 + 7] = kInfinity;
  const Routing softplus = make(RoutingMethod::sqrt_softplus, 2);
  expect_starts(error_of([&] {
                  route_logits_as(reference_routing_kernel(softplus), softplus, logits, 128, {});
                }),
                "router logits: token 1: the score in slot 0 is inf");
  // -infinity is an ordinary logit: its score is 0.
  logits[128 + 7] = -kInfinity;
  for (const std::string_view kernel : {"sgl_topk_softmax", "triton_kernels_topk"}) {
    EXPECT_EQ(error_for(kernel, make(RoutingMethod::topk_softmax, 2), 128, logits), "no error");
  }
  const Floats masked(128, -kInfinity);
  expect_starts(error_for("sgl_topk_softmax", make(RoutingMethod::topk_softmax, 2), 128, masked),
                "router logits: token 0: the largest of 128 logits of a softmax is -inf");
}

TEST(RoutingKernelErrors, NameTheFirstTokenWhateverTheThreads) {
  Floats logits(400 * 128, 1.0f);
  logits[399 * 128] = kInfinity;
  logits[250 * 128] = kInfinity;
  const RoutingKernel& kernel = find_routing_kernel("sgl_topk_softmax");
  for (int threads = 1; threads <= 4; ++threads) {
    expect_starts(error_of([&] {
                    route_logits_as(kernel, make(RoutingMethod::topk_softmax, 2), logits, 128, {},
                                    threads);
                  }),
                  "router logits: token 250: ");
  }
}

TEST(RoutingKernelErrors, NameLogitsThatTheTypeLacks) {
  const RoutingKernel kernel = with_logits(find_routing_kernel("sgl_moe_fused_gate"), Format::bf16);
  const Floats logits{1.0f, 2.0f, 0.1f, 0.0f};
  expect_starts(error_of([&] { route_logits_as(kernel, grouped(1, 1, 1), logits, 4, {}); }),
                "router logits: token 0, expert 2 is 0.1, which bf16 does not have");
  expect_starts(
      error_of([] { with_logits(find_routing_kernel("flashinfer_trtllm_default"), Format::f16); }),
      "flashinfer_trtllm_default: takes logits of f32, bf16, not f16");
}

TEST(RoutingKernelErrors, NameAMethodThatTheKernelDoesNotCarryOut) {
  expect_starts(error_for("sgl_moe_fused_gate", make(RoutingMethod::topk_softmax, 2), 32),
                "sgl_moe_fused_gate: carries out deepseek_v3, minimax2, but the layer routes by "
                "topk_softmax");
  expect_starts(error_for("sglang_jit_hash_topk", make(RoutingMethod::sqrt_softplus, 2), 32),
                "sglang_jit_hash_topk: chooses no experts");
}

TEST(RoutingKernelErrors, NameWeightsThatTheKernelDoesNotMake) {
  Routing routing = make(RoutingMethod::softmax_topk, 2);
  expect_starts(error_for("flashinfer_trtllm_default", routing, 128),
                "flashinfer_trtllm_default: leaves the weights as they are");
  routing.renormalize = false;
  expect_starts(error_for("flashinfer_trtllm_renormalize", routing, 128),
                "flashinfer_trtllm_renormalize: always divides the weights by their sum");
  routing.scaling = 2.5f;
  expect_starts(error_for("flashinfer_trtllm_default", routing, 128),
                "flashinfer_trtllm_default: does not multiply by routed_scaling_factor, here 2.5");
  routing = grouped(2, 1, 1);
  routing.scaling = 2.5f;
  routing.renormalize = false;
  expect_starts(error_for("sgl_kimi_k2_moe_fused_gate", routing, 384),
                "sgl_kimi_k2_moe_fused_gate: multiplies by routed_scaling_factor, here 2.5, only");
  routing.scaling = 0.0f;
  expect_starts(error_for("sgl_kimi_k2_moe_fused_gate", routing, 384),
                "sgl_kimi_k2_moe_fused_gate: scaling is 0");
  expect_starts(
      error_for("sgl_topk_softmax", make(RoutingMethod::topk_softmax, 2), 4, {1, 2, 3, 4}, {1, 2}),
      "router selection bias: has 2 values, needs one for each of 4 experts");
  expect_starts(error_for("triton_kernels_topk", make(RoutingMethod::topk_softmax, 2), 4,
                          {1, 2, 3, 4}, {1, 2, 3, 4}),
                "router selection bias: triton_kernels_topk takes none");
}

TEST(RoutingKernelErrors, NameSizesBeyondTheKernel) {
  const Routing softmax = make(RoutingMethod::topk_softmax, 2);
  const struct {
    std::string_view kernel;
    Routing routing;
    std::int64_t experts;
    std::string_view needs;
  } cases[] = {
      {"sgl_topk_softmax", softmax, 100, "needs experts a power of two, got 100"},
      {"sgl_topk_softmax", softmax, 1024, "needs experts <= 512, got 1024"},
      {"sgl_topk_softmax_general", softmax, 256,
       "needs experts no power of two if experts <= 512, got 256"},
      {"sgl_kimi_k2_moe_fused_gate", grouped(8, 1, 1), 256, "needs experts >= 384, got 256"},
      {"sgl_moe_fused_gate", grouped(8, 2, 1), 128, "needs experts of a group <= 32, got 64"},
      {"flashinfer_trtllm_renormalize", make(RoutingMethod::topk_softmax, 33), 128,
       "needs top_k <= 32, got 33"},
      {"flashinfer_trtllm_deepseek_v3", grouped(8, 8, 5), 256, "needs kept groups <= 4, got 5"},
      {"flashinfer_trtllm_deepseek_v3", grouped(8, 1, 1), 256, "needs groups >= 2, got 1"},
      {"flashinfer_trtllm_deepseek_v3", grouped(8, 8, 1), 64,
       "needs top_k < experts of the kept groups, got 8"},
      {"flashinfer_trtllm_deepseek_v3_one_group", grouped(9, 1, 1), 384,
       "needs top_k <= 8 if experts <= 384, got 9"},
      {"flashinfer_trtllm_llama4", make(RoutingMethod::llama4, 2), 128, "needs top_k <= 1, got 2"},
      {"flashinfer_fused_topk_deepseek_one_group", grouped(6, 1, 1), 256,
       "needs top_k >= 8 if experts >= 129, got 6"},
      {"flashinfer_fused_topk_deepseek", grouped(8, 16, 4), 256, "needs groups <= 8, got 16"},
      {"sglang_jit_sqrtsoftplus_gate_small", make(RoutingMethod::sqrt_softplus, 6), 288,
       "needs experts not 257 to 352, got 288"},
      {"triton_kernels_topk", softmax, 40000, "needs experts <= 32767, got 40000"},
      {"sgl_moe_fused_gate", grouped(8, 3, 1), 32, "32 experts do not form 3 equal groups"},
      {"sgl_moe_fused_gate", grouped(8, 4, 5), 32, "keeps 5 of 4 groups"},
      {"sgl_moe_fused_gate", grouped(9, 4, 1), 32, "the 1 kept groups hold 8 experts, fewer than"},
      {"sglang_jit_grouped_topk", grouped(2, 4, 2), 32,
       "knows no groups, but 2 of 4 are to be kept"},
      {"sgl_topk_softmax", make(RoutingMethod::topk_softmax, 9), 8, "top_k is 9, needs 1 to"},
  };
  for (const auto& [kernel, routing, experts, needs] : cases) {
    expect_starts(error_for(kernel, routing, experts),
                  std::string(kernel) + ": " + std::string(needs));
  }
}

TEST(RoutingKernelErrors, NameChoicesAmongExpertsThatAreOut) {
  // moeTopK starts from the value -1 and expert 0.
  Floats bias(12, -1.5f);
  bias[4] = 0.0f;
  const Floats logits(12, -5.0f);
  expect_starts(
      error_for("sgl_topk_sigmoid_general", make(RoutingMethod::minimax2, 2), 12, logits, bias),
      "router logits: token 0: top_k 2 reaches expert 0 with the choice value -1.49");
  EXPECT_EQ(
      error_for("sgl_topk_sigmoid_general", make(RoutingMethod::minimax2, 1), 12, logits, bias),
      "no error");
  // A selection bias of -infinity keeps experts out as long as others are left.
  Floats masked(128, -kInfinity);
  for (std::size_t e = 0; e < 8; ++e) masked[e * 16] = 0.0f;
  const Floats zeros(128, 0.0f);
  EXPECT_EQ(
      error_for("flashinfer_trtllm_minimax2", make(RoutingMethod::minimax2, 8), 128, zeros, masked),
      "no error");
  expect_starts(
      error_for("flashinfer_trtllm_minimax2", make(RoutingMethod::minimax2, 9), 128, zeros, masked),
      "router logits: token 0: top_k 9 reaches expert 1 with the choice value -inf");
}

TEST(RoutingKernelErrors, NameASumOfZero) {
  Floats logits(2 * 32, -500.0f);
  for (std::size_t e = 0; e < 32; ++e) logits[e] = 0.0f;
  expect_starts(error_for("sgl_moe_fused_gate", grouped(2, 1, 1), 32, logits),
                "router logits: token 1: the weight of expert 0 is NaN in sgl_moe_fused_gate");
}

TEST(RoutingKernelErrors, NameALevelWithoutFormulas) {
  const RoutingKernel& kernel = find_routing_kernel("flashinfer_trtllm_sigmoid");
  expect_starts(error_of([&] { with_arithmetic(kernel, RoutingArithmetic::fast_math); }),
                "flashinfer_trtllm_sigmoid: has the levels rounded, not fast_math");
  RoutingKernel forced = kernel;
  forced.arithmetic = RoutingArithmetic::precise;
  expect_starts(
      error_of([&] { route_logits_as(forced, make(RoutingMethod::sigmoid_topk, 1), {}, 8, {}); }),
      "flashinfer_trtllm_sigmoid: has no formulas for this arithmetic");
}

TEST(RoutingKernelErrors, NameGivenIdsThatAreNone) {
  const RoutingKernel& kernel = find_routing_kernel("sglang_jit_hash_topk");
  const Routing routing = make(RoutingMethod::sqrt_softplus, 2);
  const Floats logits(8, 0.0f);
  expect_starts(error_of([&] {
                  weigh_given_experts_as(kernel, routing, logits, 4, Ids{0, 1, 2, 4});
                }),
                "given expert ids: token 1, slot 1 names expert 4, needs 0 to 3");
  expect_starts(error_of([&] {
                  weigh_given_experts_as(kernel, routing, logits, 4, Ids{0, 1});
                }),
                "given expert ids: 2 values, needs [2, 2]");
  expect_starts(error_of([&] {
                  weigh_given_experts_as(kernel, routing, Floats(7), 4, Ids{0, 1});
                }),
                "router logits: 7 values are not whole rows of 4 experts");
}

}  // namespace
}  // namespace moeref
