#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "engine/audit.hpp"
#include "layout/kernel_view.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::HasSubstr;

using Texts = std::vector<std::string>;

MoeLayer layer_of(const std::string& format, std::int64_t hidden, std::int64_t intermediate,
                  bool gated = true, bool bias = false, std::int64_t experts = 2) {
  SampleShape shape;
  shape.experts = experts;
  shape.hidden = hidden;
  shape.intermediate = intermediate;
  shape.gated = gated;
  shape.bias = bias;
  shape.weight_format = format;
  shape.seed = 7;
  return sample_layer(shape);
}

PreparedLayer prepare(const std::string& backend, const Texts& options, const MoeLayer& layer,
                      const Shard& rank = {}) {
  const Backend& found = find_backend(backend);
  return plan_layer(found, parse_options(found, options), layer, rank);
}

AuditReport audited(const std::string& backend, const Texts& options, const MoeLayer& layer,
                    const Shard& rank = {}) {
  const Backend& found = find_backend(backend);
  return audit(found, parse_options(found, options), layer, rank, 1);
}

const PreparedTensor& named(const PreparedLayer& layer, std::string_view name) {
  const auto found =
      std::find_if(layer.tensors.begin(), layer.tensors.end(),
                   [name](const PreparedTensor& tensor) { return tensor.name == name; });
  if (found == layer.tensors.end()) throw std::invalid_argument(std::string(name));
  return *found;
}

std::string message_of(const std::string& backend, const Texts& options, const MoeLayer& layer) {
  return error_of([&] { prepare(backend, options, layer); });
}

struct AuditCase {
  std::string backend;
  std::string format;
  std::int64_t hidden;
  std::int64_t intermediate;
  Texts options = {};
};

const std::vector<AuditCase>& sound_cases() {
  static const std::vector<AuditCase> cases{
      {"marlin_mxfp4", "mxfp4", 128, 64},
      {"marlin_mxfp4", "mxfp4", 128, 96},
      {"marlin_mxfp4", "mxfp4", 64, 32},
      {"marlin_mxfp4", "mxfp4", 64, 64, {"pad=none"}},
      {"marlin_mxfp4", "mxfp4", 64, 96, {"activations=fp8"}},
      {"marlin_mxfp4", "mxfp4", 64, 96, {"scales=v1"}},
      {"marlin_nvfp4", "nvfp4", 64, 64},
      {"marlin_nvfp4", "nvfp4", 128, 48, {"pad=per_half"}},
      {"marlin_nvfp4", "nvfp4", 64, 64, {"mode=sglang"}},
      {"marlin_nvfp4", "nvfp4_ct", 64, 128, {"mode=v1", "globals=rounded"}},
      {"marlin_nvfp4", "nvfp4", 64, 64, {"params=f16"}},
      {"marlin_fp8", "fp8_tensor", 64, 64},
      {"marlin_fp8", "fp8_tensor", 64, 64, {"w13_scales=max_requantize"}},
      {"marlin_fp8", "fp8_channel", 128, 64, {"params=f16"}},
      {"marlin_fp8", "fp8_block", 256, 128},
      {"marlin_fp8", "fp8_block", 128, 256, {"exponent_bias=in_kernel"}},
      {"marlin_mxfp8", "mxfp8", 64, 64},
      {"marlin_mxfp8", "mxfp8", 128, 128},
  };
  return cases;
}

constexpr std::array<ExpertPart, 3> kMatrices{&Expert::gate, &Expert::up, &Expert::down};

std::vector<double> values_of(const ScaledMatrix& matrix) {
  std::vector<double> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  if (matrix) dequantize(matrix, values);
  return values;
}

MoeLayer as_kernel_reads(const PreparedLayer& prepared) {
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, 1));
  return kernel_layer(prepared, made);
}

/// The largest difference of weights that both have, relative to the other's largest weight; and
/// whether every further weight of `padded` is 0.
struct Comparison {
  double largest = 0.0;
  bool zeros = true;
};
Comparison compared(const MoeLayer& padded, const MoeLayer& other, ExpertPart part) {
  Comparison result;
  for (std::size_t e = 0; e < other.experts.size(); ++e) {
    const ScaledMatrix& large = padded.experts[e].*part;
    const ScaledMatrix& small = other.experts[e].*part;
    const std::vector<double> is = values_of(large);
    const std::vector<double> meant = values_of(small);
    double scale = 0.0;
    for (const double value : meant) scale = std::max(scale, std::fabs(value));
    for (std::int64_t row = 0; row < large.rows; ++row) {
      for (std::int64_t col = 0; col < large.cols; ++col) {
        const double value = is[static_cast<std::size_t>(row * large.cols + col)];
        if (row >= small.rows || col >= small.cols) {
          result.zeros = result.zeros && value == 0.0;
          continue;
        }
        const double difference =
            std::fabs(value - meant[static_cast<std::size_t>(row * small.cols + col)]) / scale;
        if (!(difference <= result.largest)) result.largest = difference;
      }
    }
  }
  return result;
}

TEST(MarlinBackends, AreReadAsTheRecodedWeightsAndZeros) {
  for (const AuditCase& each : sound_cases()) {
    for (const bool gated : {true, false}) {
      const MoeLayer layer = layer_of(each.format, each.hidden, each.intermediate, gated, gated);
      const PreparedLayer prepared = prepare(each.backend, each.options, layer);
      const MoeLayer kernel = as_kernel_reads(prepared);
      const MoeLayer recoded = recoded_layer(prepared, layer);
      for (const ExpertPart part : kMatrices) {
        if (!gated && part == &Expert::gate) continue;
        const Comparison comparison = compared(kernel, recoded, part);
        EXPECT_EQ(comparison.largest, 0.0) << each.backend << " " << each.format;
        EXPECT_TRUE(comparison.zeros) << each.backend << " " << each.format;
      }
    }
  }
}

/// How far the weights that the kernel reads may be from the stored ones.
double allowed(const AuditCase& each, ExpertPart part) {
  if (each.backend == "marlin_nvfp4") {
    if (part == &Expert::up) return 8.0;  // gate's global scale serves it
    const bool flushes = each.options == Texts{"mode=v1", "globals=rounded"};
    return flushes ? 0x1p-8 : 0.0;
  }
  if (each.backend != "marlin_fp8") return 0.0;
  const bool requantized = each.options == Texts{"w13_scales=max_requantize"};
  const bool f16 = each.options == Texts{"params=f16"};
  return requantized ? 0x1p-4 : f16 ? 0x1p-11 : 0x1p-8;
}

TEST(MarlinBackends, AreReadAsTheStoredWeightsUpToTheirRoundings) {
  for (const AuditCase& each : sound_cases()) {
    const MoeLayer layer = layer_of(each.format, each.hidden, each.intermediate);
    const MoeLayer kernel = as_kernel_reads(prepare(each.backend, each.options, layer));
    for (const ExpertPart part : kMatrices) {
      EXPECT_LE(compared(kernel, layer, part).largest, allowed(each, part))
          << each.backend << " " << each.format << " [" << each.hidden << "]";
    }
  }
}

TEST(MarlinBackends, KeepTheFunctionOfTheLayer) {
  for (const std::size_t index :
       {std::size_t{1}, std::size_t{4}, std::size_t{7}, std::size_t{12}, std::size_t{16}}) {
    const AuditCase& each = sound_cases()[index];
    const MoeLayer layer = layer_of(each.format, each.hidden, each.intermediate, true, true);
    const AuditReport report = audited(each.backend, each.options, layer);
    EXPECT_TRUE(report.survives) << each.backend << ": " << report.first_difference;
    EXPECT_GT(report.outputs, 0);
  }
}

TEST(MarlinBackends, KeepTheFunctionOfEveryRank) {
  const MoeLayer mxfp4 = layer_of("mxfp4", 64, 160, true, true, 4);
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    const Shard shard{.tp_rank = rank, .tp_size = 2, .ep_rank = rank, .ep_size = 2};
    EXPECT_TRUE(audited("marlin_mxfp4", {}, mxfp4, shard).survives);
    const MoeLayer nvfp4 = layer_of("nvfp4", 64, 128, true, false, 4);
    EXPECT_TRUE(audited("marlin_nvfp4", {}, nvfp4, shard).survives);
    EXPECT_TRUE(
        audited("marlin_fp8", {}, layer_of("fp8_block", 128, 256, true, false, 4), shard).survives);
  }
}

TEST(MarlinBackends, UndoGivesWhatWasRecoded) {
  for (const AuditCase& each : sound_cases()) {
    const MoeLayer layer = layer_of(each.format, each.hidden, each.intermediate, true, true);
    const PreparedLayer prepared = prepare(each.backend, each.options, layer);
    for (const PreparedTensor& tensor : prepared.tensors) {
      if (tensor.from == nullptr) continue;
      const IndexMap& map = tensor.plan.map;
      const Tensor made = make(tensor, 1);
      const IndexMap identity(map.experts, map.in_rows, map.in_cols, map.element_bits);
      std::vector<std::byte> meant(static_cast<std::size_t>(map.experts * identity.out_bytes()));
      std::vector<std::byte> undone(meant.size());
      apply(identity, *tensor.from, tensor.plan.recoders, meant, 1);
      const UndoReport report = undo(map, made.bytes, {}, undone, 1);
      EXPECT_EQ(undone, meant) << each.backend << " " << tensor.name;
      EXPECT_EQ(report.wrong_pads, 0);
      EXPECT_EQ(report.wrong_copies, 0);
    }
  }
}

TEST(MarlinMxfp4, ReadsAlternatingRowsAsHalves) {
  SampleShape shape;
  shape.hidden = 64;
  shape.intermediate = 96;
  shape.bias = true;
  shape.interleaved = true;
  const AuditReport report = audited("marlin_mxfp4", {}, sample_layer(shape));
  EXPECT_TRUE(report.survives) << report.first_difference;
}

TEST(MarlinMxfp4, PadsEachHalfTo64Or128) {
  const auto w2_scale = [](std::int64_t hidden, std::int64_t intermediate, const Texts& options) {
    const MoeLayer layer = layer_of("mxfp4", hidden, intermediate);
    return named(prepare("marlin_mxfp4", options, layer), "w2_scale").shape;
  };
  EXPECT_EQ(w2_scale(128, 96, {}), (Shape{2, 4, 128}));
  EXPECT_EQ(w2_scale(64, 96, {}), (Shape{2, 4, 64}));
  EXPECT_EQ(w2_scale(128, 32, {}), (Shape{2, 2, 128}));
  EXPECT_EQ(w2_scale(128, 96, {"pad=none"}), (Shape{2, 3, 128}));
}

TEST(MarlinMxfp4, FillsScalePadsWithTheAddedExponent) {
  const MoeLayer layer = layer_of("mxfp4", 64, 96);
  for (const auto& [option, fill] :
       {std::pair<std::string, int>{"activations=16bit", 0}, {"activations=fp8", 6}}) {
    const PreparedLayer prepared = prepare("marlin_mxfp4", {option}, layer);
    const PreparedTensor& scale = named(prepared, "w2_scale");
    const Tensor made = make(scale, 1);
    // 96 columns are three groups, padded to four.
    for (std::size_t n = 0; n < 64; ++n) {
      EXPECT_EQ(made.bytes[3 * 64 + n], static_cast<std::byte>(fill)) << option;
      EXPECT_NE(made.bytes[2 * 64 + n], static_cast<std::byte>(fill)) << option;
    }
  }
}

TEST(MarlinMxfp4, RefusesWhatHasNoKernel) {
  const MoeLayer layer = layer_of("mxfp4", 64, 64);
  EXPECT_NE(message_of("marlin_mxfp4", {"params=f16"}, layer).find("BF16 activations only"),
            std::string::npos);
  EXPECT_THAT(message_of("marlin_mxfp4", {"scales=v1", "activations=fp8"}, layer),
              HasSubstr("scales=v1 has no kernel for FP8 activations"));
  EXPECT_NE(message_of("marlin_mxfp4", {}, layer_of("mxfp4", 96, 64)).find("multiple of 64"),
            std::string::npos);
  EXPECT_THAT(
      message_of("marlin_mxfp4", {"pad=none"}, layer_of("mxfp4", 64, 32, false)),
      HasSubstr("intermediate is 32, it must be a multiple of 64 when not gated: rows of w13"));
  EXPECT_THAT(message_of("marlin_mxfp8", {"params=f16"}, layer_of("mxfp8", 64, 64)),
              HasSubstr("BF16 activations only"));
}

TEST(MarlinNvfp4, RefusesHalvesThatVllmMixesUnlessAsked) {
  const MoeLayer layer = layer_of("nvfp4", 64, 48);
  const std::string message = message_of("marlin_nvfp4", {}, layer);
  EXPECT_NE(message.find("intermediate is 48"), std::string::npos) << message;
  EXPECT_NE(message.find("pad=per_half"), std::string::npos) << message;
  EXPECT_TRUE(audited("marlin_nvfp4", {"pad=per_half"}, layer).survives);

  const AuditReport mixed = audited("marlin_nvfp4", {"pad=whole_upstream"}, layer);
  EXPECT_FALSE(mixed.survives);
  EXPECT_GT(mixed.differing, 0);
}

TEST(MarlinNvfp4, PadsGateAndUpAsOneLikeVllm) {
  const PreparedLayer prepared =
      prepare("marlin_nvfp4", {"pad=whole_upstream"}, layer_of("nvfp4", 64, 48));
  const TensorStack& stored = prepared.source->at(Slot::w13);
  const std::vector<Step> first{prepared.recipe.tensors.front().steps.front()};
  const Plan framework = make_plan("w13", stored, first, nullptr);
  ASSERT_EQ(framework.map.rows.size(), 128);
  for (std::int64_t row = 0; row < 128; ++row) {
    EXPECT_EQ(framework.map.rows[row].is_pad(), row >= 96);
    if (row < 96) {
      EXPECT_EQ(framework.map.rows[row].index(), row);
    }
  }
  EXPECT_EQ(prepared.recipe.kernel.intermediate, 64);
  EXPECT_EQ(named(prepared, "w2").shape, (Shape{2, 4, 128}));
}

TEST(MarlinNvfp4, MixesNothingWhereTheRowsAreAligned) {
  const MoeLayer layer = layer_of("nvfp4", 64, 96);
  EXPECT_TRUE(audited("marlin_nvfp4", {"pad=whole_upstream"}, layer).survives);
}

TEST(MarlinNvfp4, PadsRowsOfW2OnlyAsUpstream) {
  const MoeLayer layer = layer_of("nvfp4", 80, 64);
  EXPECT_NE(message_of("marlin_nvfp4", {}, layer).find("hidden is 80"), std::string::npos);
  const PreparedLayer prepared = prepare("marlin_nvfp4", {"pad=whole_upstream"}, layer);
  EXPECT_EQ(named(prepared, "w2").shape, (Shape{2, 4, 256}));
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, 1));
  EXPECT_THROW(kernel_layer(prepared, made), Error);
}

TEST(MarlinNvfp4, PadsRowsOfUngatedLayersAsEachFrameworkDoes) {
  const MoeLayer layer = layer_of("nvfp4", 64, 80, false);
  const auto groups = [&layer](const Texts& options) {
    return named(prepare("marlin_nvfp4", options, layer), "w2_scale").shape[1];
  };
  EXPECT_EQ(groups({}), 128 / 16);
  EXPECT_EQ(groups({"mode=sglang"}), 128 / 16);
  EXPECT_EQ(groups({"mode=v1", "pad=per_half"}), 128 / 16);
  EXPECT_THAT(message_of("marlin_nvfp4", {"mode=v1"}, layer),
              HasSubstr("intermediate is 80, it must be a multiple of"));
  const MoeLayer narrow = layer_of("nvfp4", 64, 32, false);
  EXPECT_EQ(named(prepare("marlin_nvfp4", {}, narrow), "w2_scale").shape[1], 64 / 16);
  EXPECT_EQ(named(prepare("marlin_nvfp4", {"mode=sglang"}, narrow), "w2_scale").shape[1], 128 / 16);
}

TEST(MarlinNvfp4, DividesTheGlobalScaleByTheFactorOfItsOwnTensor) {
  const MoeLayer layer = layer_of("nvfp4", 64, 64);
  const PreparedLayer prepared = prepare("marlin_nvfp4", {"mode=sglang"}, layer);
  const ExpertScalars& stored = prepared.source->scalars;
  // The largest sample scales lie below 4 in both tensors, so that both are lifted.
  const std::vector<float>& w13 = named(prepared, "w13_scale_2").values;
  const std::vector<float>& w2 = named(prepared, "w2_scale_2").values;
  ASSERT_EQ(w13.size(), 2u);
  ASSERT_EQ(w2.size(), 2u);
  const float factor = stored.w2_scale[0] * 0x1p119f / w2[0];
  EXPECT_GE(factor, 64.0f);
  for (std::size_t expert = 0; expert < 2; ++expert) {
    EXPECT_EQ(w2[expert] * factor, stored.w2_scale[expert] * 0x1p119f);
    EXPECT_EQ(w13[expert] * factor, stored.w13_scale[2 * expert] * 0x1p119f) << "gate's";
  }
}

TEST(MarlinFp8, ExpandsScalesToOneForEveryRow) {
  const MoeLayer tensor = layer_of("fp8_tensor", 64, 32);
  const PreparedLayer prepared = prepare("marlin_fp8", {"exponent_bias=in_kernel"}, tensor);
  const PreparedTensor& scale = named(prepared, "w13_scale");
  EXPECT_EQ(scale.shape, (Shape{2, 1, 64}));
  EXPECT_EQ(scale.dtype, DType::bf16);
  const Tensor made = make(scale, 1);
  // Runs of 32 keep the halves apart: one value for gate, one for up.
  for (std::size_t row = 0; row < 64; ++row) {
    EXPECT_EQ(load<std::uint16_t>(made.bytes.data() + 2 * row),
              load<std::uint16_t>(made.bytes.data() + 2 * (row / 32 * 32)));
  }
  EXPECT_NE(load<std::uint16_t>(made.bytes.data()), load<std::uint16_t>(made.bytes.data() + 64));
  const PreparedLayer requantized =
      prepare("marlin_fp8", {"exponent_bias=in_kernel", "w13_scales=max_requantize"}, tensor);
  const Tensor one = make(named(requantized, "w13_scale"), 1);
  EXPECT_EQ(load<std::uint16_t>(one.bytes.data()), load<std::uint16_t>(one.bytes.data() + 64));
}

TEST(MarlinFp8, RefusesRaggedBlocks) {
  EXPECT_NE(message_of("marlin_fp8", {}, layer_of("fp8_block", 128, 192)).find("multiple of 128"),
            std::string::npos);
  EXPECT_NE(message_of("marlin_fp8", {}, layer_of("fp8_channel", 64, 16)).find("when gated"),
            std::string::npos);
}

TEST(MarlinBackends, NoteSizesThatTheKernelCannotLaunch) {
  const auto notes = [](std::int64_t hidden, std::int64_t intermediate) {
    const PreparedLayer prepared =
        prepare("marlin_mxfp8", {}, layer_of("mxfp8", hidden, intermediate));
    return std::count_if(
        prepared.recipe.notes.begin(), prepared.recipe.notes.end(),
        [](const std::string& note) { return note.find("launch") != std::string::npos; });
  };
  EXPECT_EQ(notes(128, 64), 0);
  EXPECT_EQ(notes(128, 32), 1);
  EXPECT_EQ(notes(64, 32), 2);
}

}  // namespace
}  // namespace moeref
