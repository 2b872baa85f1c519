#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "engine/moe.hpp"
#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "tests/support/backend_case.hpp"
#include "tests/support/error_of.hpp"

// ForwardOptions::given: a run from stages that somebody else computed.

namespace moeref {
namespace {

using testing::BackendCase;
using testing::BackendLevel;
using testing::Kind;
using testing::LayerRequest;
using testing::make_case;

using Stages = std::map<std::string, Tensor, std::less<>>;

Stages as_given(const ForwardResult& result) {
  Stages stages;
  for (const Stage& stage : result.stages) stages.emplace(stage.name, stage.tensor);
  return stages;
}

ForwardResult run_with(const BackendCase& made, const Stages& given, bool keep = true) {
  BackendCase copy = made;
  copy.options.given = &given;
  copy.options.keep_stages = keep;
  return copy.run();
}

bool same(const std::vector<float>& left, const std::vector<float>& right) {
  return left.size() == right.size() &&
         std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0;
}

bool same(const Tensor& left, const Tensor& right) {
  return left.dtype == right.dtype && left.shape == right.shape && left.bytes == right.bytes;
}

void expect_same(const ForwardResult& actual, const ForwardResult& expected,
                 const std::string& what) {
  ASSERT_EQ(actual.stages.size(), expected.stages.size()) << what;
  for (std::size_t i = 0; i < actual.stages.size(); ++i) {
    EXPECT_EQ(actual.stages[i].name, expected.stages[i].name) << what;
    EXPECT_TRUE(same(actual.stages[i].tensor, expected.stages[i].tensor))
        << what << ": " << actual.stages[i].name;
  }
  EXPECT_TRUE(same(actual.output, expected.output)) << what << ": output";
}

/// Another number in every row: twice as large, or the code of another one.
Tensor changed(Tensor tensor) {
  const auto width = static_cast<std::size_t>(info(tensor.dtype).bits / 8);
  for (std::size_t at = 0; at < tensor.bytes.size(); at += width) {
    std::byte& top = tensor.bytes[at + width - 1];
    if (width == 1) {
      // FP8 codes, pairs of FP4 codes, scales: the low bit.
      top ^= std::byte{1};
    } else if (width == 2) {
      tensor.bytes[at] ^= std::byte{0x40};
      // f16 and bf16 keep their exponent.
    } else {
      tensor.bytes[at + 2] ^= std::byte{0x40};
    }
  }
  return tensor;
}

class GivenStages : public ::testing::TestWithParam<BackendLevel> {
 protected:
  LayerRequest usual() const {
    LayerRequest wanted = testing::usual_layer(*GetParam().backend, GetParam().level);
    wanted.tokens = 3;
    return wanted;
  }
  BackendCase make() const { return make_case(*GetParam().backend, usual()); }
  BackendCase make_with_all() const {
    LayerRequest wanted = usual();
    wanted.shared = true;
    wanted.latent = true;
    BackendCase made = make_case(*GetParam().backend, wanted);
    made.options.output = Format::f32;  // small parts of a sum show
    return made;
  }
};

/// What a stage is computed from does not come after it: those of the shared expert and those of
/// the routed ones do not meet before the output.
bool is_shared(const std::string& stage) { return stage.starts_with("shared_"); }

/// Scales belong to the codes beside them.
bool is_scale(const std::string& stage) { return stage == "a1_s" || stage == "a2_s"; }

/// A scale of the whole tensor that the kernel has in the prepared number of each expert.
bool is_in_factor(const BackendCase& made, const Stage& stage) {
  const Numerics numerics = made.numerics();
  const GemmNumerics& gemm = stage.name == "a1_s" ? numerics.gemm1 : numerics.gemm2;
  return is_scale(stage.name) && stage.tensor.shape == Shape{1} && gemm.factor == SumFactor::expert;
}

TEST_P(GivenStages, OwnStagesChangeNothing) {
  for (const BackendCase& made : {make(), make_with_all()}) {
    const ForwardResult own = made.run();
    expect_same(run_with(made, as_given(own)), own, "all");
    expect_same(run_with(made, {}), own, "none");
    EXPECT_TRUE(same(run_with(made, as_given(own), /*keep=*/false).output, own.output));
    for (const Stage& stage : own.stages) {
      expect_same(run_with(made, {{stage.name, stage.tensor}}), own, stage.name);
    }
  }
}

TEST_P(GivenStages, ChangedStagesChangeWhatFollowsAndNothingElse) {
  for (const BackendCase& made : {make(), make_with_all()}) {
    const ForwardResult own = made.run();
    for (std::size_t at = 0; at < own.stages.size(); ++at) {
      const std::string& name = own.stages[at].name;
      const Tensor other = changed(own.stages[at].tensor);
      const ForwardResult result = run_with(made, {{name, other}});
      const std::string what = "changed " + name;
      ASSERT_EQ(result.stages.size(), own.stages.size()) << what;
      bool followed = false;
      std::size_t last = at;
      for (std::size_t i = 0; i < own.stages.size(); ++i) {
        const std::string& seen = own.stages[i].name;
        const bool after = i > at && is_shared(seen) == is_shared(name) && seen != "combine";
        const bool combine = i > at && seen == "combine" && !is_shared(name);
        const bool beside = is_scale(seen) && i == at + 1;
        const bool equal = same(result.stages[i].tensor, own.stages[i].tensor);
        if ((!after && !combine) || beside) {
          EXPECT_TRUE(equal) << what << ": " << seen;
        } else {
          followed = followed || !equal;
          last = i;
        }
      }
      // What is kept was computed from what was given.
      const Stages both{{name, other}, {own.stages[last].name, result.stages[last].tensor}};
      EXPECT_TRUE(last == at || same(run_with(made, both).output, result.output)) << what;
      followed = followed || !same(result.output, own.output);
      EXPECT_EQ(followed, !is_in_factor(made, own.stages[at])) << what;
      EXPECT_TRUE(same(run_with(made, {{name, other}}, /*keep=*/false).output, result.output))
          << what;
    }
  }
}

TEST_P(GivenStages, ALaterStageHidesAnEarlierOne) {
  const BackendCase made = make();
  const ForwardResult own = made.run();
  Stages given = as_given(own);
  for (auto& [name, tensor] : given) {
    if (name != "gemm2") tensor = changed(tensor);
  }
  EXPECT_TRUE(same(run_with(made, given).output, own.output));
}

TEST_P(GivenStages, OneTokensRowsChangeThatTokenAlone) {
  const BackendCase made = make();
  const ForwardResult own = made.run();
  for (const Stage& stage : own.stages) {
    // Only where every token has its rows: not scales of a whole tensor, not rows by expert.
    if (stage.tensor.shape.front() != made.route.tokens || stage.name == "act") continue;
    Tensor other = stage.tensor;
    const Tensor all = changed(stage.tensor);
    const std::size_t token_bytes = other.bytes.size() / 3;
    std::copy_n(all.bytes.begin() + static_cast<std::ptrdiff_t>(token_bytes), token_bytes,
                other.bytes.begin() + static_cast<std::ptrdiff_t>(token_bytes));
    const ForwardResult result = run_with(made, {{stage.name, other}});
    const std::size_t width = own.output.size() / 3;
    const auto token = [&](const ForwardResult& from, std::size_t i) {
      const auto begin = from.output.begin() + static_cast<std::ptrdiff_t>(i * width);
      return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(width));
    };
    const bool whole = made.numerics().intermediate.quantizer.ends_with("fp8_tensor");
    if (!whole || stage.name == "gemm2") {
      EXPECT_TRUE(same(token(result, 0), token(own, 0))) << stage.name;
      EXPECT_TRUE(same(token(result, 2), token(own, 2))) << stage.name;
    }
    EXPECT_FALSE(same(token(result, 1), token(own, 1))) << stage.name;
  }
}

TEST_P(GivenStages, RefusesOtherSizesAndTypes) {
  for (const BackendCase& made : {make(), make_with_all()}) {
    for (const Stage& stage : made.run().stages) {
      Tensor shorter = stage.tensor;
      const std::size_t row = shorter.bytes.size() / static_cast<std::size_t>(shorter.shape[0]);
      shorter.shape[0] -= 1;
      shorter.bytes.resize(shorter.bytes.size() - row);
      Tensor other = stage.tensor;
      other.dtype = info(other.dtype).bits == 8 ? DType::i8 : DType::i32;
      for (const Tensor& wrong : {shorter, other}) {
        const std::string message = error_of([&] { run_with(made, {{stage.name, wrong}}); });
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;
        EXPECT_EQ(message.find(stage.name + ": is "), 0u) << message;
        EXPECT_NE(message.find(std::string(name(wrong.dtype)) + " " + to_string(wrong.shape)),
                  std::string::npos)
            << message;
        EXPECT_NE(message.find(", the stage is " + std::string(name(stage.tensor.dtype)) + " "),
                  std::string::npos)
            << message;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, GivenStages, ::testing::ValuesIn(testing::all_backend_levels()),
                         [](const auto& level) { return testing::name(level.param); });

TEST(GivenStagesOfReference, MayBeNarrowerFloats) {
  // What a GPU dumps in bf16 stands for a stage that is f32 here.
  LayerRequest wanted;
  wanted.format = "mxfp4";
  wanted.level = NumericsLevel::reference;
  BackendCase made = make_case(find_backend("reference"), wanted);
  const ForwardResult own = forward(made.logical, made.hidden.matrix(), made.route, made.options);
  for (const std::string name : {"gemm1", "act", "gemm2"}) {
    const auto found = std::find_if(own.stages.begin(), own.stages.end(),
                                    [&](const Stage& stage) { return stage.name == name; });
    ASSERT_EQ(found->tensor.dtype, DType::f32);
    std::vector<std::uint16_t> halves;
    std::vector<float> wide;
    for (const float value : found->values()) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) & 0xFFFF'0000u;
      halves.push_back(static_cast<std::uint16_t>(bits >> 16));
      wide.push_back(std::bit_cast<float>(bits));
    }
    const Shape& shape = found->tensor.shape;
    const auto with = [&](const Tensor& tensor) {
      const Stages given{{name, tensor}};
      ForwardOptions options = made.options;
      options.given = &given;
      return forward(made.logical, made.hidden.matrix(), made.route, options).output;
    };
    const std::vector<float> narrow =
        with(make_tensor<std::uint16_t>(name, DType::bf16, shape, halves));
    EXPECT_TRUE(same(narrow, with(make_tensor<float>(name, DType::f32, shape, wide)))) << name;
    EXPECT_FALSE(same(narrow, own.output)) << name;
  }
}

}  // namespace
}  // namespace moeref
