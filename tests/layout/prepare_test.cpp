// Planning a layer for a rank, on tiny checkpoints in the real models' form and on samples.

#include "layout/prepare.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "layout/sample_layer.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::filesystem::path kModels = std::filesystem::path(MOEREF_DATA_DIR) / "golden/models";

bool takes(const Backend& backend, const MoeLayer& layer) {
  return std::find(backend.formats.begin(), backend.formats.end(), layer.weight_format) !=
         backend.formats.end();
}

std::vector<std::byte> dense(const TensorStack& stack) {
  const std::int64_t row_bytes = stack.cols * stack.element_bits / 8;
  std::vector<std::byte> bytes(static_cast<std::size_t>(stack.experts * stack.rows() * row_bytes));
  for (std::int64_t e = 0; e < stack.experts; ++e) {
    for (std::int64_t row = 0; row < stack.rows(); ++row) {
      stack.read(e, row, 0, stack.cols, bytes.data() + (e * stack.rows() + row) * row_bytes);
    }
  }
  return bytes;
}

/// Undo gives back what was prepared, and every pad holds its fill. Recodings that cannot be
/// undone are left out.
void expect_reversible(const PreparedTensor& tensor) {
  for (const auto& recoder : tensor.plan.recoders) {
    if (!recoder->invertible()) return;
  }
  const Tensor made = make(tensor, 1);
  const std::vector<std::byte> original = dense(*tensor.from);
  std::vector<std::byte> restored(original.size());
  const UndoReport report = undo(tensor.plan.map, made.bytes, tensor.plan.recoders, restored, 1);
  EXPECT_EQ(report.wrong_pads, 0) << tensor.name;
  EXPECT_EQ(report.wrong_copies, 0) << tensor.name;
  EXPECT_TRUE(restored == original) << tensor.name << " does not come back";
}

/// Every element of the input stands in the output, and nothing else but pads.
void expect_complete(const PreparedTensor& tensor) {
  const IndexMap& map = tensor.plan.map;
  std::int64_t elements = 0;
  for (std::int64_t place = 0; place < map.out_elements(); ++place) {
    elements += map.origin(place).pad ? 0 : 1;
  }
  EXPECT_GE(elements, map.in_rows * map.in_cols) << tensor.name;
  EXPECT_EQ(byte_count(tensor), map.experts * map.out_bytes());
  EXPECT_EQ(element_count(tensor.shape) * info(tensor.dtype).bits, 8 * byte_count(tensor))
      << tensor.name;
}

/// The ranks' rows and columns, put side by side, are the whole layer's.
void expect_partition(const std::vector<PreparedLayer>& ranks, const MoeLayer& layer) {
  std::int64_t next = 0;
  for (const PreparedLayer& rank : ranks) {
    EXPECT_EQ(rank.range.begin, next);
    next += rank.range.count;
    EXPECT_EQ(rank.source->shape.intermediate, rank.range.count);
    EXPECT_EQ(rank.source->shape.stride, rank.range.stride);
    EXPECT_EQ(rank.source->shape.full_intermediate, layer.intermediate);
    EXPECT_EQ(rank.source->shape.hidden, layer.expert_width());
  }
  EXPECT_EQ(next, layer.intermediate);
}

/// Plans every rank of every backend that takes the layer; what a backend cannot do is said in one
/// line. Gives the number of backends that took it.
int plan_all(const MoeLayer& layer) {
  int planned = 0;
  for (const Backend* backend : all_backends()) {
    if (!takes(*backend, layer)) continue;
    SCOPED_TRACE(std::string(backend->name));
    const Options options = parse_options(*backend, {});
    for (const std::int64_t tp : {1, 2}) {
      for (const std::int64_t ep : {1, 2}) {
        std::vector<PreparedLayer> ranks;
        std::vector<std::string> errors;
        for (std::int64_t rank = 0; rank < tp; ++rank) {
          try {
            ranks.push_back(plan_layer(*backend, options, layer, {rank, tp, ep - 1, ep}));
          } catch (const Error& error) {
            errors.emplace_back(error.what());
            EXPECT_EQ(errors.back().find('\n'), std::string::npos);
          }
        }
        EXPECT_TRUE(errors.empty() || ranks.empty()) << "some ranks only: " << errors.front();
        if (ranks.empty()) continue;
        planned += tp == 1 && ep == 1 ? 1 : 0;
        expect_partition(ranks, layer);
        for (const PreparedLayer& rank : ranks) {
          for (const PreparedTensor& tensor : rank.tensors) {
            if (tensor.from == nullptr) continue;
            expect_complete(tensor);
            expect_reversible(tensor);
          }
        }
      }
    }
  }
  return planned;
}

struct Model {
  std::string folder;
  int at_least;  ///< backends that take it without options
};

class PlanCheckpoint : public ::testing::TestWithParam<Model> {};

TEST_P(PlanCheckpoint, ForEveryBackendThatTakesIt) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / GetParam().folder);
  const MoeLayer layer = checkpoint.load_layer(checkpoint.moe_layers().front());
  EXPECT_GE(plan_all(layer), GetParam().at_least) << layer.weight_format;
}

INSTANTIATE_TEST_SUITE_P(All, PlanCheckpoint,
                         ::testing::Values(Model{"deepseek_v3_fp8_h256_i128_e8", 1},
                                           Model{"deepseek_v4_mxfp4_h128_i64_e8", 2},
                                           Model{"gpt_oss_mxfp4_h128_i192_e8", 2},
                                           Model{"nemotron_h_modelopt_fp8_h128_i248_e8", 1},
                                           Model{"nemotron_h_modelopt_nvfp4_h128_i208_e8", 1},
                                           Model{"qwen3_moe_ct_fp8_channel_h128_i96_e8", 0},
                                           Model{"qwen3_moe_ct_nvfp4_h128_i96_e8", 1},
                                           Model{"qwen3_moe_fp8block_h128_i192_e8_sharded", 1}),
                         [](const auto& tested) { return tested.param.folder; });

std::string plan_message(std::string_view name, const std::vector<std::string>& options,
                         const MoeLayer& layer, const Shard& rank) {
  const Backend& backend = find_backend(name);
  return error_of([&] { plan_layer(backend, parse_options(backend, options), layer, rank); });
}

PreparedLayer plan(std::string_view name, const std::vector<std::string>& options,
                   const MoeLayer& layer, const Shard& rank) {
  const Backend& backend = find_backend(name);
  return plan_layer(backend, parse_options(backend, options), layer, rank);
}

TEST(PlanLayer, SaysForEveryRankThatAShareCutsAScaleBlock) {
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 48, .weight_format = "nvfp4"});
  for (const std::int64_t rank : {0, 1}) {
    EXPECT_THAT(plan_message("flashinfer_trtllm_nvfp4", {"loader=unpadded"}, layer, {rank, 2}),
                AllOf(HasSubstr("--tp: every rank gets 24 rows of a half, which cuts scale blocks "
                                "of 16"),
                      HasSubstr("multiple of 16")));
  }
}

TEST(PlanLayer, SaysForEveryRankThatAShareCutsAByte) {
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 32, .weight_format = "nvfp4"});
  for (const std::int64_t rank : {0, 31}) {
    EXPECT_THAT(plan_message("flashinfer_trtllm_nvfp4", {"loader=unpadded"}, layer, {rank, 32}),
                HasSubstr("every rank gets 1 rows of a half, which cuts bytes of codes of 2"));
  }
}

TEST(PlanLayer, ChecksTheBackendsRulesFirst) {
  const MoeLayer layer = sample_layer({.intermediate = 192, .weight_format = "fp8_block"});
  EXPECT_THAT(plan_message("flashinfer_trtllm_fp8_block", {"loader=unpadded"}, layer, {0, 2}),
              HasSubstr("flashinfer_trtllm_fp8_block: intermediate is 96"));
  EXPECT_THAT(plan_message("flashinfer_trtllm_bf16", {}, layer, {}),
              HasSubstr("flashinfer_trtllm_bf16: takes bf16 weights, sample has fp8_block"));
}

TEST(PlanLayer, FillsARankWithoutRows) {
  for (const char* format : {"fp8_block", "fp8_tensor", "nvfp4", "mxfp8", "bf16"}) {
    const std::map<std::string, std::string> backends{{"fp8_block", "flashinfer_trtllm_fp8_block"},
                                                      {"fp8_tensor", "flashinfer_trtllm_fp8"},
                                                      {"nvfp4", "flashinfer_trtllm_nvfp4"},
                                                      {"mxfp8", "flashinfer_trtllm_mxfp8"},
                                                      {"bf16", "flashinfer_trtllm_bf16"}};
    const MoeLayer layer =
        sample_layer({.hidden = 128, .intermediate = 256, .weight_format = format});
    const PreparedLayer prepared = plan(backends.at(format), {}, layer, {3, 4});
    EXPECT_EQ(prepared.range.count, 0) << format;
    EXPECT_EQ(prepared.range.stride, 128) << format;
    for (const PreparedTensor& tensor : prepared.tensors) {
      if (tensor.from == nullptr) {
        EXPECT_FALSE(tensor.values.empty()) << tensor.name;
        continue;
      }
      const Tensor made = make(tensor, 1);
      EXPECT_FALSE(made.bytes.empty()) << format << " " << tensor.name;
      EXPECT_EQ(std::count(made.bytes.begin(), made.bytes.end(), std::byte{0}),
                static_cast<std::ptrdiff_t>(made.bytes.size()))
          << format << " " << tensor.name;
    }
  }
}

TEST(PlanLayer, AddsTheDownBiasOnOneRankOnly) {
  const MoeLayer layer = sample_layer({.hidden = 128,
                                       .intermediate = 192,
                                       .bias = true,
                                       .weight_format = "mxfp4",
                                       .interleaved = true});
  for (const std::int64_t rank : {0, 1}) {
    const PreparedLayer prepared = plan("flashinfer_trtllm_mxfp4", {}, layer, {rank, 2});
    const auto bias = std::find_if(prepared.tensors.begin(), prepared.tensors.end(),
                                   [](const auto& tensor) { return tensor.name == "w2_bias"; });
    ASSERT_NE(bias, prepared.tensors.end());
    const Tensor made = make(*bias, 1);
    const bool all_zero = std::all_of(made.bytes.begin(), made.bytes.end(),
                                      [](std::byte b) { return b == std::byte{0}; });
    EXPECT_EQ(all_zero, rank == 1);
  }
}

TEST(PlanLayer, NumbersExpertsOfARankFromItsFirst) {
  const MoeLayer layer = sample_layer({.experts = 6, .weight_format = "bf16"});
  const PreparedLayer prepared =
      plan("flashinfer_trtllm_bf16", {}, layer, {.ep_rank = 1, .ep_size = 3});
  EXPECT_EQ(prepared.source->shape.first_expert, 2);
  EXPECT_EQ(prepared.source->shape.total_experts, 6);
  EXPECT_EQ(prepared.tensors.front().shape.front(), 2);
}

}  // namespace
}  // namespace moeref
