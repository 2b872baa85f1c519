#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

#include "engine/audit.hpp"
#include "layout/prepare.hpp"
#include "layout/recode/max_requantize.hpp"
#include "layout/sample_layer.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using Bytes = std::vector<std::byte>;
using ::testing::HasSubstr;
using ::testing::Not;

struct Backed {
  std::string_view backend;
  std::vector<std::string> options;
  std::string format;
};

const std::vector<Backed> kAll{
    {"aiter_fp8_tensor", {"device=gfx942"}, "fp8_tensor"},
    {"aiter_fp8_tensor", {"device=gfx950"}, "fp8_tensor"},
    {"aiter_fp8_channel", {"device=gfx942"}, "fp8_channel"},
    {"aiter_fp8_channel", {"device=gfx950"}, "fp8_channel"},
    {"aiter_fp8_block", {"device=gfx942"}, "fp8_block"},
    {"aiter_fp8_block", {"device=gfx950"}, "fp8_block"},
    {"aiter_mxfp4", {"device=gfx950"}, "mxfp4"},
    {"aiter_mxfp4", {"device=gfx942", "loader=unpadded"}, "mxfp4"},
    {"aiter_a16w4", {"w13=separated"}, "mxfp4"},
    {"aiter_a16w4", {"w13=interleaved"}, "mxfp4"},
};

MoeLayer layer_of(const std::string& format, std::int64_t experts, std::int64_t hidden,
                  std::int64_t intermediate, bool gated = true, bool bias = false) {
  return sample_layer({.experts = experts,
                       .hidden = hidden,
                       .intermediate = intermediate,
                       .gated = gated,
                       .bias = bias,
                       .weight_format = format,
                       .seed = 11});
}

PreparedLayer prepared(const Backed& backed, const MoeLayer& layer, const Shard& rank = {}) {
  const Backend& backend = find_backend(backed.backend);
  return plan_layer(backend, parse_options(backend, backed.options), layer, rank);
}

const PreparedTensor& find(const PreparedLayer& layer, std::string_view name) {
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::out_of_range(std::string(name));
}

std::uint32_t element(const Bytes& bytes, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(bytes[static_cast<std::size_t>(index / 2)]) >>
               (4 * (index % 2)) &
           15u;
  }
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + index * bits / 8, static_cast<std::size_t>(bits / 8));
  return value;
}

/// A row of the loaded tensor after the recodings.
Bytes recoded_row(const PreparedTensor& tensor, std::int64_t expert, std::int64_t row) {
  const TensorStack& stack = *tensor.from;
  Bytes piece(static_cast<std::size_t>(stack.cols * stack.element_bits / 8));
  stack.read(expert, row, 0, stack.cols, piece.data());
  for (const auto& recoder : tensor.plan.recoders) {
    Bytes next(static_cast<std::size_t>(stack.cols * recoder->out_bits() / 8));
    recoder->rewrite({expert, row, 0}, piece, next);
    piece = std::move(next);
  }
  return piece;
}

/// Sizes of a tensor in the kernel's view.
struct KernelMatrix {
  int halves = 1;
  std::int64_t half_rows = 0;
  std::int64_t cols = 0;
};

KernelMatrix kernel_matrix(const PreparedLayer& layer, Slot slot) {
  const KernelReading& kernel = layer.recipe.kernel;
  const int halves = layer.source->shape.halves();
  const auto blocks = [](std::int64_t size, std::int64_t block) { return ceil_div(size, block); };
  switch (slot) {
    case Slot::w13:
      return {halves, kernel.intermediate, kernel.hidden};
    case Slot::w13_scale:
      return {halves, blocks(kernel.intermediate, kernel.block_rows),
              blocks(kernel.hidden, kernel.block_cols)};
    case Slot::w13_bias:
      return {halves, kernel.intermediate, 1};
    case Slot::w2:
      return {1, kernel.hidden, kernel.intermediate};
    case Slot::w2_scale:
      return {1, blocks(kernel.hidden, kernel.block_rows),
              blocks(kernel.intermediate, kernel.block_cols)};
    case Slot::w2_bias:
      return {1, kernel.hidden, 1};
  }
  return {};
}

/// The prepared tensor with the kernel's own steps undone, dense.
Bytes as_kernel_reads(const PreparedLayer& layer, const TensorRecipe& recipe,
                      const PreparedTensor& tensor) {
  const KernelMatrix matrix = kernel_matrix(layer, recipe.from);
  TensorStack blank;
  blank.name = tensor.name;
  blank.dtype = tensor.dtype;
  blank.element_bits = tensor.plan.map.element_bits;
  blank.experts = tensor.plan.map.experts;
  blank.halves = matrix.halves;
  blank.half_rows = matrix.half_rows;
  blank.cols = matrix.cols;
  const std::vector<Step> kernel(
      recipe.steps.end() - static_cast<std::ptrdiff_t>(recipe.kernel_steps), recipe.steps.end());
  const Plan plan = make_plan(tensor.name, blank, kernel, nullptr);
  const Tensor made = make(tensor, 1);
  Bytes dense(
      static_cast<std::size_t>(blank.experts * blank.rows() * blank.cols * blank.element_bits / 8));
  EXPECT_EQ(made.bytes.size(), dense.size()) << tensor.name;
  if (made.bytes.size() == dense.size()) undo(plan.map, made.bytes, {}, dense, 1);
  return dense;
}

/// Every element of the kernel's matrices is the loaded one, recoded, and 0 outside.
void expect_kernel_reads_layer(const PreparedLayer& layer) {
  for (const TensorRecipe& recipe : layer.recipe.tensors) {
    const PreparedTensor& tensor = find(layer, recipe.name);
    SCOPED_TRACE(recipe.name);
    const TensorStack& stack = *tensor.from;
    const KernelMatrix matrix = kernel_matrix(layer, recipe.from);
    const Bytes dense = as_kernel_reads(layer, recipe, tensor);
    const int bits = tensor.plan.map.element_bits;
    std::int64_t wrong = 0;
    for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
      for (std::int64_t row = 0; row < matrix.halves * matrix.half_rows; ++row) {
        const std::int64_t half = row / matrix.half_rows;
        const std::int64_t inside = row % matrix.half_rows;
        const bool real = inside < stack.half_rows;
        const Bytes loaded =
            real ? recoded_row(tensor, expert, half * stack.half_rows + inside) : Bytes{};
        for (std::int64_t col = 0; col < matrix.cols; ++col) {
          const std::int64_t at =
              (expert * matrix.halves * matrix.half_rows + row) * matrix.cols + col;
          const std::uint32_t expected = real && col < stack.cols ? element(loaded, col, bits) : 0u;
          wrong += element(dense, at, bits) != expected;
        }
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(AiterBackends, GiveTheKernelTheLoadedTensorsAndZeros) {
  for (const Backed& backed : kAll) {
    for (const bool gated : {true, false}) {
      for (const std::int64_t experts : {1, 3}) {
        for (const std::int64_t intermediate : {32, 128, 192}) {
          SCOPED_TRACE(std::string(backed.backend) + " " + backed.options[0]);
          expect_kernel_reads_layer(
              prepared(backed, layer_of(backed.format, experts, 256, intermediate, gated)));
        }
      }
    }
  }
}

TEST(AiterBackends, GiveEveryRankItsPart) {
  for (const Backed& backed : kAll) {
    const MoeLayer layer = layer_of(backed.format, 4, 256, 512);
    for (const std::int64_t rank : {0, 1, 7}) {
      SCOPED_TRACE(std::string(backed.backend));
      expect_kernel_reads_layer(prepared(
          backed, layer, {.tp_rank = rank, .tp_size = 8, .ep_rank = rank % 4, .ep_size = 4}));
    }
  }
}

AuditReport audited(const Backed& backed, const MoeLayer& layer, const Shard& rank = {}) {
  const Backend& backend = find_backend(backed.backend);
  return audit(backend, parse_options(backend, backed.options), layer, rank, 1);
}

TEST(AiterBackends, KeepTheFunction) {
  for (const Backed& backed : kAll) {
    for (const bool gated : {true, false}) {
      SCOPED_TRACE(std::string(backed.backend) + " " + backed.options[0]);
      const MoeLayer layer = layer_of(backed.format, 2, 256, 96, gated);
      const AuditReport report = audited(backed, layer);
      EXPECT_TRUE(report.survives) << report.first_difference;
      EXPECT_GT(report.outputs, 0);
    }
  }
  const AuditReport gpt_oss = audited(kAll.back(), layer_of("mxfp4", 2, 288, 96, true, true));
  EXPECT_TRUE(gpt_oss.survives) << gpt_oss.first_difference;
}

TEST(AiterBackends, UndoGivesBackCodesAndFindsNoWrongPad) {
  for (const Backed& backed : kAll) {
    const PreparedLayer layer = prepared(backed, layer_of(backed.format, 2, 256, 96));
    for (const PreparedTensor& tensor : layer.tensors) {
      if (tensor.from == nullptr) continue;
      SCOPED_TRACE(std::string(backed.backend) + " " + tensor.name);
      const Tensor made = make(tensor, 1);
      const IndexMap& map = tensor.plan.map;
      const int bits = restored_bits(map, tensor.plan.recoders);
      Bytes back(static_cast<std::size_t>(map.experts * map.in_rows * map.in_cols * bits / 8));
      const UndoReport report = undo(map, made.bytes, tensor.plan.recoders, back, 1);
      EXPECT_EQ(report.wrong_pads, 0);
      EXPECT_EQ(report.copies, 0);
      const bool invertible =
          std::all_of(tensor.plan.recoders.begin(), tensor.plan.recoders.end(),
                      [](const auto& recoder) { return recoder->invertible(); });
      Bytes loaded;
      for (std::int64_t expert = 0; expert < map.experts; ++expert) {
        for (std::int64_t row = 0; row < map.in_rows; ++row) {
          Bytes piece(static_cast<std::size_t>(map.in_cols * tensor.from->element_bits / 8));
          tensor.from->read(expert, row, 0, map.in_cols, piece.data());
          if (!invertible) piece = recoded_row(tensor, expert, row);
          loaded.insert(loaded.end(), piece.begin(), piece.end());
        }
      }
      EXPECT_EQ(back, loaded);
    }
  }
}

TEST(AiterFp8Block, LeavesTheLastRanksEmptyWhenHalvesArePadded) {
  // 1536 rows on 8 ranks: 192 each become 256, of which six ranks use all.
  const MoeLayer layer = layer_of("fp8_block", 1, 128, 1536);
  const Backed backed{"aiter_fp8_block", {"device=gfx950"}, "fp8_block"};
  const PreparedLayer full = prepared(backed, layer, {.tp_rank = 5, .tp_size = 8});
  EXPECT_EQ(full.range.begin, 1280);
  EXPECT_EQ(full.range.count, 256);
  for (const std::int64_t rank : {6, 7}) {
    const PreparedLayer empty = prepared(backed, layer, {.tp_rank = rank, .tp_size = 8});
    EXPECT_EQ(empty.range.count, 0);
    EXPECT_EQ(find(empty, "w13").shape, (Shape{1, 512, 128}));
    EXPECT_EQ(find(empty, "w13_scale").shape, (Shape{1, 4, 1}));
    EXPECT_EQ(find(empty, "w2_scale").shape, (Shape{1, 1, 2}));
    for (const std::string_view name : {"w13", "w13_scale", "w2", "w2_scale"}) {
      const Tensor made = make(find(empty, name), 1);
      EXPECT_THAT(made.bytes, ::testing::Each(std::byte{0})) << name;
    }
  }
}

TEST(AiterFp8Block, DoublesScalesForFnuzDevices) {
  const MoeLayer layer = layer_of("fp8_block", 1, 128, 128);
  const Tensor fnuz = make(find(prepared({"aiter_fp8_block", {}, ""}, layer), "w2_scale"), 1);
  const Tensor ocp =
      make(find(prepared({"aiter_fp8_block", {"device=gfx950"}, ""}, layer), "w2_scale"), 1);
  EXPECT_EQ(fnuz.view().at<float>(0), 2.0f * ocp.view().at<float>(0));
  EXPECT_EQ(find(prepared({"aiter_fp8_block", {}, ""}, layer), "w2").dtype, DType::f8_e4m3fnuz);
}

TEST(AiterFp8Channel, PadsTheScalesOfGateAndUpWithTheirRows) {
  const PreparedLayer layer =
      prepared({"aiter_fp8_channel", {}, ""}, layer_of("fp8_channel", 2, 64, 96));
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 256, 64}));
  EXPECT_EQ(find(layer, "w13_scale").shape, (Shape{2, 256, 1}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 64, 1}));
}

TEST(AiterFp8Tensor, WritesTheLargerScaleForEveryRow) {
  const MoeLayer source = layer_of("fp8_tensor", 2, 64, 96);
  const PreparedLayer layer = prepared({"aiter_fp8_tensor", {"device=gfx942"}, ""}, source);
  const ExpertScalars& scalars = layer.source->scalars;
  const std::vector<float>& w13 = find(layer, "w13_scale1").values;
  ASSERT_EQ(w13.size(), 2u * 2u * 128u);
  for (std::size_t expert = 0; expert < 2; ++expert) {
    const float larger = std::max(scalars.w13_scale[2 * expert], scalars.w13_scale[2 * expert + 1]);
    EXPECT_EQ(w13[expert * 256], 2.0f * larger);
    EXPECT_EQ(w13[expert * 256 + 255], 2.0f * larger);
  }
  const std::vector<float>& w2 = find(layer, "w2_scale1").values;
  ASSERT_EQ(w2.size(), 2u * 64u);
  EXPECT_EQ(w2[64], 2.0f * scalars.w2_scale[1]);
  const KernelReading& kernel = layer.recipe.kernel;
  const ScalarValues values{{"w13_scale1", w13}, {"w2_scale1", w2}};
  EXPECT_EQ(kernel.gate_factor(values, 1), w13[256]);
  EXPECT_EQ(kernel.up_factor(values, 1), w13[384]);
  EXPECT_EQ(kernel.down_factor(values, 1), w2[64]);
}

/// Rows of w13 whose bytes the upstream requantization changes, as (half, row).
std::vector<std::pair<std::int64_t, std::int64_t>> differing_rows(const MoeLayer& layer,
                                                                  const Shard& rank) {
  const auto dense = [&](const char* option) {
    const PreparedLayer made =
        prepared({"aiter_fp8_tensor", {"device=gfx950", option}, ""}, layer, rank);
    return std::pair(as_kernel_reads(made, made.recipe.tensors[0], find(made, "w13")),
                     made.recipe.kernel);
  };
  const auto [right, kernel] = dense("requantize=per_half");
  const auto [upstream, same] = dense("requantize=unpadded_offset_upstream");
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;
  for (std::int64_t row = 0; row < 2 * kernel.intermediate; ++row) {
    const auto begin = row * kernel.hidden;
    if (!std::equal(right.begin() + begin, right.begin() + begin + kernel.hidden,
                    upstream.begin() + begin)) {
      rows.emplace_back(row / kernel.intermediate, row % kernel.intermediate);
    }
  }
  return rows;
}

TEST(AiterFp8Tensor, UpstreamOffsetsAreRightWithoutPadding) {
  EXPECT_TRUE(differing_rows(layer_of("fp8_tensor", 1, 64, 256), {}).empty());
}

TEST(AiterFp8Tensor, UpstreamOffsetsLeaveTheLastRowsOfUpWithTheirOldCodes) {
  // 192 rows in 256: rows 0 .. 383 of 512 are requantized, up ends at row 447.
  const MoeLayer layer = layer_of("fp8_tensor", 1, 64, 192);
  const PreparedLayer loaded = prepared({"aiter_fp8_tensor", {"device=gfx950"}, ""}, layer);
  const std::vector<float>& scales = loaded.source->scalars.w13_scale;
  const auto rows = differing_rows(layer, {});
  // Codes that requantization would not change do not show.
  if (scales[1] < scales[0]) {
    EXPECT_EQ(rows.size(), 64u);
  }
  for (const auto& [half, row] : rows) {
    EXPECT_EQ(half, 1);
    EXPECT_GE(row, 128);
    EXPECT_LT(row, 192);
  }
}

TEST(AiterFp8Tensor, UpstreamOffsetsGiveFullRanksOfGateTheScaleOfUp) {
  // Ranks hold 256 rows, upstream counts 192: gate's rows 192 .. 255 take up's scale.
  const MoeLayer layer = layer_of("fp8_tensor", 1, 64, 384);
  const auto rows = differing_rows(layer, {.tp_rank = 0, .tp_size = 2});
  EXPECT_THAT(rows, ::testing::Contains(::testing::Pair(0, ::testing::Ge(192))));
  EXPECT_THAT(rows, ::testing::Each(::testing::AnyOf(::testing::Pair(0, ::testing::Ge(192)),
                                                     ::testing::Pair(1, ::testing::Ge(128)))));
}

TEST(AiterFp8Tensor, NotesMisplacedRowsWhereverThereAreSome) {
  const auto note = [](std::int64_t intermediate, const Shard& rank, const char* option) {
    return prepared({"aiter_fp8_tensor", {option}, ""}, layer_of("fp8_tensor", 1, 32, intermediate),
                    rank)
        .recipe.notes.back();
  };
  const Shard rank{.tp_rank = 5, .tp_size = 8};  // 256 rows, none of them padding
  constexpr const char* kUpstream = "requantize=unpadded_offset_upstream";
  EXPECT_THAT(note(1536, rank, kUpstream), HasSubstr("upstream defect: rows are requantized as if "
                                                     "the up half began at row 192"));
  EXPECT_THAT(note(96, {}, kUpstream),
              HasSubstr("began at row 96 of the rank, it begins at row 128"));
  EXPECT_THAT(note(1024, rank, kUpstream), Not(HasSubstr("defect")));
  EXPECT_THAT(note(1536, rank, "requantize=per_half"), Not(HasSubstr("defect")));
}

TEST(AiterMxfp4, ShufflesTheScalesOfAllExpertsTogether) {
  const PreparedLayer layer =
      prepared({"aiter_mxfp4", {}, "mxfp4"}, layer_of("mxfp4", 3, 256, 256));
  const PreparedTensor& scale = find(layer, "w13_scale");
  const Tensor made = make(scale, 1);
  ASSERT_EQ(made.shape, (Shape{3, 512, 8}));
  for (std::int64_t r = 0; r < 3 * 512; ++r) {
    const Bytes row = recoded_row(scale, r / 512, r % 512);
    for (std::int64_t c = 0; c < 8; ++c) {
      const std::int64_t place =
          r / 32 * 32 * 8 + c / 8 * 256 + c % 4 * 64 + r % 16 * 4 + c / 4 % 2 * 2 + r / 16 % 2;
      ASSERT_EQ(made.bytes[static_cast<std::size_t>(place)], row[static_cast<std::size_t>(c)]);
    }
  }
}

TEST(AiterMxfp4, ShufflesWeightsOnGfx950Only) {
  const MoeLayer source = layer_of("mxfp4", 1, 256, 256);
  const PreparedLayer plain = prepared({"aiter_mxfp4", {"device=gfx942"}, ""}, source);
  const PreparedLayer tiled = prepared({"aiter_mxfp4", {"device=gfx950"}, ""}, source);
  const Tensor rows = make(find(plain, "w2"), 1);
  const Tensor tiles = make(find(tiled, "w2"), 1);
  EXPECT_EQ(rows.shape, tiles.shape);
  EXPECT_EQ(rows.shape, (Shape{1, 256, 128}));
  for (std::int64_t n = 0; n < 256; ++n) {
    for (std::int64_t c = 0; c < 128; ++c) {
      const std::int64_t place = (n / 16 * 8 + c / 16) * 256 + n % 16 * 16 + c % 16;
      ASSERT_EQ(tiles.bytes[static_cast<std::size_t>(place)],
                rows.bytes[static_cast<std::size_t>(n * 128 + c)]);
    }
  }
}

TEST(AiterMxfp4, PadsTo256ValuesAHalf) {
  const PreparedLayer layer = prepared({"aiter_mxfp4", {}, ""}, layer_of("mxfp4", 2, 256, 768),
                                       {.tp_rank = 1, .tp_size = 2});
  EXPECT_EQ(layer.range.begin, 512);
  EXPECT_EQ(layer.range.count, 256);
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 1024, 128}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 256, 16}));
}

TEST(AiterA16w4, AlternatesBlocksOf16RowsIfInterleaved) {
  const PreparedLayer layer =
      prepared({"aiter_a16w4", {"w13=interleaved"}, ""}, layer_of("mxfp4", 1, 256, 256));
  const PreparedTensor& weight = find(layer, "w13");
  const PreparedTensor& scale = find(layer, "w13_scale");
  const Tensor codes = make(weight, 1);
  const Tensor scales = make(scale, 1);
  for (std::int64_t n = 0; n < 512; ++n) {
    const std::int64_t g = n / 256;
    const std::int64_t r = n % 256;
    const Bytes row = recoded_row(weight, 0, n);
    for (std::int64_t c = 0; c < 128; ++c) {
      const std::int64_t place = (((r / 16) * 2 + g) * 8 + c / 16) * 256 + r % 16 * 16 + c % 16;
      ASSERT_EQ(codes.bytes[static_cast<std::size_t>(place)], row[static_cast<std::size_t>(c)]);
    }
    const Bytes scale_row = recoded_row(scale, 0, n);
    for (std::int64_t c = 0; c < 8; ++c) {
      const std::int64_t place = r / 16 * 32 * 8 + c % 4 * 64 + r % 16 * 4 + c / 4 % 2 * 2 + g;
      ASSERT_EQ(scales.bytes[static_cast<std::size_t>(place)],
                scale_row[static_cast<std::size_t>(c)]);
    }
  }
}

TEST(AiterA16w4, PadsBothSizesTo256AndWidensBiases) {
  const PreparedLayer layer =
      prepared({"aiter_a16w4", {"w13=interleaved"}, ""}, layer_of("mxfp4", 2, 288, 96, true, true));
  EXPECT_EQ(find(layer, "w13").shape, (Shape{2, 512, 256}));
  EXPECT_EQ(find(layer, "w13_scale").shape, (Shape{2, 512, 16}));
  EXPECT_EQ(find(layer, "w2").shape, (Shape{2, 512, 128}));
  EXPECT_EQ(find(layer, "w2_scale").shape, (Shape{2, 512, 8}));
  EXPECT_EQ(find(layer, "w13_bias").dtype, DType::f32);
  EXPECT_EQ(find(layer, "w2_bias").dtype, DType::f32);
  EXPECT_EQ(find(layer, "swiglu_limit").values, std::vector<float>{7.0f});
  expect_kernel_reads_layer(layer);
}

TEST(AiterA16w4, CutsGptOssByBlocksOf32) {
  const MoeLayer layer = layer_of("mxfp4", 1, 256, 160, true, true);
  std::vector<std::int64_t> counts;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const PreparedLayer made =
        prepared({"aiter_a16w4", {}, ""}, layer, {.tp_rank = rank, .tp_size = 4});
    counts.push_back(made.range.count);
    expect_kernel_reads_layer(made);
  }
  EXPECT_EQ(counts, (std::vector<std::int64_t>{64, 64, 32, 0}));
}

TEST(AiterA16w4, PassesNoLimitIfThereIsNone) {
  const PreparedLayer layer = prepared({"aiter_a16w4", {}, ""}, layer_of("mxfp4", 1, 256, 256));
  EXPECT_THROW(find(layer, "swiglu_limit"), std::out_of_range);
}

TEST(AiterA16w4, RefusesLimitsThatDiffer) {
  MoeLayer layer = layer_of("mxfp4", 2, 256, 256);
  layer.activation.limits = {7.0f, 8.0f};
  EXPECT_THROW(prepared({"aiter_a16w4", {}, ""}, layer), Error);
}

void expect_error(const Backed& backed, const MoeLayer& layer, const std::string& text) {
  EXPECT_THAT(error_of([&] { prepared(backed, layer); }), HasSubstr(text)) << backed.backend;
}

TEST(AiterBackends, NameTheRuleThatALayerBreaks) {
  for (const std::string format : {"fp8_tensor", "fp8_channel", "fp8_block"}) {
    const std::string name = "aiter_" + format;
    expect_error({name, {}, format}, layer_of(format, 1, 48, 64),
                 "hidden is 48, it must be a multiple of 32");
  }
  expect_error({"aiter_fp8_tensor", {"requantize=unpadded_offset_upstream"}, ""},
               layer_of("fp8_tensor", 1, 64, 64, false), "is not gated");
  expect_error({"aiter_mxfp4", {}, ""}, layer_of("mxfp4", 1, 128, 64),
               "hidden is 128, it must be a multiple of 256");
  expect_error({"aiter_fp8_block", {}, ""}, layer_of("fp8_block", 1, 128, 64, true, true),
               "adds no bias");
  expect_error({"aiter_fp8_block", {}, ""}, layer_of("mxfp4", 1, 128, 64),
               "takes fp8_block weights");
}

}  // namespace
}  // namespace moeref
