#include "layout/tensor_stack.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "quant/error.hpp"
#include "tests/layout/random_map.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using testing::draw;
using Bytes = std::vector<std::byte>;

/// Element `index` of a buffer, as a number.
std::uint32_t number(const Bytes& bytes, std::int64_t index, int bits) {
  if (bits == 4) {
    return std::to_integer<std::uint32_t>(bytes[static_cast<std::size_t>(index / 2)]) >>
               (index % 2 == 0 ? 0 : 4) &
           15u;
  }
  std::uint32_t value = 0;
  for (int byte = bits / 8 - 1; byte >= 0; --byte) {
    const auto at = static_cast<std::size_t>(index * (bits / 8) + byte);
    value = value << 8 | std::to_integer<std::uint32_t>(bytes[at]);
  }
  return value;
}

TensorStack dense(const Bytes& bytes, Shape shape, GateOrder order, int bits, DType dtype) {
  return dense_stack({"w13", dtype, std::move(shape), bytes}, order, bits);
}

/// The row of the file at which a logical row stands.
void expect_rows(GateOrder order, int halves, const std::vector<std::int64_t>& file_rows) {
  std::mt19937_64 random(1);
  const auto rows = static_cast<std::int64_t>(file_rows.size());
  const Bytes bytes = testing::random_bytes(random, 2 * rows * 3);
  const TensorStack stack = dense(bytes, {2, rows, 3}, order, 8, DType::u8);
  EXPECT_EQ(stack.halves, halves);
  EXPECT_EQ(stack.rows(), rows);
  EXPECT_EQ(stack.cols, 3);
  for (std::int64_t expert = 0; expert < 2; ++expert) {
    for (std::int64_t row = 0; row < rows; ++row) {
      Bytes read(3);
      stack.read(expert, row, 0, 3, read.data());
      const auto begin =
          bytes.begin() + (expert * rows + file_rows[static_cast<std::size_t>(row)]) * 3;
      EXPECT_EQ(read, Bytes(begin, begin + 3)) << "expert " << expert << " row " << row;
    }
  }
}

TEST(DenseStack, GivesGateRowsFirstWhateverTheFileHas) {
  expect_rows(GateOrder::separate, 1, {0, 1, 2, 3});
  expect_rows(GateOrder::none, 1, {0, 1, 2});
  expect_rows(GateOrder::gate_up, 2, {0, 1, 2, 3});
  expect_rows(GateOrder::up_gate, 2, {2, 3, 0, 1});
  expect_rows(GateOrder::interleaved, 2, {0, 2, 4, 1, 3, 5});
}

TEST(DenseStack, AddsMissingDimensions) {
  const Bytes bytes(12);
  const TensorStack matrix = dense(bytes, {3, 4}, GateOrder::none, 8, DType::u8);
  EXPECT_EQ(matrix.experts, 1);
  EXPECT_EQ(matrix.half_rows, 3);
  EXPECT_EQ(matrix.cols, 4);
  const TensorStack vector = dense(bytes, {12}, GateOrder::none, 8, DType::u8);
  EXPECT_EQ(vector.experts, 1);
  EXPECT_EQ(vector.half_rows, 12);
  EXPECT_EQ(vector.cols, 1);
}

TEST(DenseStack, CountsFp4ColumnsInCodes) {
  const Bytes bytes(12);
  EXPECT_EQ(dense(bytes, {1, 3, 4}, GateOrder::none, 4, DType::u8).cols, 8);
  EXPECT_EQ(dense(bytes, {1, 3, 1}, GateOrder::none, 4, DType::i32).cols, 8);
}

TEST(DenseStack, TakesNoRowsAndNoExperts) {
  const Bytes bytes;
  const TensorStack no_rows = dense(bytes, {2, 0, 8}, GateOrder::gate_up, 8, DType::u8);
  EXPECT_EQ(no_rows.rows(), 0);
  EXPECT_EQ(no_rows.planes.size(), 4u);
  EXPECT_TRUE(dense(bytes, {0, 4, 8}, GateOrder::gate_up, 8, DType::u8).planes.empty());
}

TEST(DenseStack, RejectsOtherRanksAndOddHalves) {
  const Bytes bytes(8);
  const auto message = [&](Shape shape, GateOrder order) -> std::string {
    return error_of([&] { dense(bytes, std::move(shape), order, 8, DType::u8); });
  };
  EXPECT_EQ(message({1, 2, 2, 2}, GateOrder::none),
            "w13: has shape [1, 2, 2, 2]; needed is [experts, rows, columns]");
  EXPECT_THAT(message({}, GateOrder::none), ::testing::HasSubstr("w13: has shape"));
  for (const GateOrder order : {GateOrder::gate_up, GateOrder::up_gate, GateOrder::interleaved}) {
    EXPECT_EQ(message({1, 3, 2}, order), "w13: has 3 rows; gate and up need an even number");
  }
  EXPECT_EQ(message({1, 3, 2}, GateOrder::none), "no error");
  EXPECT_EQ(message({1, 3, 2}, GateOrder::separate), "no error");
}

TEST(TensorStack, ReadsAnyStrideOfAnyElementSize) {
  std::mt19937_64 random(2);
  for (const int bits : {4, 8, 16, 32}) {
    for (const std::int64_t col_stride : {1, 2, 3, 7}) {
      for (const std::int64_t origin : {0, 1, 2, 5}) {
        const std::int64_t row_stride = draw(random, 0, 40);
        const Bytes bytes = testing::random_bytes(random, (6 * 40 + 12 * 7 + 6) * bits / 8);
        TensorStack stack;
        stack.element_bits = bits;
        stack.experts = 1;
        stack.halves = 2;
        stack.half_rows = 3;
        stack.cols = 12;
        stack.planes = {{bytes.data(), origin, row_stride, col_stride},
                        {bytes.data(), origin + 1, row_stride, col_stride}};
        for (std::int64_t row = 0; row < 6; ++row) {
          for (const std::int64_t first : {0, 2, 8}) {
            Bytes read(static_cast<std::size_t>(4 * bits / 8));
            stack.read(0, row, first, 4, read.data());
            for (std::int64_t i = 0; i < 4; ++i) {
              const std::int64_t index =
                  origin + row / 3 + row % 3 * row_stride + (first + i) * col_stride;
              ASSERT_EQ(number(read, i, bits), number(bytes, index, bits))
                  << bits << " bits, strides " << row_stride << ", " << col_stride << ", origin "
                  << origin << ", row " << row << ", column " << first + i;
            }
          }
        }
      }
    }
  }
}

TEST(TensorStack, SaysWhereColumnsLieSideBySide) {
  const Bytes bytes(64);
  TensorStack stack;
  stack.experts = 1;
  stack.half_rows = 2;
  stack.cols = 8;
  stack.planes = {{bytes.data(), 3, 10, 1}};
  EXPECT_EQ(stack.contiguous(0, 1, 4), bytes.data() + 17);
  stack.element_bits = 32;
  EXPECT_EQ(stack.contiguous(0, 0, 1), bytes.data() + 16);
  stack.planes[0].col_stride = 2;
  EXPECT_EQ(stack.contiguous(0, 0, 0), nullptr);
  stack.element_bits = 4;
  stack.planes = {{bytes.data(), 3, 10, 1}};
  EXPECT_EQ(stack.contiguous(0, 0, 0), nullptr);
  EXPECT_EQ(stack.contiguous(0, 0, 1), bytes.data() + 2);
}

}  // namespace
}  // namespace moeref
