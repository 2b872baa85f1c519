// Routing against the slow implementation on MPFR, bit for bit.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/routing.hpp"
#include "engine/routing_scores.hpp"
#include "tests/judge/rounded_functions.hpp"
#include "tests/judge/routing_judge.hpp"

namespace moeref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// How the logits of a case are drawn.
enum class Draw {
  spread,
  bf16_grid,
  small_integers,
  equal,
  tiny,
  any_bits,
  huge,
  some_minus_infinity
};
constexpr Draw kDraws[] = {
    Draw::spread, Draw::bf16_grid, Draw::small_integers, Draw::equal,
    Draw::tiny,   Draw::any_bits,  Draw::huge,           Draw::some_minus_infinity};

class Source {
 public:
  explicit Source(std::uint64_t seed) : bits_(seed) {}
  std::uint64_t below(std::uint64_t count) { return bits_() % count; }
  /// Bell-shaped, about -8 to 8.
  float bell() {
    double sum = 0.0;
    for (int i = 0; i < 8; ++i) sum += static_cast<double>(bits_() >> 11) * 0x1p-53;
    return static_cast<float>((sum - 4.0) * 2.5);
  }
  float any_finite() {
    for (;;) {
      const float value = std::bit_cast<float>(static_cast<std::uint32_t>(bits_()));
      if (std::isfinite(value)) return value;
    }
  }
  float whole(int limit) {
    return static_cast<float>(static_cast<int>(below(2 * static_cast<unsigned>(limit) + 1)) -
                              limit);
  }

  float draw(Draw kind, float common) {
    switch (kind) {
      case Draw::spread:
        return bell();
      case Draw::bf16_grid:
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(bell()) & 0xFFFF0000u);
      case Draw::small_integers:
        return whole(3);
      case Draw::equal:
        return common;
      case Draw::tiny:  // sigmoid and two-way softmax pass close by midpoints around 1/2
        return whole(64) * 0x1p-24f;
      case Draw::any_bits:
        return any_finite();
      case Draw::huge:
        return below(3) == 0 ? whole(3) * 1e38f : whole(120);
      case Draw::some_minus_infinity:
        return below(3) == 0 ? -kInfinity : bell();
    }
    return 0.0f;
  }

  /// One row; at least one logit is finite.
  std::vector<float> row(Draw kind, std::int64_t experts) {
    const float common = bell();
    std::vector<float> logits;
    for (std::int64_t e = 0; e < experts; ++e) logits.push_back(draw(kind, common));
    const auto index = static_cast<std::size_t>(below(static_cast<std::uint64_t>(experts)));
    if (logits[index] == -kInfinity) logits[index] = common;
    return logits;
  }

 private:
  std::mt19937_64 bits_;
};

std::string hex(float value) {
  return fmt::format("{:08X} ({})", std::bit_cast<std::uint32_t>(value), value);
}

/// Compares every token of `route` with the judge's; returns the number of weights compared.
std::size_t expect_judged(const Routing& routing, const Route& route, std::span<const float> logits,
                          std::int64_t experts, std::span<const float> bias) {
  const auto top_k = static_cast<std::size_t>(routing.top_k);
  for (std::size_t token = 0; token < static_cast<std::size_t>(route.tokens); ++token) {
    const judge::TokenRoute expected =
        judge::route_token(routing,
                           logits.subspan(token * static_cast<std::size_t>(experts),
                                          static_cast<std::size_t>(experts)),
                           bias);
    for (std::size_t slot = 0; slot < top_k; ++slot) {
      EXPECT_EQ(route.ids[token * top_k + slot], expected.ids[slot])
          << "token " << token << " slot " << slot;
      EXPECT_EQ(hex(route.weights[token * top_k + slot]), hex(expected.weights[slot]))
          << "token " << token << " slot " << slot;
    }
  }
  return route.weights.size();
}

bool is_biased(RoutingMethod method) {
  return method == RoutingMethod::deepseek_v3 || method == RoutingMethod::minimax2 ||
         method == RoutingMethod::sqrt_softplus;
}

/// Keeps the judge's work on one routing the same for all widths.
std::int64_t tokens_for(std::int64_t experts) {
  return std::clamp<std::int64_t>(1500 / experts, 1, 40);
}

using MethodAndExperts = std::tuple<RoutingMethod, std::int64_t>;
class RoutingJudge : public testing::TestWithParam<MethodAndExperts> {};

/// All selections of one method and expert count: top_k, renormalisation, groups, fill, bias.
std::vector<Routing> routings_of(RoutingMethod method, std::int64_t experts) {
  std::vector<Routing> routings;
  for (const std::int64_t top_k : std::set<std::int64_t>{1, 2, 8, experts}) {
    if (top_k > experts) continue;
    Routing routing;
    routing.method = method;
    routing.top_k = top_k;
    routing.sum_epsilon = 1e-20f;
    routing.scaling = 2.5f;
    routings.push_back(routing);
    routing.renormalize = false;
    routing.scaling = 1.0f;
    routings.push_back(routing);
    if (method != RoutingMethod::deepseek_v3) continue;
    routing.renormalize = true;
    for (const std::int64_t groups : {std::int64_t{2}, std::int64_t{8}, experts}) {
      if (experts % groups != 0 || groups < 2) continue;
      routing.groups = groups;
      routing.kept_groups = (groups + 1) / 2;
      routing.mask_fill = MaskFill::zero;
      routings.push_back(routing);
      routing.mask_fill = MaskFill::minus_infinity;
      if (experts / groups * routing.kept_groups >= top_k) routings.push_back(routing);
    }
  }
  return routings;
}

TEST_P(RoutingJudge, AgreesBitForBit) {
  const auto [method, experts] = GetParam();
  Source source(20240 + 1000 * static_cast<std::uint64_t>(method) +
                static_cast<std::uint64_t>(experts));
  std::size_t compared = 0;
  for (const Routing& routing : routings_of(method, experts)) {
    for (const Draw kind : kDraws) {
      SCOPED_TRACE(fmt::format("draw {} top_k {} groups {} kept {} renormalize {} fill {}",
                               static_cast<int>(kind), routing.top_k, routing.groups,
                               routing.kept_groups, routing.renormalize,
                               static_cast<int>(routing.mask_fill)));
      std::vector<float> bias;
      if (is_biased(method) && source.below(4) != 0) {
        for (std::int64_t e = 0; e < experts; ++e) {
          // quarter steps make equal choice values and equal group sums; all negative half the time
          bias.push_back(source.whole(4) * 0.25f - (source.below(2) == 0 ? 2.0f : 0.0f));
        }
      }
      std::vector<float> logits;
      for (std::int64_t token = 0; token < tokens_for(experts); ++token) {
        const std::vector<float> row = source.row(kind, experts);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      if (method == RoutingMethod::topk_softmax && kind == Draw::some_minus_infinity &&
          routing.top_k == experts) {
        logits[0] = 0.5f;
      }
      const Route route = route_logits(routing, logits, experts, bias);
      compared += expect_judged(routing, route, logits, experts, bias);
      if (HasFailure()) return;
    }
  }
  EXPECT_GE(compared, experts == 1 ? 300u : 2000u);
}

TEST_P(RoutingJudge, AgreesOnGivenExperts) {
  const auto [method, experts] = GetParam();
  Source source(77 + 1000 * static_cast<std::uint64_t>(method) +
                static_cast<std::uint64_t>(experts));
  Routing routing;
  routing.method = method;
  routing.top_k = 4;  // also with fewer experts: some named twice
  if (experts < 4) routing.top_k = experts;
  routing.sum_epsilon = 1e-20f;
  routing.scaling = 1.5f;
  for (const Draw kind : {Draw::spread, Draw::bf16_grid, Draw::tiny, Draw::huge}) {
    std::vector<float> logits;
    std::vector<std::int32_t> ids;
    const std::int64_t tokens = experts > 100 ? 4 : 40;
    for (std::int64_t token = 0; token < tokens; ++token) {
      const std::vector<float> row = source.row(kind, experts);
      logits.insert(logits.end(), row.begin(), row.end());
      for (std::int64_t slot = 0; slot < routing.top_k; ++slot) {
        ids.push_back(
            static_cast<std::int32_t>(source.below(static_cast<std::uint64_t>(experts) + 1)) - 1);
      }
    }
    const Route route = weigh_given_experts(routing, logits, experts, ids);
    EXPECT_EQ(route.ids, ids);
    const auto width = static_cast<std::size_t>(experts);
    const auto top_k = static_cast<std::size_t>(routing.top_k);
    for (std::size_t token = 0; token < static_cast<std::size_t>(tokens); ++token) {
      const auto expected =
          judge::weigh_token(routing, std::span<const float>(logits).subspan(token * width, width),
                             std::span<const std::int32_t>(ids).subspan(token * top_k, top_k));
      for (std::size_t slot = 0; slot < top_k; ++slot) {
        EXPECT_EQ(hex(route.weights[token * top_k + slot]), hex(expected[slot]))
            << "draw " << static_cast<int>(kind) << " token " << token << " slot " << slot;
      }
    }
  }
}

constexpr std::string_view kMethodNames[] = {"softmax_topk", "topk_softmax", "deepseek_v3",
                                             "llama4",       "topk_logits",  "sigmoid_topk",
                                             "minimax2",     "sqrt_softplus"};

INSTANTIATE_TEST_SUITE_P(
    AllMethods, RoutingJudge,
    testing::Combine(testing::Values(RoutingMethod::softmax_topk, RoutingMethod::topk_softmax,
                                     RoutingMethod::deepseek_v3, RoutingMethod::llama4,
                                     RoutingMethod::topk_logits, RoutingMethod::sigmoid_topk,
                                     RoutingMethod::minimax2, RoutingMethod::sqrt_softplus),
                     testing::Values<std::int64_t>(1, 7, 8, 128, 256, 384)),
    [](const testing::TestParamInfo<MethodAndExperts>& instance) {
      return fmt::format("{}_e{}",
                         kMethodNames[static_cast<std::size_t>(std::get<0>(instance.param))],
                         std::get<1>(instance.param));
    });

/// The score of one logit, by the judge.
float judged_score(RoutingMethod method, float logit, float factor = 1.0f) {
  Routing routing;
  routing.method = method;
  routing.renormalize = false;
  routing.scaling = factor;
  return judge::route_token(routing, {&logit, 1}, {}).weights[0];
}

TEST(RoutingScores, SigmoidIsRoundedCorrectlyForThousandsOfLogits) {
  Source source(5);
  for (int i = 0; i < 20000; ++i) {
    const float logit = i % 2 == 0 ? source.bell() * 8.0f : source.any_finite();
    ASSERT_EQ(hex(sigmoid_times(logit, 1.0f)), hex(judged_score(RoutingMethod::llama4, logit)))
        << logit;
  }
}

TEST(RoutingScores, SigmoidNextToMidpointsIsRoundedCorrectly) {
  // sigma(z) = 1/2 + z/4 - z^3/48 + ...: odd multiples of 2^-24 below and of 2^-23 above 1/2 are
  // midpoints but for the cubic term.
  for (int odd = 1; odd < 2000; odd += 2) {
    for (const float logit :
         {static_cast<float>(odd) * 0x1p-23f, static_cast<float>(-odd) * 0x1p-24f}) {
      for (const float factor : {1.0f, 1.5f, 2.5f, 0x1.000002p0f}) {
        ASSERT_EQ(hex(sigmoid_times(logit, factor)),
                  hex(judged_score(RoutingMethod::llama4, logit, factor)))
            << odd << " * " << factor;
      }
    }
  }
}

TEST(RoutingScores, SqrtSoftplusIsRoundedCorrectlyForThousandsOfLogits) {
  Source source(6);
  for (int i = 0; i < 20000; ++i) {
    const float logit = i % 2 == 0 ? source.bell() * 16.0f : source.any_finite();
    ASSERT_EQ(hex(sqrt_softplus(logit)), hex(judge::sqrt_softplus(logit))) << logit;
  }
}

TEST(RoutingScores, SqrtSoftplusNextToMidpointsIsRoundedCorrectly) {
  // (2^25 - 1)^2 = (2^24 - 1) 2^26 + 1 and (2^24 + 1)^2 = (2^23 + 1) 2^25 + 1: the roots of these
  // 24-bit numbers lie within 2^-49 of midpoints.
  for (int exponent = -17; exponent <= 100; ++exponent) {
    for (const float significand : {0x1.fffffep0f, 0x1.000002p0f}) {
      const float logit = std::ldexp(significand, exponent);
      ASSERT_EQ(hex(sqrt_softplus(logit)), hex(judge::sqrt_softplus(logit))) << logit;
    }
  }
}

TEST(RoutingScores, ElementaryFunctionsAreRoundedCorrectlyForThousandsOfNumbers) {
  Source source(8);
  for (int i = 0; i < 20000; ++i) {
    const float x = i % 3 == 0   ? source.any_finite()
                    : i % 3 == 1 ? source.bell() * 12.0f
                                 : source.bell() * 0x1p-9f;
    ASSERT_EQ(hex(rounded_exp(x)), hex(judge::nearest_exp(x))) << x;
    ASSERT_EQ(hex(rounded_tanh(x)), hex(judge::nearest_tanh(x))) << x;
    const double size = std::fabs(static_cast<double>(x));
    ASSERT_EQ(hex(rounded_log1p(size)), hex(judge::nearest_log1p(size))) << x;
    // What is left of 1 + size in f32.
    const double rest = static_cast<double>(static_cast<float>(1.0 + size)) - 1.0;
    ASSERT_EQ(hex(rounded_log1p(rest)), hex(judge::nearest_log1p(rest))) << x;
  }
}

TEST(RoutingScores, ElementaryFunctionsAreRoundedCorrectlyNextToMidpoints) {
  // exp(z) = 1 + z + z^2/2: odd multiples of 2^-24 above and of 2^-25 below 0 are midpoints but for
  // the square. tanh(z) and log1p(z) lie within z^3/3 and z^2/2 of z.
  for (int odd = 1; odd < 4000; odd += 2) {
    for (const float x :
         {static_cast<float>(odd) * 0x1p-24f, static_cast<float>(-odd) * 0x1p-25f}) {
      ASSERT_EQ(hex(rounded_exp(x)), hex(judge::nearest_exp(x))) << odd;
    }
    for (int exponent = -140; exponent <= 2; exponent += 3) {
      const float x = std::ldexp(1.0f + static_cast<float>(odd) * 0x1p-23f, exponent);
      ASSERT_EQ(hex(rounded_tanh(x)), hex(judge::nearest_tanh(x))) << x;
      ASSERT_EQ(hex(rounded_log1p(static_cast<double>(x))),
                hex(judge::nearest_log1p(static_cast<double>(x))))
          << x;
    }
  }
}

TEST(RoutingScores, ElementaryFunctionsHaveTheirEnds) {
  EXPECT_EQ(rounded_exp(0.0f), 1.0f);
  EXPECT_EQ(rounded_exp(-kInfinity), 0.0f);
  EXPECT_EQ(rounded_exp(kInfinity), kInfinity);
  int ends = 0;  // 2^128 and 2^-150
  for (const float end : {0x1.62e43p+6f, -0x1.9fe368p+6f}) {
    float x = end * (1.0f - 0x1p-20f);
    for (int i = 0; i < 40; ++i, x = std::nextafter(x, end * 2.0f)) {
      EXPECT_EQ(hex(rounded_exp(x)), hex(judge::nearest_exp(x))) << x;
      ends += rounded_exp(x) == kInfinity || rounded_exp(x) == 0.0f ? 1 : 0;
    }
  }
  EXPECT_GT(ends, 20);
  EXPECT_LT(ends, 60);
  EXPECT_EQ(hex(rounded_tanh(-0.0f)), hex(-0.0f));
  EXPECT_EQ(rounded_tanh(-kInfinity), -1.0f);
  EXPECT_EQ(rounded_tanh(kInfinity), 1.0f);
  EXPECT_EQ(rounded_log1p(0.0), 0.0f);
  EXPECT_EQ(rounded_log1p(std::numeric_limits<double>::infinity()), kInfinity);
}

TEST(RoutingScores, SumsAreRoundedOnce) {
  EXPECT_EQ(hex(rounded_sum({})), hex(0.0f));
  EXPECT_EQ(hex(rounded_sum(std::vector<float>{-0.0f})), hex(0.0f));
  EXPECT_EQ(rounded_sum(std::vector<float>{1.0f, 0x1p-24f}), 1.0f);  // a tie
  EXPECT_EQ(rounded_sum(std::vector<float>{1.0f, 0x1p-24f, 0x1p-140f}), 0x1.000002p0f);
  EXPECT_EQ(rounded_sum(std::vector<float>{0x1p100f, 1.0f, -0x1p100f, 0x1p-149f}), 1.0f);
  EXPECT_EQ(rounded_sum(std::vector<float>{0x1p127f, 0x1p127f, -0x1p127f}), 0x1p127f);
  EXPECT_EQ(rounded_sum(std::vector<float>{0x1p127f, 0x1p127f}), kInfinity);
  EXPECT_EQ(rounded_sum(std::vector<float>{1.0f, -kInfinity}), -kInfinity);
  EXPECT_TRUE(std::isnan(rounded_sum(std::vector<float>{kInfinity, 1.0f, -kInfinity})));
}

TEST(RoutingScores, SharesAreDecidedAtTies) {
  // a * 1.5 / 2 with odd a lies on a midpoint.
  Source source(7);
  int ties = 0;
  for (int i = 0; i < 3000; ++i) {
    const float offset = static_cast<float>(source.below(1u << 22)) * 0x1p-23f;
    const std::vector<float> scores{1.0f + offset, 1.0f - offset};
    std::vector<float> out(2);
    ASSERT_TRUE(shares_times(scores, 0.0f, 1.5f, out));
    const double exact = static_cast<double>(scores[0]) * 1.5 / 2.0;
    const double half_ulp = std::ldexp(1.0, std::ilogb(exact) - 24);
    ties += std::fabs(static_cast<double>(out[0]) - exact) == half_ulp ? 1 : 0;
    const auto expected = judge::shares(scores, 0.0f, 1.5f);
    ASSERT_EQ(hex(out[0]), hex(expected[0]));
    ASSERT_EQ(hex(out[1]), hex(expected[1]));
  }
  EXPECT_GT(ties, 500);
}

TEST(RoutingScores, SharesUnderflowToEvenAndCountTheEpsilon) {
  const std::vector<std::vector<float>> cases{{0x1p-149f, 2.0f},      {0x3p-149f, 2.0f},
                                              {0x1p-149f, 0x1p-149f}, {0x1p-149f, 0x1.fffffep63f},
                                              {0x1p-100f, 0x1p-66f},  {0.0f, 0x1p-140f, 0x1p-149f}};
  for (const auto& scores : cases) {
    for (const float epsilon : {0.0f, 1e-20f}) {
      for (const float factor : {1.0f, 2.5f, 0x1p-64f, 3.4e38f}) {
        std::vector<float> out(scores.size());
        ASSERT_TRUE(shares_times(scores, epsilon, factor, out));
        const auto expected = judge::shares(scores, epsilon, factor);
        for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(hex(out[i]), hex(expected[i]));
      }
    }
  }
}

TEST(RoutingScores, SoftmaxNextToMidpointsIsRoundedCorrectly) {
  Routing routing;
  routing.method = RoutingMethod::topk_softmax;
  routing.top_k = 2;
  for (int odd = 1; odd < 1000; odd += 2) {
    for (const float unit : {0x1p-22f, 0x1p-23f, 0x1p-24f}) {
      for (const float factor : {1.0f, 1.5f}) {
        routing.scaling = factor;
        const std::vector<float> logits{0.0f, static_cast<float>(odd) * unit};
        const Route route = route_logits(routing, logits, 2, {});
        expect_judged(routing, route, logits, 2, {});
        if (HasFailure()) return;
      }
    }
  }
}

TEST(RoutingScores, SoftmaxOfEqualLogitsIsAnExactQuotient) {
  for (std::size_t count = 1; count <= 400; ++count) {
    for (const float factor : {1.0f, 2.5f, 0x1.fffffep-64f, 3.4e38f}) {
      std::vector<float> logits(count, -3.75f);
      logits.push_back(-kInfinity);
      std::vector<float> out(count + 1);
      softmax_times(logits, factor, out);
      const float expected =
          static_cast<float>(static_cast<double>(factor) / static_cast<double>(count));
      ASSERT_EQ(hex(out[0]), hex(expected)) << count;
      ASSERT_EQ(hex(out[count - 1]), hex(expected)) << count;
      ASSERT_EQ(hex(out[count]), hex(0.0f));
    }
  }
}

}  // namespace
}  // namespace moeref
