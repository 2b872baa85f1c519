// Every routing kernel of the table against its judge, bit for bit.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/routing_kernels.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/engine/routing_fixtures.hpp"
#include "tests/judge/routing_kernel_judge.hpp"

namespace moeref {
namespace {

using namespace routing_tests;

struct Sizes {
  std::int64_t experts;
  std::int64_t top_k;
  std::int64_t groups = 1;
  std::int64_t kept_groups = 1;
};

/// Each kernel takes at least two of them.
constexpr Sizes kSizes[] = {
    {8, 2},          {16, 4, 4, 2}, {24, 5, 3, 2},  {32, 1},   {60, 6},        {128, 8, 4, 3},
    {128, 4},        {160, 8},      {200, 7, 4, 2}, {240, 6},  {256, 8, 8, 4}, {256, 8},
    {256, 5, 16, 4}, {384, 8},      {384, 1},       {512, 12}, {640, 9},       {1024, 16, 32, 8},
};

enum class Draw { bell, grid, equal, low, tiny, spread, steep };
constexpr Draw kDraws[] = {Draw::bell, Draw::grid,   Draw::equal, Draw::low,
                           Draw::tiny, Draw::spread, Draw::steep};

class Source {
 public:
  explicit Source(std::uint64_t seed) : bits_(seed) {}
  double uniform() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }
  float bell() {
    double sum = 0.0;
    for (int i = 0; i < 6; ++i) sum += uniform();
    return static_cast<float>((sum - 3.0) * 2.5);
  }
  float draw(Draw kind, float common) {
    switch (kind) {
      case Draw::bell:
        return bell();
      case Draw::grid: {  // many ties, zeros of both signs
        const auto step = static_cast<float>(static_cast<int>(bits_() % 9) - 4);
        return step == 0.0f && bits_() % 2 == 0 ? -0.0f : step * 0.5f;
      }
      case Draw::equal:
        return common;
      case Draw::low:  // sigmoids that round to 0, or nearly
        return -30.0f + 3.0f * bell();
      case Draw::tiny:
        return bell() * 0x1p-12f;
      case Draw::spread:
        return bell() * 12.0f;
      case Draw::steep:  // exp of most differences is 0
        return bell() * 60.0f;
    }
    return 0.0f;
  }

 private:
  std::mt19937_64 bits_;
};

Floats draw_logits(std::int64_t tokens, std::int64_t experts, Draw kind, Format type,
                   std::uint64_t seed) {
  Source source(seed);
  Floats logits;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float common = source.bell();
    for (std::int64_t e = 0; e < experts; ++e) {
      logits.push_back(judge::to_type(type, source.draw(kind, common)));
    }
  }
  return logits;
}

Floats draw_bias(std::int64_t experts, int kind) {
  Source source(7);
  Floats bias;
  for (std::int64_t e = 0; e < experts; ++e) {
    const float factor = kind == 1 ? 0.05f : 3.0f;
    bias.push_back(kind == 2 ? source.draw(Draw::grid, 0.0f) + 2.5f : source.bell() * factor);
  }
  return bias;
}

std::string hex(float value) {
  return fmt::format("{:08X} ({})", std::bit_cast<std::uint32_t>(value), value);
}

/// Whether the kernel takes these sizes and options at all.
bool takes(const RoutingKernel& kernel, const Routing& routing, std::int64_t experts) {
  try {
    Route none = kernel.selects ? route_logits_as(kernel, routing, {}, experts, {})
                                : weigh_given_experts_as(kernel, routing, {}, experts, {});
    return none.tokens == 0;
  } catch (const Error&) {
    return false;
  }
}

struct Compared {
  std::size_t cases = 0;
  std::size_t refused = 0;
};

/// Compares `tokens` drawn tokens with the judge.
void compare(const RoutingKernel& kernel, const Routing& routing, const Sizes& sizes, Draw draw,
             const Floats& bias, Compared& compared) {
  constexpr std::int64_t kTokens = 2;
  ++compared.cases;
  const Floats logits = draw_logits(kTokens, sizes.experts, draw, kernel.logits,
                                    static_cast<std::uint64_t>(sizes.experts + sizes.top_k));
  Ids given;
  for (std::int64_t i = 0; i < kTokens * sizes.top_k; ++i) {
    given.push_back(static_cast<std::int32_t>((i * 7 + 3) % sizes.experts));
  }
  Route route;
  try {
    route = kernel.selects ? route_logits_as(kernel, routing, logits, sizes.experts, bias)
                           : weigh_given_experts_as(kernel, routing, logits, sizes.experts, given);
  } catch (const Error&) {
    ++compared.refused;
    return;
  }
  const auto width = static_cast<std::size_t>(sizes.experts);
  const auto top_k = static_cast<std::size_t>(sizes.top_k);
  for (std::size_t t = 0; t < static_cast<std::size_t>(kTokens); ++t) {
    judge::GateInput input;
    input.type = kernel.logits;
    input.logits = std::span(logits).subspan(t * width, width);
    input.bias = bias;
    input.top_k = routing.top_k;
    input.groups = routing.groups;
    input.kept_groups = routing.kept_groups;
    const bool always = routing.method != RoutingMethod::softmax_topk &&
                        routing.method != RoutingMethod::deepseek_v3 &&
                        routing.method != RoutingMethod::sigmoid_topk;
    input.renormalize = always || routing.renormalize;
    input.scaling = routing.scaling;
    input.level = kernel.arithmetic;
    input.unrounded = kernel.output_type != find_routing_kernel(kernel.name).output_type;
    if (!kernel.selects) input.given = std::span(given).subspan(t * top_k, top_k);
    const judge::TokenRoute expected = judge::route_token_as(kernel.name, input);
    for (std::size_t k = 0; k < top_k; ++k) {
      const std::size_t i = t * top_k + k;
      ASSERT_EQ(route.ids[i], expected.ids[k]) << "token " << t << " slot " << k;
      ASSERT_EQ(hex(route.weights[i]), hex(expected.weights[k])) << "token " << t << " slot " << k;
    }
  }
}

class RoutingKernelJudge : public testing::TestWithParam<std::string> {};

/// Every draw, type and level for one size; scaling and bias change from draw to draw.
void compare_all(const RoutingKernel& base, const Routing& routing, const Sizes& sizes,
                 Compared& compared) {
  std::vector<RoutingArithmetic> levels = base.replays;
  levels.push_back(RoutingArithmetic::rounded);
  int count = 0;
  for (const Format type : base.logit_types) {
    for (const RoutingArithmetic level : levels) {
      const RoutingKernel kernel = with_arithmetic(with_logits(base, type), level);
      for (const Draw draw : kDraws) {
        Routing scaled = routing;
        constexpr float kScalings[] = {1.0f, 2.5f, 1.3f};
        scaled.scaling = kScalings[count % 3];
        if (!takes(kernel, scaled, sizes.experts)) scaled.scaling = 1.0f;
        const int bias_kind = kernel.bias == BiasUse::none ? 0 : (count + count / 4) % 4;
        ++count;
        SCOPED_TRACE(fmt::format(
            "{} experts, top {}, {} of {} groups, {}, renormalize {}, scaling {}, {}, level {}, "
            "draw {}, bias {}",
            sizes.experts, sizes.top_k, sizes.kept_groups, sizes.groups, name(routing.method),
            routing.renormalize, scaled.scaling, name(type), static_cast<int>(level),
            static_cast<int>(draw), bias_kind));
        const Floats bias = bias_kind == 0 ? Floats{} : draw_bias(sizes.experts, bias_kind);
        compare(kernel, scaled, sizes, draw, bias, compared);
        if (kernel.output_type != ValueType::bf16 || type != Format::f32) continue;
        // What bf16 hides.
        RoutingKernel unrounded = kernel;
        unrounded.output_type = ValueType::f32;
        compare(unrounded, scaled, sizes, draw, bias, compared);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(RoutingKernelJudge, AgreesBitForBit) {
  const RoutingKernel& kernel = find_routing_kernel(GetParam());
  Compared compared;
  std::size_t accepted = 0;
  for (const Sizes& sizes : kSizes) {
    for (const RoutingMethod method : kernel.methods) {
      for (const bool renormalize : {true, false}) {
        Routing routing = make(method, sizes.top_k);
        routing.groups = sizes.groups;
        routing.kept_groups = sizes.kept_groups;
        routing.renormalize = renormalize;
        if (!takes(kernel, routing, sizes.experts)) continue;
        ++accepted;
        compare_all(kernel, routing, sizes, compared);
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GE(accepted, 2u);
  EXPECT_GE(compared.cases, 20u);
  // A few draws are refused: scores that are all 0, choice values that mark what is out.
  EXPECT_LE(compared.refused * 5, compared.cases);
}

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  for (const RoutingKernel& kernel : all_routing_kernels()) names.emplace_back(kernel.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Table, RoutingKernelJudge, testing::ValuesIn(all_names()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace moeref
