// How tensor-parallel ranks cut the intermediate rows.

#include "layout/loader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "layout/sample_layer.hpp"
#include "layout/shard.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::int64_t> counts(const Loader& loader, std::int64_t rows, std::int64_t ranks) {
  std::vector<std::int64_t> counts;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    counts.push_back(loaded_range(loader, rows, rank, ranks).count);
  }
  return counts;
}

std::string message(const Loader& loader, std::int64_t rows, std::int64_t rank,
                    std::int64_t ranks) {
  return error_of([&] { loaded_range(loader, rows, rank, ranks); });
}

TEST(EvenLoader, GivesEveryRankTheSame) {
  EXPECT_THAT(counts({}, 7688, 8), ElementsAre(961, 961, 961, 961, 961, 961, 961, 961));
  const LoadedRange last = loaded_range({}, 7688, 7, 8);
  EXPECT_EQ(last.begin, 6727);
  EXPECT_EQ(last.stride, 961);
}

TEST(EvenLoader, RejectsARowCountThatTheRanksDoNotDivide) {
  EXPECT_THAT(message({}, 2880, 0, 7), HasSubstr("2880, which 7 ranks do not divide"));
}

TEST(PaddedLoader, CutsAtThePaddedSize) {
  const Loader loader{LoaderKind::padded, 128};
  EXPECT_THAT(counts(loader, 7688, 8), ElementsAre(1024, 1024, 1024, 1024, 1024, 1024, 1024, 520));
  EXPECT_EQ(loaded_range(loader, 7688, 7, 8).begin, 7168);
  EXPECT_EQ(loaded_range(loader, 7688, 7, 8).stride, 1024);
}

TEST(PaddedLoader, LeavesLateRanksWithoutRows) {
  const Loader loader{LoaderKind::padded, 128};
  EXPECT_THAT(counts(loader, 1536, 8), ElementsAre(256, 256, 256, 256, 256, 256, 0, 0));
  EXPECT_EQ(loaded_range(loader, 1536, 7, 8).begin, 1536);
  EXPECT_EQ(loaded_range(loader, 1536, 7, 8).stride, 256);
}

TEST(PaddedLoader, PadsASingleRank) {
  const LoadedRange range = loaded_range({LoaderKind::padded, 128}, 192, 0, 1);
  EXPECT_EQ(range.count, 192);
  EXPECT_EQ(range.stride, 256);
}

TEST(BlockLoader, CutsWholeBlocks) {
  const Loader loader{LoaderKind::blocks, 32};
  EXPECT_THAT(counts(loader, 2880, 4), ElementsAre(736, 736, 736, 672));
  EXPECT_THAT(counts(loader, 2880, 8), ElementsAre(384, 384, 384, 384, 384, 384, 384, 192));
}

TEST(BlockLoader, RejectsRowsThatAreNoWholeBlocks) {
  EXPECT_THAT(message({LoaderKind::blocks, 32}, 2888, 0, 4), HasSubstr("cuts blocks of 32"));
}

TEST(Loader, RejectsRanksThatDoNotDivide) {
  for (const LoaderKind kind : {LoaderKind::even, LoaderKind::padded, LoaderKind::blocks}) {
    EXPECT_THAT(message({kind, 32}, 160, 0, 3), HasSubstr("which 3 ranks do not divide"));
    EXPECT_EQ(loaded_range({kind, 32}, 160, 0, 5).count, 32);
  }
}

TEST(Loader, RejectsARankOutsideTheGroup) {
  EXPECT_THAT(message({}, 64, 2, 2), HasSubstr("rank 2/2 does not exist"));
  EXPECT_THAT(message({}, 64, -1, 2), HasSubstr("rank -1/2 does not exist"));
  EXPECT_THAT(message({}, 64, 0, 0), HasSubstr("rank 0/0 does not exist"));
}

TEST(Loader, CoversEveryRowOnce) {
  for (const Loader& loader : {Loader{}, Loader{LoaderKind::padded, 128},
                               Loader{LoaderKind::padded, 16}, Loader{LoaderKind::blocks, 32}}) {
    for (const std::int64_t ranks : {1, 2, 4, 8}) {
      std::int64_t next = 0;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const LoadedRange range = loaded_range(loader, 2880, rank, ranks);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.count, range.stride);
        next += range.count;
      }
      EXPECT_EQ(next, 2880);
    }
  }
}

TEST(TpPart, CutsGateAndUpByRowsAndDownByColumns) {
  const MoeLayer layer = sample_layer({.intermediate = 64, .bias = true, .weight_format = "mxfp4"});
  const MoeLayer part = tp_part(layer, 32, 32);
  EXPECT_EQ(part.intermediate, 32);
  const Expert& expert = part.experts[1];
  const Expert& whole = layer.experts[1];
  EXPECT_EQ(expert.gate.rows, 32);
  EXPECT_EQ(expert.down.cols, 32);
  EXPECT_EQ(code_at(expert.gate, 5, 9), code_at(whole.gate, 37, 9));
  EXPECT_EQ(code_at(expert.up, 31, 0), code_at(whole.up, 63, 0));
  EXPECT_EQ(code_at(expert.down, 7, 3), code_at(whole.down, 7, 35));
  EXPECT_EQ(scale_at(expert.down, 7, 3), scale_at(whole.down, 7, 35));
  EXPECT_EQ(code_at(expert.up_bias, 0, 4), code_at(whole.up_bias, 0, 36));
  EXPECT_FALSE(static_cast<bool>(expert.down_bias));
  EXPECT_TRUE(static_cast<bool>(tp_part(layer, 0, 32).experts[0].down_bias));
}

TEST(TpPart, MayHoldNoRows) {
  const MoeLayer part = tp_part(sample_layer({.intermediate = 64}), 64, 0);
  EXPECT_EQ(part.experts[0].gate.rows, 0);
  EXPECT_EQ(part.experts[0].down.cols, 0);
  EXPECT_EQ(part.experts[0].down.rows, 256);
}

TEST(Shard, KeepsIdsOfItsExpertsGlobal) {
  MoeLayer layer = sample_layer({.experts = 6, .hidden = 32, .intermediate = 32});
  layer.activation.limits = {0, 1, 2, 3, 4, 5};
  const MoeLayer part = shard(layer, {.ep_rank = 2, .ep_size = 3});
  EXPECT_EQ(part.first_expert, 4);
  EXPECT_EQ(part.total_experts, 6);
  EXPECT_THAT(part.activation.limits, ElementsAre(4, 5));
  EXPECT_EQ(code_at(part.experts[1].up, 3, 4), code_at(layer.experts[5].up, 3, 4));
  EXPECT_THROW(shard(layer, {.ep_rank = 0, .ep_size = 4}), Error);
}

}  // namespace
}  // namespace moeref
