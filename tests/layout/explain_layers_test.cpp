// What explain says of the tensors of whole layers, of every backend and rank.
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "layout/explain.hpp"
#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/layout/layout_support.hpp"

namespace moeref {
namespace {

using testing::bit_of;
using testing::Bytes;
using testing::recoded_row;

/// The code of an element of the whole layer.
std::uint32_t whole_code(const MoeLayer& whole, const LogicalElement& element) {
  const Expert& expert = whole.experts[static_cast<std::size_t>(element.expert)];
  const ScaledMatrix& matrix = element.projection == "gate" ? expert.gate
                               : element.projection == "up" ? expert.up
                                                            : expert.down;
  return code_at(matrix, element.row, element.col);
}

/// The rank's own row and column of an explained element.
struct LocalElement {
  std::int64_t expert, row, col;
};

LocalElement local_of(const PreparedLayer& layer, const PreparedTensor& tensor,
                      const LogicalElement& element) {
  const TensorStack& stack = *tensor.from;
  const Slot slot = source_slot(layer, tensor);
  const bool by_rows = slot == Slot::w13 || slot == Slot::w13_scale || slot == Slot::w13_bias;
  const bool by_cols = slot == Slot::w2 || slot == Slot::w2_scale;
  const auto begin = [&](bool cut, std::int64_t block) {
    return cut && block != kWholeAxis ? layer.range.begin / block : 0;
  };
  const std::int64_t half = element.projection == "up" && stack.halves == 2 ? 1 : 0;
  return {element.expert - layer.source->shape.first_expert,
          half * stack.half_rows + element.row - begin(by_rows, stack.block_rows),
          element.col - begin(by_cols, stack.block_cols)};
}

void expect_explains_layer(const PreparedLayer& layer, const MoeLayer& whole) {
  std::mt19937_64 generator(11);
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.from == nullptr || byte_count(tensor) == 0) continue;
    SCOPED_TRACE(tensor.name);
    const Tensor made = make(tensor, 1);
    const int bits = tensor.plan.map.element_bits;
    const Slot slot = source_slot(layer, tensor);
    for (int i = 0; i < 40; ++i) {
      const auto byte =
          static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(byte_count(tensor)));
      for (const Meaning& meaning : explain_byte(layer, tensor, byte)) {
        if (meaning.pad) {
          for (int b = 0; b < meaning.bits; ++b) {
            ASSERT_EQ(bit_of(made.bytes, meaning.bit + b),
                      std::to_integer<int>(meaning.fill) >> ((meaning.bit + b) % 8) & 1);
          }
          continue;
        }
        const LocalElement at = local_of(layer, tensor, meaning.element);
        const Bytes row = recoded_row(tensor, at.expert, at.row);
        for (int b = 0; b < meaning.bits; ++b) {
          ASSERT_EQ(bit_of(made.bytes, meaning.bit + b),
                    bit_of(row, at.col * bits + meaning.element_bit + b))
              << describe(meaning);
        }
        const bool is_code = slot == Slot::w13 || slot == Slot::w2;
        if (is_code && tensor.plan.recoders.empty()) {
          ASSERT_EQ(bit_of(made.bytes, meaning.bit),
                    static_cast<int>(whole_code(whole, meaning.element) >> meaning.element_bit & 1))
              << describe(meaning);
        }
        bool found = false;
        for (const Meaning& part : find_element(layer, tensor, meaning.element)) {
          found = found ||
                  (part.bit <= meaning.bit && meaning.bit + meaning.bits <= part.bit + part.bits);
        }
        ASSERT_TRUE(found) << describe(meaning);
      }
    }
  }
}

TEST(Explain, AgreesWithMakeForEveryBackendAndRank) {
  const std::vector<Shard> ranks{{}, {1, 2, 0, 1}, {7, 8, 0, 1}, {0, 1, 3, 4}, {1, 2, 1, 2}};
  for (const Backend* backend : all_backends()) {
    int planned = 0;
    for (const std::string_view format : backend->formats) {
      for (const bool gated : {true, false}) {
        SampleShape shape{.experts = 4, .hidden = 256, .intermediate = 1024, .gated = gated};
        if (gated) shape.limit = 10.0f;  // some kernels have nothing else
        shape.weight_format = format;
        const MoeLayer plain = sample_layer(shape);
        shape.bias = gated;
        const MoeLayer biased = sample_layer(shape);
        for (const Shard& rank : ranks) {
          const MoeLayer& whole = rank.is_whole() ? biased : plain;
          SCOPED_TRACE(std::string(backend->name) + " " + std::string(format) +
                       (gated ? " gated " : " ") + std::to_string(rank.tp_rank) + "/" +
                       std::to_string(rank.tp_size));
          std::optional<PreparedLayer> layer;
          try {
            layer = plan_layer(*backend, parse_options(*backend, {}), whole, rank);
          } catch (const Error&) {
            continue;  // the backend's rules refuse it
          }
          ++planned;
          expect_explains_layer(*layer, whole);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
    EXPECT_GT(planned, 0) << backend->name;
  }
}

TEST(Explain, CountsScaleBlocksOfTheWholeModel) {
  const Backend& backend = find_backend("reference");
  const MoeLayer whole = sample_layer(
      {.experts = 4, .hidden = 256, .intermediate = 512, .weight_format = "fp8_block"});
  const PreparedLayer layer = plan_layer(backend, parse_options(backend, {}), whole, {1, 2, 1, 2});
  const auto at = [&](std::string_view name, std::int64_t byte) {
    for (const PreparedTensor& tensor : layer.tensors) {
      if (tensor.name == name) return describe(explain_byte(layer, tensor, byte).front());
    }
    return std::string("absent");
  };
  EXPECT_EQ(at("w13", 0), "expert 2, gate row 256, column 0");
  EXPECT_EQ(at("w13", 256 * 256), "expert 2, up row 256, column 0");
  EXPECT_EQ(at("w2", 1), "expert 2, down row 0, column 257");
  EXPECT_EQ(at("w13_scale", 0),
            "expert 2, gate scale row 2, column 0 (weight rows 256..383, columns 0..127)");
  EXPECT_EQ(at("w2_scale", 4),
            "expert 2, down scale row 0, column 3 (weight rows 0..127, columns 384..511)");
}

TEST(Explain, FindsNothingOfOtherRanks) {
  const Backend& backend = find_backend("reference");
  const MoeLayer whole =
      sample_layer({.experts = 4, .hidden = 64, .intermediate = 64, .weight_format = "bf16"});
  const PreparedLayer layer = plan_layer(backend, parse_options(backend, {}), whole, {1, 2, 1, 2});
  const PreparedTensor& w13 = layer.tensors.front();
  LogicalElement element;
  element.projection = "up";
  element.expert = 2;
  element.row = 40;
  ASSERT_EQ(find_element(layer, w13, element).size(), 1u);
  EXPECT_EQ(find_element(layer, w13, element).front().bit, (32 + 8) * 64 * 16);
  EXPECT_EQ(find_element(layer, w13, element).front().bits, 16);
  element.row = 31;
  EXPECT_TRUE(find_element(layer, w13, element).empty());
  element.row = 40;
  element.expert = 1;
  EXPECT_TRUE(find_element(layer, w13, element).empty());
  element.expert = 4;
  EXPECT_THROW(find_element(layer, w13, element), Error);
}

TEST(Explain, RefusesScalars) {
  const Backend& backend = find_backend("reference");
  const MoeLayer whole = sample_layer({.weight_format = "nvfp4"});
  const PreparedLayer layer = plan_layer(backend, parse_options(backend, {}), whole, {});
  int scalars = 0;
  for (const PreparedTensor& tensor : layer.tensors) {
    if (tensor.from != nullptr) continue;
    ++scalars;
    EXPECT_THROW(explain_byte(layer, tensor, 0), Error);
  }
  EXPECT_GT(scalars, 0);
}

}  // namespace
}  // namespace moeref
