#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "tests/engine/judged_layer.hpp"

// What surrounds the routed experts, and the options of backends and kernels: at level `backend`
// bit for bit against the judge, for every backend.

namespace moeref {
namespace {

using testing::BackendCase;
using testing::BackendNumerics;
using testing::describe;
using testing::expect_judged;
using testing::Kind;
using testing::LayerRequest;
using testing::make_case;

TEST_P(BackendNumerics, EqualTheJudgeWithASharedExpertAndAScalingFactor) {
  struct Variant {
    bool shared;
    float scaling;
    Format output;
  };
  for (const auto& [shared, scaling, output] :
       {Variant{false, 1.8462643f, Format::bf16}, Variant{true, 1.0f, Format::bf16},
        Variant{true, 2.5f, Format::f16}, Variant{true, 1.8462643f, Format::f32}}) {
    LayerRequest wanted = usual();
    wanted.shared = shared;
    wanted.routed_scaling = scaling;
    wanted.tokens = 3;
    BackendCase made = make_case(backend(), wanted);
    made.options.output = output;
    expect_judged(made, std::string(info(output).name) + " " + describe(wanted));
  }
}

TEST_P(BackendNumerics, EqualTheJudgeBetweenLatentProjections) {
  for (const bool shared : {false, true}) {
    LayerRequest wanted = usual();
    wanted.latent = true;
    wanted.shared = shared;
    wanted.routed_scaling = 2.5f;
    wanted.tokens = 3;
    expect_taken(wanted);
  }
}

TEST_P(BackendNumerics, EqualTheJudgeOnRanks) {
  for (const Kind kind : {usual().kind, Kind::gpt_oss}) {
    for (const Shard& rank : {Shard{.ep_rank = 1, .ep_size = 2}, Shard{.tp_rank = 0, .tp_size = 2},
                              Shard{.tp_rank = 1, .tp_size = 2}}) {
      LayerRequest wanted = usual();
      wanted.kind = kind;
      wanted.bias = kind == Kind::gpt_oss;
      wanted.rank = rank;
      wanted.tokens = 3;
      judged(wanted);
    }
  }
}

TEST_P(BackendNumerics, EqualTheJudgeForEveryKernelOption) {
  for (const OptionInfo& option : backend().kernel_options) {
    std::vector<std::string> values;
    for (const std::string_view value : option.values) {
      if (option.is_choice()) values.emplace_back(value);
    }
    if (option.is_integer()) values = {"16", "64", "256"};
    for (const std::string& value : values) {
      for (const Kind kind : {usual().kind, Kind::limited}) {
        if (kind == Kind::limited && option.is_integer()) continue;
        LayerRequest wanted = usual();
        wanted.kind = kind;
        wanted.tokens = 3;
        wanted.kernel = {std::string(option.name) + "=" + value};
        judged(wanted);
      }
    }
  }
}

TEST_P(BackendNumerics, EqualTheJudgeForEveryOption) {
  for (const OptionInfo& option : backend().options) {
    for (const std::string_view value : option.values) {
      if (!option.is_choice() || value == option.default_value()) continue;
      LayerRequest wanted = usual();
      wanted.tokens = 2;
      wanted.options = {std::string(option.name) + "=" + std::string(value)};
      if (!judged(wanted)) continue;
      BackendCase made = make_case(backend(), wanted);
      made.hidden.at(0, 3) = 0x7FC1;  // NaN
      made.hidden.at(1, 5) = 0xFF80;  // infinity
      expect_judged(made, describe(wanted) + " not finite");
    }
  }
}

TEST_P(BackendNumerics, EqualTheJudgeForOtherActivations) {
  for (const ActivationForm form : {ActivationForm::silu_clamp_after, ActivationForm::geglu_erf,
                                    ActivationForm::geglu_tanh, ActivationForm::swiglu}) {
    Activation activation;
    activation.form = form;
    if (form == ActivationForm::silu_clamp_after) activation.limit = 0.5f;
    if (form == ActivationForm::swiglu) activation.alpha = 0.7f;
    LayerRequest wanted = usual();
    wanted.activation = activation;
    wanted.tokens = 2;
    judged(wanted);
  }
}

TEST_P(BackendNumerics, EqualTheJudgeForParametersOfEveryExpert) {
  LayerRequest wanted = usual();
  Activation activation;
  for (std::int64_t e = 0; e < wanted.experts; ++e) {
    const auto number = static_cast<float>(e);
    activation.alphas.push_back(0.5f + 0.3f * number);
    activation.betas.push_back(0.25f * number - 1.0f);
    activation.limits.push_back(0.25f + 0.25f * number);
  }
  wanted.activation = activation;
  judged(wanted);
  // The second half of the experts.
  wanted.rank = {.ep_rank = 1, .ep_size = 2};
  judged(wanted);
}

/// The stages of a run by name.
std::map<std::string, Tensor> stages_of(const ForwardResult& result) {
  std::map<std::string, Tensor> stages;
  for (const Stage& stage : result.stages) stages.emplace(stage.name, stage.tensor);
  return stages;
}

// Other kernels compute the shared expert and the projections, and nobody replays those.
TEST_P(BackendNumerics, ComputeTheSharedExpertAndProjectionsAlikeInReplay) {
  if (backend().replay.evidence == ReplayEvidence::none) GTEST_SKIP() << "no replay";
  LayerRequest wanted = usual();
  wanted.latent = true;
  wanted.shared = true;
  BackendCase made = make_case(backend(), wanted);
  const auto exact = stages_of(made.run());
  made.request.level = NumericsLevel::replay;
  const auto replayed = stages_of(made.run());
  ASSERT_EQ(exact.size(), replayed.size());
  for (const char* name : {"fc1", "shared_gemm1", "shared_act", "shared_gemm2"}) {
    EXPECT_EQ(exact.at(name).bytes, replayed.at(name).bytes) << name;
  }
  // The last projection and the sum follow from the combine alone.
  const std::map<std::string, Tensor, std::less<>> given{{"combine", replayed.at("combine")}};
  BackendCase joined = made;
  joined.options.given = &given;
  const std::vector<float> final = made.run().output;
  joined.request.level = NumericsLevel::backend;
  EXPECT_EQ(joined.run().output, final);
}

// Rows of slots without an expert here are +0 in every level.
TEST_P(BackendNumerics, LeaveZerosWhereASlotHasNoExpert) {
  for (const NumericsLevel level : {NumericsLevel::backend, NumericsLevel::replay}) {
    if (level == NumericsLevel::replay && backend().replay.evidence == ReplayEvidence::none) break;
    BackendCase made = make_case(backend(), usual());
    if (made.numerics().rows == RowOrder::by_expert) break;
    made.request.level = level;
    ASSERT_EQ(made.route.ids[3], -1);
    const auto stages = stages_of(made.run());
    for (const char* name : {"gemm1", "act", "gemm2"}) {
      const Tensor& stage = stages.at(name);
      const std::size_t row = stage.bytes.size() / made.route.ids.size();
      EXPECT_TRUE(std::all_of(stage.bytes.begin() + static_cast<std::ptrdiff_t>(3 * row),
                              stage.bytes.begin() + static_cast<std::ptrdiff_t>(4 * row),
                              [](std::byte byte) { return byte == std::byte{0}; }))
          << name;
    }
  }
}

TEST_P(BackendNumerics, RefuseHiddenStatesOfAnotherType) {
  if (backend().name == "reference") GTEST_SKIP() << "takes any";
  const BackendCase made = make_case(backend(), usual());
  const std::vector<float> wide(static_cast<std::size_t>(4 * made.hidden.cols), 1.0f);
  ScaledMatrix hidden = made.hidden.matrix();
  hidden.codes.data = reinterpret_cast<const std::byte*>(wide.data());
  hidden.codes.format = Format::f32;
  const std::string message = error_of([&] {
    forward(made.kernel, hidden, made.route, made.numerics(), made.request.level, made.options);
  });
  EXPECT_EQ(message, "hidden_states: is f32; the backend's kernels take bf16 hidden states");
}

TEST(NumericsOfOneScalePerExpert, EqualTheJudge) {
  // FlashInfer takes fc2_quant as one number or as one for each expert.
  const Backend& backend = find_backend("flashinfer_cutlass_fp8");
  BackendCase made = make_case(backend, testing::usual_layer(backend));
  std::vector<float>& scales = made.kernel.scalars.at("fc2_quant");
  const float first = scales.front();
  scales.clear();
  for (int e = 0; e < 10; ++e) scales.push_back(first * (1.0f + 0.37f * static_cast<float>(e)));
  expect_judged(made, "one scale per expert");
  scales.pop_back();
  EXPECT_NE(error_of([&] { made.run(); }).find("is given 9 scales for 10 experts"),
            std::string::npos);
  scales.clear();
  EXPECT_NE(error_of([&] { made.run(); }).find("fc2_quant, which is not prepared"),
            std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendNumerics,
                         ::testing::ValuesIn(all_backends().begin(), all_backends().end()),
                         testing::backend_name);

}  // namespace
}  // namespace moeref
