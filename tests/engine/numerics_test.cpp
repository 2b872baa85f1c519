#include "quant/numerics.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "tests/engine/judged_layer.hpp"
#include "tests/judge/slow_layer.hpp"

// Whole layers at level `backend`, every stage and the output bit for bit against the judge, for
// every backend.

namespace moeref {
namespace {

using testing::BackendCase;
using testing::BackendNumerics;
using testing::describe;
using testing::expect_judged;
using testing::Kind;
using testing::LayerRequest;
using testing::make_case;

/// The factor by which the output is larger than the reference's, as a projection.
double size_against_reference(const BackendCase& made) {
  ForwardOptions options = made.options;
  options.output = Format::f32;
  const std::vector<float> exact =
      forward(made.logical, made.hidden.matrix(), made.route, options).output;
  const std::vector<float> actual = made.run().output;
  double dot = 0.0;
  double square = 0.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    dot += static_cast<double>(exact[i]) * static_cast<double>(actual[i]);
    square += static_cast<double>(exact[i]) * static_cast<double>(exact[i]);
  }
  return dot / square;
}

/// The kinds of layers that a backend takes in each of its formats: SiLU, a limit, GPT-OSS's
/// parameters, relu2; with biases in small letters.
struct Taken {
  std::string_view backend;
  std::string_view kinds;
  std::string_view without = {};  ///< a format of its weights for which it has no numerics
};
constexpr std::string_view kEverything = "SsLlGgRr";
constexpr Taken kTaken[] = {
    {"reference", kEverything},
    {"flashinfer_cutlass_fp8", kEverything},
    {"flashinfer_cutlass_nvfp4", kEverything},
    {"flashinfer_cutlass_mxfp8", kEverything},
    {"flashinfer_cutlass_fp8_block", kEverything},
    {"flashinfer_cutlass_bf16", kEverything},
    {"flashinfer_trtllm_fp8", "SR"},
    {"flashinfer_trtllm_fp8_block", "SR"},
    {"flashinfer_trtllm_mxfp8", "SR"},
    {"flashinfer_trtllm_nvfp4", "SsRr"},
    {"flashinfer_trtllm_mxfp4", kEverything},
    {"flashinfer_trtllm_mxfp4_dsv4", "L"},
    {"flashinfer_trtllm_bf16", "SR"},
    {"flashinfer_cutedsl_v1", "SR"},
    {"flashinfer_cutedsl_v2", "SR"},
    {"flashinfer_sm90_mxfp4", kEverything},
    {"flashinfer_sm90_mxfp4_dsv4", "SLGR"},
    {"marlin_mxfp4", kEverything},
    {"marlin_nvfp4", kEverything},
    {"marlin_fp8", kEverything},
    {"marlin_mxfp8", kEverything},
    {"triton_fp8_tensor", kEverything},
    {"triton_fp8_channel", kEverything},
    {"triton_fp8_block", kEverything},
    {"triton_bf16", kEverything, "f16"},
    {"triton_kernels_mxfp4", "GgRr"},
    {"deepgemm_fp8", "SLGR"},
    {"deepgemm_fp8_ue8m0", "SLGR"},
    {"deepgemm_fp4", "SLR"},
    {"aiter_fp8_tensor", "SLGR"},
    {"aiter_fp8_channel", "SLGR"},
    {"aiter_fp8_block", "SLGR"},
    {"aiter_mxfp4", "SLGR"},
    {"aiter_a16w4", kEverything},
};

TEST_P(BackendNumerics, EqualTheJudgeForEveryFormatAndActivation) {
  for (const std::string_view format : backend().formats) {
    std::string taken;
    std::size_t number = 0;
    for (const Kind kind : testing::kAllKinds) {
      for (const bool bias : {false, true}) {
        const char letter = kEverything[number++];
        LayerRequest wanted = usual();
        wanted.format = format;
        wanted.kind = kind;
        wanted.bias = bias;
        if (!judged(wanted)) continue;
        taken += letter;
        // No scale is lost, none enters twice.
        const double size = size_against_reference(make_case(backend(), wanted));
        EXPECT_EQ(std::lround(std::log2(size)), 0) << describe(wanted) << ": " << size;
      }
    }
    const auto expected = std::find_if(std::begin(kTaken), std::end(kTaken), [&](const Taken& row) {
      return row.backend == backend().name;
    });
    ASSERT_NE(expected, std::end(kTaken));
    EXPECT_EQ(taken, format == expected->without ? "" : expected->kinds) << format;
  }
}

TEST_P(BackendNumerics, EqualTheJudgeForAnyNumberOfSlots) {
  for (const std::int64_t top_k : {1, 2, 4, 9}) {
    LayerRequest wanted = usual();
    wanted.tokens = top_k == 9 ? 2 : 4;
    wanted.top_k = top_k;
    wanted.absent_slots = top_k != 9;
    expect_taken(wanted);
  }
}

TEST_P(BackendNumerics, EqualTheJudgeWhereNoSlotHasAnExpert) {
  LayerRequest wanted = usual();
  BackendCase made = make_case(backend(), wanted);
  std::fill(made.route.ids.begin(), made.route.ids.end(), -1);
  expect_judged(made, "nothing local");
  made.route.ids[5] = 9;
  expect_judged(made, "one local");
}

TEST_P(BackendNumerics, EqualTheJudgeOnHiddenStatesThatAreNotFinite) {
  for (const Kind kind : {usual().kind, Kind::limited}) {
    LayerRequest wanted = usual();
    wanted.kind = kind;
    wanted.tokens = 6;
    std::optional<BackendCase> made;
    if (error_of([&] { made = make_case(backend(), wanted); }) != "no error") continue;
    made->hidden.at(0, 3) = 0x7FC1;  // NaN
    made->hidden.at(1, 5) = 0xFFFF;
    made->hidden.at(2, 0) = 0x7F80;  // infinity
    made->hidden.at(3, made->hidden.cols - 1) = 0xFF80;
    made->hidden.at(4, 1) = 0x7F7F;  // the largest number
    expect_judged(*made, std::string(backend().name) + " not finite " + testing::name(kind));
  }
}

TEST_P(BackendNumerics, EqualTheJudgeOnHiddenStatesOfAllSizes) {
  BackendCase made = make_case(backend(), usual());
  for (std::int64_t col = 0; col < made.hidden.cols; ++col) {
    made.hidden.at(0, col) = static_cast<std::uint16_t>(col % 2 == 0 ? 0 : 0x8000);  // zeros
    made.hidden.at(1, col) = static_cast<std::uint16_t>(1 + col);                    // subnormal
    made.hidden.at(2, col) = static_cast<std::uint16_t>(0x3F80 + 40 * (col % 9) - 0x1400);
    made.hidden.at(3, col) = static_cast<std::uint16_t>(0x7000 + 8 * col);  // huge
  }
  expect_judged(made, "sizes");
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendNumerics,
                         ::testing::ValuesIn(all_backends().begin(), all_backends().end()),
                         testing::backend_name);

TEST(SlowNumerics, AreTheReferenceOfTheOtherJudge) {
  for (const bool latent : {false, true}) {
    LayerRequest wanted;
    wanted.format = "mxfp4";
    wanted.kind = Kind::gpt_oss;
    wanted.bias = true;
    wanted.shared = true;
    wanted.latent = latent;
    wanted.level = NumericsLevel::reference;
    wanted.routed_scaling = 2.5f;
    const BackendCase made = make_case(find_backend("reference"), wanted);
    const auto expected =
        judge::slow_forward(made.logical, made.hidden.matrix(), made.route, made.options);
    const judge::SlowResult actual =
        judge::slow_numerics(unprepared_layer(made.logical), made.hidden.matrix(), made.route,
                             reference_numerics(made.options), made.options);
    ASSERT_EQ(actual.stages.size() + 1, expected.size());
    for (const Stage& stage : actual.stages) {
      EXPECT_EQ(stage.values(), expected.at(stage.name)) << stage.name;
    }
    EXPECT_EQ(actual.output, expected.at("final"));
  }
}

}  // namespace
}  // namespace moeref
