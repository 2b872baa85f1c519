// Every backend of aiter: what its kernel reads, that the function is kept, undo, its rules.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/audit.hpp"
#include "tests/layout/aiter_support.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using namespace testing;
using ::testing::HasSubstr;

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
