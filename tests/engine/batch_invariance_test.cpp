#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/moe.hpp"
#include "layout/backend.hpp"
#include "quant/quantize.hpp"
#include "simd/kernels.hpp"
#include "tests/support/backend_case.hpp"
#include "tests/support/error_of.hpp"

// The output of a token and its rows in every stage depend on nothing but the token, except where
// the kernel itself takes in the others: a scale of the whole tensor, or a launch that the number
// of tokens chooses.

namespace moeref {
namespace {

using testing::BackendCase;
using testing::BackendLevel;
using testing::HiddenStates;
using testing::LayerRequest;
using testing::make_case;

constexpr std::int64_t kTokens = 36;  // more than Triton's 32

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// The bytes of each token: its output, and its rows of every stage.
using TokenBytes = std::vector<std::map<std::string, std::vector<std::byte>>>;

/// Local slots by expert, then by token: the rows of RowOrder::by_expert.
std::vector<std::int64_t> slots_by_expert(const BackendCase& made, const Route& route) {
  std::vector<std::int64_t> slots;
  const MoeLayer& layer = made.kernel.layer;
  for (std::int64_t e = 0; e < layer.local_experts(); ++e) {
    for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
      if (route.ids[slot] == layer.first_expert + e) {
        slots.push_back(static_cast<std::int64_t>(slot));
      }
    }
  }
  return slots;
}

TokenBytes by_token(const BackendCase& made, const Numerics& numerics, const Route& route,
                    const ForwardResult& result) {
  TokenBytes tokens(at(route.tokens));
  const auto add = [&](std::int64_t token, const std::string& name, const std::byte* from,
                       std::size_t count) {
    auto& bytes = tokens[at(token)][name];
    bytes.insert(bytes.end(), from, from + count);
  };
  const std::vector<std::int64_t> by_expert = slots_by_expert(made, route);
  for (const Stage& stage : result.stages) {
    const Tensor& tensor = stage.tensor;
    const bool sorted =
        numerics.rows == RowOrder::by_expert &&
        std::set<std::string>{"gemm1", "act", "a2_q", "a2_s", "gemm2"}.contains(stage.name);
    if (tensor.shape == Shape{1} && stage.name.ends_with("_s")) continue;  // of the whole tensor
    if (!sorted) {
      EXPECT_EQ(tensor.shape[0], route.tokens) << stage.name;
      const std::size_t count = tensor.bytes.size() / at(route.tokens);
      for (std::int64_t t = 0; t < route.tokens; ++t) {
        add(t, stage.name, tensor.bytes.data() + at(t) * count, count);
      }
      continue;
    }
    EXPECT_EQ(tensor.shape[0], std::ssize(by_expert)) << stage.name;
    const std::size_t count = tensor.bytes.size() / std::max<std::size_t>(by_expert.size(), 1);
    std::vector<std::size_t> row_of(route.ids.size(), by_expert.size());
    for (std::size_t row = 0; row < by_expert.size(); ++row) row_of[at(by_expert[row])] = row;
    for (std::size_t slot = 0; slot < row_of.size(); ++slot) {
      if (row_of[slot] == by_expert.size()) continue;
      add(static_cast<std::int64_t>(slot) / route.top_k, stage.name,
          tensor.bytes.data() + row_of[slot] * count, count);
    }
  }
  const std::size_t width = result.output.size() / at(route.tokens);
  for (std::int64_t t = 0; t < route.tokens; ++t) {
    add(t, "final", reinterpret_cast<const std::byte*>(result.output.data() + at(t) * width),
        width * sizeof(float));
  }
  return tokens;
}

class BatchInvariance : public ::testing::TestWithParam<BackendLevel> {
 protected:
  BackendCase make(std::int64_t top_k = 2, std::int64_t tokens = kTokens) const {
    LayerRequest wanted = testing::usual_layer(*GetParam().backend, GetParam().level);
    wanted.tokens = tokens;
    wanted.top_k = top_k;
    return make_case(*GetParam().backend, wanted);
  }
  static TokenBytes run(const BackendCase& made, const std::vector<std::int64_t>& tokens) {
    const HiddenStates hidden = made.hidden.picked(tokens);
    const Route route = testing::picked(made.route, tokens);
    return by_token(made, made.numerics(), route, made.run(hidden, route));
  }
  /// Its quantizers take in all rows.
  static bool mixes_tokens(const BackendCase& made) {
    const Numerics numerics = made.numerics();
    const auto mixes = [](const ActivationQuantizer& use) {
      if (!use) return false;
      const Quantizer& found = find_quantizer(use.quantizer);
      const QuantizePlan plan =
          found.plan(parse_options(found.name, found.options, use.options), Format::bf16);
      const bool whole = plan.form.block_rows == 0 && plan.form.global != GlobalScaleOf::given;
      return whole || plan.form.global == GlobalScaleOf::tensor;
    };
    return mixes(numerics.input) || mixes(numerics.intermediate);
  }
};

std::vector<std::int64_t> range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> all(at(end - begin));
  std::iota(all.begin(), all.end(), begin);
  return all;
}

TEST_P(BatchInvariance, OrderAndSplitOfTheBatchChangeNoToken) {
  const BackendCase made = make();
  if (mixes_tokens(made)) GTEST_SKIP() << "a scale of the whole tensor";
  const TokenBytes whole = run(made, range(0, kTokens));
  std::vector<std::int64_t> reversed = range(0, kTokens);
  std::reverse(reversed.begin(), reversed.end());
  const TokenBytes backwards = run(made, reversed);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    ASSERT_EQ(backwards[at(kTokens - 1 - t)], whole[at(t)]) << "reversed, token " << t;
  }
  for (const std::int64_t cut : {std::int64_t{1}, std::int64_t{33}}) {
    TokenBytes parts = run(made, range(0, cut));
    const TokenBytes rest = run(made, range(cut, kTokens));
    parts.insert(parts.end(), rest.begin(), rest.end());
    ASSERT_EQ(parts, whole) << "cut at " << cut;
  }
}

TEST_P(BatchInvariance, MoreRowsThanOneBatchOfAnExpertChangeNoToken) {
  LayerRequest wanted = testing::usual_layer(*GetParam().backend, GetParam().level);
  wanted.experts = 2;
  wanted.top_k = 1;  // all to expert 0
  wanted.tokens = 67;
  const BackendCase made = make_case(*GetParam().backend, wanted);
  if (mixes_tokens(made)) GTEST_SKIP() << "a scale of the whole tensor";
  const TokenBytes whole = run(made, range(0, 67));
  TokenBytes parts = run(made, range(0, 3));
  const TokenBytes rest = run(made, range(3, 67));
  parts.insert(parts.end(), rest.begin(), rest.end());
  ASSERT_EQ(parts, whole);
}

TEST_P(BatchInvariance, OtherTokensChangeNoToken) {
  BackendCase made = make(2, 5);
  if (mixes_tokens(made)) GTEST_SKIP() << "a scale of the whole tensor";
  const TokenBytes before = run(made, range(0, 5));
  for (std::int64_t col = 0; col < made.hidden.cols; ++col) {
    made.hidden.at(1, col) = 0x7FC0;  // NaN
    made.hidden.at(3, col) = 0x7000;  // huge
  }
  made.route.ids[2] = made.route.ids[4];  // another expert for token 1
  if (made.route.ids[3] == made.route.ids[2]) made.route.ids[3] = -1;
  const TokenBytes after = run(made, range(0, 5));
  for (const std::size_t token : {0u, 2u, 4u}) EXPECT_EQ(after[token], before[token]) << token;
}

TEST_P(BatchInvariance, ThreadsAndInstructionSetsChangeNothing) {
  BackendCase made = make(2, 7);
  ASSERT_TRUE(simd::use_kernels("scalar"));
  const TokenBytes one = run(made, range(0, 7));
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    ASSERT_TRUE(simd::use_kernels(*isa));
    for (const int threads : {1, 3}) {
      made.options.threads = threads;
      ASSERT_EQ(run(made, range(0, 7)), one) << *isa << " " << threads << " threads";
    }
  }
}

/// Numbers of tokens from which on the results of the same tokens are others. The sizes are those
/// that a launch might look at: few tokens, the experts (10), tiles, and one more of each.
/// `gemm2`: in place of what the layer computes; null = none.
std::vector<std::int64_t> switches(const BackendCase& made, const Tensor* gemm2) {
  BackendCase copy = made;
  std::map<std::string, Tensor, std::less<>> given;
  if (gemm2 != nullptr) given.emplace("gemm2", *gemm2);
  copy.options.given = &given;
  std::vector<std::int64_t> found;
  std::vector<float> last;
  const HiddenStates& hidden = made.hidden;
  const Route& route = made.route;
  for (const std::int64_t tokens :
       {1, 2, 9, 10, 11, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1024, 1025}) {
    copy.request.tokens = tokens;
    const std::vector<float> output = copy.run(hidden, route).output;
    if (!last.empty() &&
        std::memcmp(last.data(), output.data(), output.size() * sizeof(float)) != 0) {
      found.push_back(tokens);
    }
    last = output;
  }
  return found;
}

/// Numbers over 40 binades, so that every order of additions has a sum of its own.
Tensor of_many_sizes(Tensor tensor) {
  std::mt19937 random(1);
  for (std::size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
    const auto code = static_cast<std::uint16_t>((random() & 0x807Fu) | (107 + random() % 40) << 7);
    std::memcpy(tensor.bytes.data() + 2 * i, &code, sizeof code);
  }
  return tensor;
}

TEST_P(BatchInvariance, TheNumberOfTokensChoosesNoBitUnlessTheKernelMeansIt) {
  for (const std::int64_t top_k : {2, 9}) {
    BackendCase made = make(top_k, 2);
    EXPECT_EQ(switches(made, nullptr), std::vector<std::int64_t>()) << "top-" << top_k;
    if (GetParam().level != NumericsLevel::replay) continue;
    const ForwardResult own = made.run();
    const auto gemm2 = std::find_if(own.stages.begin(), own.stages.end(),
                                    [](const Stage& stage) { return stage.name == "gemm2"; });
    const Tensor wild = of_many_sizes(gemm2->tensor);
    made.options.output = Format::f32;
    std::vector<std::int64_t> expected;
    // SGLang's Triton path sums 8 slots and more as a tree up to 32 tokens, in slot order beyond.
    const bool triton = made.backend->family == "Triton";
    if (triton && top_k >= 8) expected = {33};
    EXPECT_EQ(switches(made, &wild), expected) << "top-" << top_k;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, BatchInvariance,
                         ::testing::ValuesIn(testing::all_backend_levels()),
                         [](const auto& level) { return testing::name(level.param); });

BackendCase triton_bf16(std::int64_t tokens, std::int64_t top_k) {
  LayerRequest wanted;
  wanted.format = "bf16";
  wanted.level = NumericsLevel::replay;
  wanted.tokens = tokens;
  wanted.top_k = top_k;
  wanted.absent_slots = false;
  return make_case(find_backend("triton_bf16"), wanted);
}

TEST(TritonCombine, TurnsAtThirtyThreeTokensInTheSignOfZeroAlone) {
  // Below 8 slots compiled_sum begins with y_0, sum_reduce with +0: the same but for all -0.
  BackendCase made = triton_bf16(3, 3);
  const ForwardResult own = made.run();
  Tensor zeros;
  for (const Stage& stage : own.stages) {
    if (stage.name == "gemm2") zeros = stage.tensor;
  }
  for (std::size_t i = 1; i < zeros.bytes.size(); i += 2) {
    zeros.bytes[i - 1] = std::byte{0};
    zeros.bytes[i] = std::byte{0x80};
  }
  const std::map<std::string, Tensor, std::less<>> given{{"gemm2", zeros}};
  made.options.given = &given;
  made.request.tokens = 32;
  EXPECT_EQ(std::bit_cast<std::uint32_t>(made.run().output[0]), 0x8000'0000u);
  made.request.tokens = 33;
  EXPECT_EQ(std::bit_cast<std::uint32_t>(made.run().output[0]), 0u);
}

/// A backend whose checkpoint has no calibrated activation scales: they are made of all rows.
BackendCase dynamic_case(const std::string& backend, NumericsLevel level) {
  LayerRequest wanted;
  wanted.format = "fp8_tensor";
  wanted.level = level;
  wanted.tokens = 4;
  wanted.absent_slots = false;
  wanted.calibrated = false;
  return make_case(find_backend(backend), wanted);
}

TEST(DynamicTensorScale, TakesInEveryToken) {
  for (const auto& [backend, level] : {std::pair{"triton_fp8_tensor", NumericsLevel::replay},
                                       std::pair{"triton_fp8_tensor", NumericsLevel::backend}}) {
    BackendCase made = dynamic_case(backend, level);
    const ForwardResult before = made.run();
    const auto output_of = [&](const ForwardResult& result, std::size_t token) {
      const std::size_t width = result.output.size() / 4;
      const auto begin = result.output.begin() + static_cast<std::ptrdiff_t>(token * width);
      return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(width));
    };
    ASSERT_EQ(before.stages[1].name, "a1_s");
    EXPECT_EQ(before.stages[1].tensor.shape, Shape{1}) << "one scale";

    // A larger number in token 3 changes token 0.
    const std::uint16_t old = made.hidden.at(3, 7);
    made.hidden.at(3, 7) = 0x4480;  // 1024
    EXPECT_NE(output_of(made.run(), 0), output_of(before, 0)) << backend;

    // Zeros in token 3 change nothing as long as neither largest number was there.
    made.hidden.at(3, 7) = old;
    std::size_t largest = 0;
    for (std::size_t i = 0; i < made.hidden.codes->size(); ++i) {
      const auto size = [&](std::size_t at_) { return (*made.hidden.codes)[at_] & 0x7FFFu; };
      if (size(i) > size(largest)) largest = i;
    }
    const std::int64_t kept = static_cast<std::int64_t>(largest) / made.hidden.cols;
    const std::int64_t other = kept == 0 ? 1 : 0;
    const std::vector<std::int64_t> two{kept, other};
    const ForwardResult alone = made.run(made.hidden.picked(two), testing::picked(made.route, two));
    EXPECT_EQ(alone.stages[1].tensor.bytes, before.stages[1].tensor.bytes) << "the same scale";
    const std::size_t row = alone.stages[0].tensor.bytes.size() / 2;
    EXPECT_TRUE(std::equal(
        alone.stages[0].tensor.bytes.begin(),
        alone.stages[0].tensor.bytes.begin() + static_cast<std::ptrdiff_t>(row),
        before.stages[0].tensor.bytes.begin() + static_cast<std::ptrdiff_t>(at(kept) * row)))
        << "the same codes";

    // The order of the tokens is nobody's business.
    const std::vector<std::int64_t> reversed{3, 2, 1, 0};
    const ForwardResult backwards =
        made.run(made.hidden.picked(reversed), testing::picked(made.route, reversed));
    for (std::size_t token = 0; token < 4; ++token) {
      EXPECT_EQ(output_of(backwards, 3 - token), output_of(before, token)) << backend;
    }
  }
}

}  // namespace
}  // namespace moeref
