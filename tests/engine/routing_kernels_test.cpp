// Routing kernels on constructed tokens: ties, types, and what a kernel loses on the way.

#include "engine/routing_kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "quant/cast.hpp"
#include "tests/engine/routing_fixtures.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

Ids first_experts(std::int64_t count) {
  Ids ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

Ids ids_of(const RoutingKernel& kernel, const Routing& routing, const Floats& logits,
           const Floats& bias = {}) {
  return route_logits_as(kernel, routing, logits, std::ssize(logits), bias).ids;
}

Routing grouped(std::int64_t top_k, std::int64_t groups, std::int64_t kept) {
  Routing routing = make(RoutingMethod::deepseek_v3, top_k);
  routing.groups = groups;
  routing.kept_groups = kept;
  return routing;
}

/// A routing that the kernel takes for so many experts, or nothing.
std::optional<Routing> routing_for(const RoutingKernel& kernel, std::int64_t experts,
                                   std::int64_t top_k) {
  for (const std::int64_t groups : {1, 8}) {
    for (const bool renormalize : {true, false}) {
      Routing routing = make(kernel.methods.front(), top_k);
      routing.renormalize = renormalize;
      routing.groups = groups;
      routing.kept_groups = groups == 1 ? 1 : 4;
      const std::string error =
          error_of([&] { route_logits_as(kernel, routing, {}, experts, {}); });
      if (error == "no error") return routing;
    }
  }
  return std::nullopt;
}

// ------------------------------------------------------------------------------------ the table

TEST(RoutingKernels, AreDescribedAndFound) {
  std::set<std::string_view> names;
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    EXPECT_TRUE(names.insert(kernel.name).second) << kernel.name;
    for (const std::string_view text :
         {kernel.name, kernel.family, kernel.summary, kernel.source, kernel.evidence}) {
      EXPECT_FALSE(text.empty()) << kernel.name;
    }
    EXPECT_NE(kernel.source.find('@'), std::string_view::npos) << kernel.name;
    EXPECT_FALSE(kernel.methods.empty()) << kernel.name;
    EXPECT_FALSE(kernel.logit_types.empty()) << kernel.name;
    EXPECT_EQ(kernel.logits, kernel.logit_types.front()) << kernel.name;
    EXPECT_EQ(kernel.arithmetic, RoutingArithmetic::rounded) << kernel.name;
    EXPECT_EQ(kernel.replays.empty(), kernel.replay_evidence.empty()) << kernel.name;
    if (kernel.ties == TieRule::unspecified) {
      EXPECT_FALSE(kernel.open.empty()) << kernel.name;
    }
    EXPECT_EQ(find_routing_kernel(kernel.name).name, kernel.name);
    for (const RoutingArithmetic level : kernel.replays) {
      EXPECT_EQ(with_arithmetic(kernel, level).arithmetic, level);
    }
  }
}

// ----------------------------------------------------------------------------------------- ties

TEST(RoutingKernels, TakeTheLowerIndexOfEqualLogits) {
  std::size_t cases = 0;
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (!kernel.selects || kernel.ties == TieRule::reversed_lanes) continue;
    for (const std::int64_t experts : {128, 256, 384, 200}) {
      for (const std::int64_t top_k : {1, 8}) {
        const auto routing = routing_for(kernel, experts, top_k);
        if (!routing) continue;
        const Floats logits(static_cast<std::size_t>(experts), 0.75f);
        EXPECT_EQ(ids_of(kernel, *routing, logits), first_experts(top_k)) << kernel.name;
        ++cases;
      }
    }
  }
  EXPECT_GT(cases, 60u);
}

TEST(RoutingKernels, OfSmallBatchesTakeTheLowestReversedLane) {
  const RoutingKernel& kernel = find_routing_kernel("sglang_jit_sqrtsoftplus_gate_small");
  const Routing routing = make(RoutingMethod::sqrt_softplus, 8);
  EXPECT_EQ(ids_of(kernel, routing, Floats(256, 1.0f)), (Ids{0, 16, 8, 24, 4, 20, 12, 28}));
  // Experts 1 and 16 share a warp, 40 and 200 do not: 0b00001 reversed is 16, 0b10000 is 1; of the
  // warps 1 and 6, reversed 16 and 12, the second wins.
  Floats logits(256, -1.0f);
  for (const std::size_t e : {1u, 16u}) logits[e] = 3.0f;
  for (const std::size_t e : {40u, 200u}) logits[e] = 2.0f;
  EXPECT_EQ(ids_of(kernel, make(RoutingMethod::sqrt_softplus, 4), logits), (Ids{16, 1, 200, 40}));
  EXPECT_EQ(ids_of(find_routing_kernel("sglang_jit_sqrtsoftplus_gate"),
                   make(RoutingMethod::sqrt_softplus, 4), logits),
            (Ids{1, 16, 40, 200}));
}

TEST(RoutingKernels, KeepTheLowerOfGroupsWithEqualSums) {
  // Every group holds 2 and 1, in another place; group 5 is better, group 2 worse.
  constexpr std::size_t kWidth = 32;
  Floats logits(256, -4.0f);
  for (std::size_t g = 0; g < 8; ++g) {
    logits[g * kWidth + (g * 5 + 1) % kWidth] = g == 5 ? 3.0f : 2.0f;
    logits[g * kWidth + (g * 11 + 4) % kWidth] = g == 2 ? 0.0f : 1.0f;
  }
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (kernel.group_score != GroupScore::top2_sum) continue;
    for (const Format type : kernel.logit_types) {
      const Ids ids = ids_of(with_logits(kernel, type), grouped(8, 8, 4), logits);
      std::set<std::size_t> groups;
      for (const std::int32_t id : ids) groups.insert(static_cast<std::size_t>(id) / kWidth);
      EXPECT_EQ(groups, (std::set<std::size_t>{0, 1, 3, 5})) << kernel.name;
      EXPECT_EQ(static_cast<std::size_t>(ids[0]), 5 * kWidth + 26) << kernel.name;
      // Of the three logits of 2, those of the lower groups come first.
      const Ids twos{1, kWidth + 6, 3 * kWidth + 16};
      EXPECT_TRUE(std::equal(twos.begin(), twos.end(), ids.begin() + 1)) << kernel.name;
    }
  }
}

TEST(RoutingKernels, WithKeysPutPlusZeroBeforeMinusZero) {
  Floats logits(128, -1.0f);
  logits[3] = -0.0f;
  logits[70] = 0.0f;
  const struct {
    std::string_view name;
    RoutingMethod method;
    Ids ids;
  } cases[] = {
      {"flashinfer_trtllm_renormalize", RoutingMethod::topk_softmax, {70, 3}},
      {"flashinfer_trtllm_topk", RoutingMethod::topk_logits, {70, 3}},
      {"triton_kernels_topk", RoutingMethod::topk_softmax, {3, 70}},  // listed by expert
      {"sglang_raw_logits_topk", RoutingMethod::topk_softmax, {3, 70}},
      {"sgl_topk_softmax", RoutingMethod::topk_softmax, {3, 70}},
  };
  for (const auto& [name, method, ids] : cases) {
    EXPECT_EQ(ids_of(find_routing_kernel(name), make(method, 2), logits), ids) << name;
  }
  EXPECT_EQ(ids_of(find_routing_kernel("triton_kernels_topk"), make(RoutingMethod::topk_softmax, 1),
                   logits),
            (Ids{70}));
}

TEST(RoutingKernels, OfLlama4CompareWithinALaneBeforeTheyCompareKeys) {
  const RoutingKernel& kernel = find_routing_kernel("flashinfer_trtllm_llama4");
  const Routing routing = make(RoutingMethod::llama4, 1);
  Floats logits(128, -1.0f);
  logits[3] = -0.0f;
  logits[70] = 0.0f;  // lane 6
  EXPECT_EQ(ids_of(kernel, routing, logits), (Ids{70}));
  logits[70] = -1.0f;
  logits[67] = 0.0f;  // lane 3: 0 is no more than -0
  EXPECT_EQ(ids_of(kernel, routing, logits), (Ids{3}));
}

// --------------------------------------------------------------------------------------- sigmoids

TEST(RoutingKernels, WithTanhTieTheLowestLogits) {
  // tanh(x / 2) rounds to -1 below about -18: the score is 0 there, the true sigmoid 1e-9 and less.
  Floats logits(32, -25.0f);
  logits[5] = -18.5f;
  logits[9] = -19.0f;
  const Routing routing = make(RoutingMethod::sigmoid_topk, 2);
  Routing plain = routing;
  plain.renormalize = false;
  const Route tanh =
      route_logits_as(find_routing_kernel("flashinfer_trtllm_sigmoid"), plain, logits, 32, {});
  EXPECT_EQ(tanh.ids, (Ids{0, 1}));
  EXPECT_EQ(tanh.weights, (Floats{0.0f, 0.0f}));
  EXPECT_EQ(ids_of(find_routing_kernel("sgl_topk_sigmoid"), plain, logits), (Ids{5, 9}));
  // Its divisor is at least 1e-20.
  const Route shares = route_logits_as(find_routing_kernel("flashinfer_trtllm_sigmoid_renorm"),
                                       routing, logits, 32, {});
  EXPECT_EQ(shares.weights, (Floats{0.0f, 0.0f}));
}

TEST(RoutingKernels, OfTopkSigmoidLoseWhatTheBiasRoundsAway) {
  const RoutingKernel& kernel = find_routing_kernel("sgl_topk_sigmoid");
  Routing routing = make(RoutingMethod::sigmoid_topk, 2);
  routing.renormalize = false;
  const Floats logits{1.0f, 0.0f, -1.0f, -2.0f};
  const float exact = 0x1.764d4ep-1f;  // sigmoid(1), and the two steps of 1 / (1 + 1/e)
  const Route unbiased = route_logits_as(kernel, routing, logits, 4, {});
  EXPECT_EQ(unbiased.ids, (Ids{0, 1}));
  EXPECT_NEAR(unbiased.weights[0], exact, 1e-6f);

  // 100.731 has 17 bits behind the point: the weight is a multiple of 2^-17.
  const Route biased = route_logits_as(kernel, routing, logits, 4, Floats(4, 100.0f));
  EXPECT_EQ(biased.weights[0], std::nearbyint(unbiased.weights[0] * 0x1p17f) * 0x1p-17f);
  EXPECT_NE(biased.weights[0], unbiased.weights[0]);
  EXPECT_EQ(biased.weights[1], 0.5f);

  // At 2^24 the score is 0 or 2, and ties go by index: the order is lost too.
  const Route lost =
      route_logits_as(kernel, routing, Floats{-2.0f, 0.0f, 1.0f, -1.0f}, 4, Floats(4, 0x1p24f));
  EXPECT_EQ(lost.ids, (Ids{0, 1}));
  EXPECT_EQ(lost.weights, (Floats{0.0f, 0.0f}));

  // A kernel that looks the score up again loses nothing.
  Routing shares = make(RoutingMethod::minimax2, 2);
  const Floats bias(4, 100.0f);
  const Route kept =
      route_logits_as(find_routing_kernel("sglang_jit_grouped_topk"), shares, logits, 4, bias);
  const Route trapped = route_logits_as(kernel, shares, logits, 4, bias);
  EXPECT_NE(kept.weights, trapped.weights);
}

// ------------------------------------------------------------------------------------------ types

TEST(RoutingKernels, OfFusedGateScoreAndAddInTheLogitsType) {
  // In bf16 the sigmoids of 7 and 8 are both 1.
  const RoutingKernel& f32 = find_routing_kernel("sgl_moe_fused_gate");
  const Floats logits{1.0f, 2.0f, 7.0f, 8.0f, 0.0f, -1.0f, 0.5f, 0.25f};
  Routing routing = grouped(2, 1, 1);
  EXPECT_EQ(ids_of(f32, routing, logits), (Ids{3, 2}));
  const RoutingKernel bf16 = with_logits(f32, Format::bf16);
  EXPECT_EQ(ids_of(bf16, routing, logits), (Ids{2, 3}));
  EXPECT_EQ(ids_of(with_logits(f32, Format::f16), routing, logits), (Ids{3, 2}));
  // bf16(0.5 + 2^-9) is 0.5: the bias that tells expert 4 from the others is lost.
  Floats bias(8, 0.0f);
  bias[5] = 0x1p-9f;
  EXPECT_EQ(ids_of(bf16, grouped(1, 1, 1), Floats(8, 0.0f), bias), (Ids{0}));
  EXPECT_EQ(ids_of(f32, grouped(1, 1, 1), Floats(8, 0.0f), bias), (Ids{5}));
}

TEST(RoutingKernels, OfDeepSeekRoundTheBiasToBf16OnlyWithGroups) {
  Floats bias(64, 1.0f);
  bias[40] = 1.0f + 0x1p-10f;  // bf16: 1
  const Floats logits(64, 0.0f);
  EXPECT_EQ(
      ids_of(find_routing_kernel("flashinfer_trtllm_deepseek_v3"), grouped(1, 4, 2), logits, bias),
      (Ids{0}));
  for (const std::string_view name :
       {"flashinfer_trtllm_deepseek_v3_one_group", "flashinfer_fused_topk_deepseek_one_group"}) {
    EXPECT_EQ(ids_of(find_routing_kernel(name), grouped(1, 1, 1), logits, bias), (Ids{40})) << name;
  }
  EXPECT_EQ(
      ids_of(find_routing_kernel("flashinfer_fused_topk_deepseek"), grouped(1, 4, 2), logits, bias),
      (Ids{40}));
}

TEST(RoutingKernels, StoreWeightsInTheirType) {
  const Floats logits = [] {
    Floats drawn = grid_logits(8, 128, 5);
    for (float& z : drawn) z *= 0.53125f;
    return drawn;
  }();
  for (const RoutingKernel& base : all_routing_kernels()) {
    const auto routing = routing_for(base, 128, base.lanes_first ? 1 : 4);
    if (!base.selects || !routing) continue;
    for (const Format type : base.logit_types) {
      Floats typed = logits;
      if (type == Format::bf16) {
        for (float& z : typed) z = cast<Format::bf16>(z);
      }
      if (type == Format::f16) {
        for (float& z : typed) z = cast<Format::f16>(z);
      }
      const Route route = route_logits_as(with_logits(base, type), *routing, typed, 128, {});
      const bool bf16 = base.output_type == ValueType::bf16 ||
                        (base.output_type == ValueType::of_logits && type == Format::bf16);
      const bool f16 = base.output_type == ValueType::of_logits && type == Format::f16;
      std::size_t narrow = 0;
      for (const float w : route.weights) {
        const bool stored = bf16  ? cast<Format::bf16>(w) == w
                            : f16 ? cast<Format::f16>(w) == w
                                  : true;
        EXPECT_TRUE(stored) << base.name << " " << w;
        narrow += cast<Format::bf16>(w) == w ? 1 : 0;
      }
      // One in 2^16 f32 numbers is one of bf16 (logits themselves and scores in their type aside).
      if (!bf16 && !f16 && base.score_type == ValueType::f32) {
        EXPECT_LT(narrow, route.weights.size() / 2) << base.name;
      }
    }
  }
}

TEST(RoutingKernels, OfFusedTopkDeepseekDivideInF64) {
  // In f32, (s * 2.5) / (sum + 1e-20) rounds three times; in f64 once is left.
  const RoutingKernel& wide = find_routing_kernel("flashinfer_fused_topk_deepseek_one_group");
  RoutingKernel narrow = wide;
  narrow.share = ShareForm::scaled_first;
  Routing routing = grouped(8, 1, 1);
  routing.scaling = 2.5f;
  Floats logits = grid_logits(50, 128, 11);
  const Route a = route_logits_as(wide, routing, logits, 128, {});
  const Route b = route_logits_as(narrow, routing, logits, 128, {});
  EXPECT_EQ(a.ids, b.ids);
  std::size_t differ = 0;
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    const auto x = std::bit_cast<std::int32_t>(a.weights[i]);
    const auto y = std::bit_cast<std::int32_t>(b.weights[i]);
    EXPECT_LE(std::abs(x - y), 2);
    differ += x != y ? 1 : 0;
  }
  EXPECT_GT(differ, a.weights.size() / 10);
}

// ------------------------------------------------------------------------------------ properties

TEST(RoutingKernels, CarryOutTheReferenceBitForBit) {
  std::size_t cases = 0;
  for (const RoutingMethod method : kAllMethods) {
    for (const bool renormalize : {true, false}) {
      for (const MaskFill fill : {MaskFill::minus_infinity, MaskFill::zero}) {
        Routing routing = full_routing(method);
        routing.renormalize = renormalize;
        routing.mask_fill = fill;
        const Floats bias = full_bias(method);
        for (std::uint64_t seed = 1; seed <= 6; ++seed) {
          Floats logits = grid_logits(20, 16, seed);
          if (seed % 2 == 0) {
            for (std::size_t i = 0; i < logits.size(); ++i) {
              logits[i] += 1e-3f * static_cast<float>(i % 37);
            }
          }
          const Route expected = route_logits(routing, logits, 16, bias);
          const Route route =
              route_logits_as(reference_routing_kernel(routing), routing, logits, 16, bias);
          EXPECT_TRUE(same_bytes(expected, route)) << name(method);
          ++cases;
        }
      }
    }
  }
  EXPECT_EQ(cases, 8u * 2 * 2 * 6);
}

/// Away from ties, kernels for f32 logits choose what the reference chooses.
TEST(RoutingKernels, ChooseAsTheReferenceWhereNothingIsNear) {
  constexpr std::int64_t kExperts = 256;
  std::size_t tokens = 0;
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    if (!kernel.selects) continue;
    // A softmax and groups by their largest are no method of the reference.
    if (kernel.group_score == GroupScore::largest) continue;
    for (const std::int64_t experts :
         {kExperts, kExperts / 2, std::int64_t{384}, std::int64_t{240}}) {
      const std::int64_t top_k = kernel.lanes_first ? 1 : 8;
      const auto routing = routing_for(kernel, experts, top_k);
      if (!routing) continue;
      // The values are 1/16 apart, in another order for each token.
      constexpr std::int64_t kPrimes[] = {7, 11, 13, 17, 19, 23, 29, 31, 37, 41};
      Floats logits;
      for (const std::int64_t prime : kPrimes) {
        for (std::int64_t e = 0; e < experts; ++e) {
          const std::int64_t rank = (e * prime + 5) % experts;
          logits.push_back(3.0f - 0.0625f * static_cast<float>(rank));
        }
      }
      const Route route = route_logits_as(kernel, *routing, logits, experts, {});
      Route expected = route_logits(*routing, logits, experts, {});
      const auto k = static_cast<std::size_t>(top_k);
      for (std::size_t t = 0; t < 10; ++t) {
        Ids mine(&route.ids[t * k], &route.ids[t * k] + k);
        Ids theirs(&expected.ids[t * k], &expected.ids[t * k] + k);
        std::sort(mine.begin(), mine.end());
        std::sort(theirs.begin(), theirs.end());
        EXPECT_EQ(mine, theirs) << kernel.name << " of " << experts << " token " << t;
        ++tokens;
      }
    }
  }
  EXPECT_GT(tokens, 400u);
}

TEST(RoutingKernels, DoNotDependOnThreadsOrOtherTokens) {
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    const std::int64_t experts = 256;
    const auto routing = routing_for(kernel, experts, kernel.lanes_first ? 1 : 8);
    if (!kernel.selects || !routing) continue;
    const Floats logits = grid_logits(9, experts, 3);
    const Route one = route_logits_as(kernel, *routing, logits, experts, {}, 1);
    EXPECT_TRUE(same_bytes(one, route_logits_as(kernel, *routing, logits, experts, {}, 4)))
        << kernel.name;
    const auto width = static_cast<std::size_t>(experts);
    const auto k = static_cast<std::size_t>(routing->top_k);
    for (std::size_t t = 0; t < 9; ++t) {
      const std::span row = std::span(logits).subspan(t * width, width);
      const Route alone = route_logits_as(kernel, *routing, row, experts, {});
      EXPECT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(), &one.ids[t * k])) << kernel.name;
      EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), &one.weights[t * k]));
    }
  }
}

TEST(RoutingKernels, WeighGivenExpertsAsTheyWeighChosenOnes) {
  for (const RoutingKernel& kernel : all_routing_kernels()) {
    const std::int64_t experts = 256;
    const auto routing = routing_for(kernel, experts, kernel.lanes_first ? 1 : 8);
    if (!kernel.selects || !routing) continue;
    const Floats logits = grid_logits(5, experts, 8);
    const Route chosen = route_logits_as(kernel, *routing, logits, experts, {});
    const Route weighed = weigh_given_experts_as(kernel, *routing, logits, experts, chosen.ids);
    EXPECT_TRUE(same_bytes(chosen, weighed)) << kernel.name;
  }
  const RoutingKernel& hash = find_routing_kernel("sglang_jit_hash_topk");
  const Route route = weigh_given_experts_as(hash, make(RoutingMethod::sqrt_softplus, 3),
                                             Floats{0, 1, 2, 3}, 4, Ids{2, -1, 2});
  EXPECT_EQ(route.ids, (Ids{2, -1, 2}));
  EXPECT_EQ(route.weights, (Floats{0.5f, 0.0f, 0.5f}));
}

// ---------------------------------------------------------------------------------------- packed

TEST(PackRoute, PutsTheExpertAboveABf16Weight) {
  const Route route{2, 2, {3, 300, -1, 0}, {1.0f, 0.33333334f, 0.0f, -0.5f}};
  const std::vector<std::uint32_t> words = pack_route(route);
  EXPECT_EQ(words,
            (std::vector<std::uint32_t>{0x00033F80u, 0x012C3EABu, 0xFFFF0000u, 0x0000BF00u}));
  const Route back = unpack_route(words, 2);
  EXPECT_EQ(back.tokens, 2);
  EXPECT_EQ(back.ids, route.ids);
  EXPECT_EQ(back.weights, (Floats{1.0f, 0.333984375f, 0.0f, -0.5f}));
  EXPECT_EQ(error_of([&] { unpack_route(words, 3); }),
            "packed routing: 4 words are not whole tokens of 3 slots");
}

}  // namespace
}  // namespace moeref
