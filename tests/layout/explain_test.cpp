// What explain says of prepared bytes, held against the bytes that make() writes.
#include "layout/explain.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "tests/layout/layout_support.hpp"

namespace moeref {
namespace {

using testing::bit_of;
using testing::Bytes;
using testing::recoded_row;

/// A tensor of random bytes and a layer of it alone.
struct RandomTensor {
  Bytes bytes;
  PreparedLayer layer;

  PreparedTensor& tensor() { return layer.tensors.front(); }
  const TensorStack& stack() { return *tensor().from; }
};

RandomTensor random_tensor(int bits, std::int64_t experts, int halves, std::int64_t half_rows,
                           std::int64_t cols, const std::vector<Step>& steps) {
  RandomTensor random;
  std::mt19937_64 generator(static_cast<std::uint64_t>(bits) * 1000 + steps.size());
  random.bytes.resize(static_cast<std::size_t>(experts * halves * half_rows * cols * bits / 8));
  for (std::byte& byte : random.bytes) byte = static_cast<std::byte>(generator() & 255);
  TensorStack stack;
  stack.name = "w";
  stack.dtype = bits == 16 ? DType::u16 : bits == 32 ? DType::u32 : DType::u8;
  stack.element_bits = bits;
  stack.experts = experts;
  stack.halves = halves;
  stack.half_rows = half_rows;
  stack.cols = cols;
  for (std::int64_t half = 0; half < experts * halves; ++half) {
    stack.planes.push_back({random.bytes.data(), half * half_rows * cols, cols, 1});
  }
  LayerTensors tensors;
  tensors.shape.experts = tensors.shape.total_experts = experts;
  tensors.stacks[0] = std::move(stack);
  random.layer.source = std::make_shared<const LayerTensors>(std::move(tensors));
  PreparedTensor prepared;
  prepared.name = "w";
  prepared.from = random.layer.source->find(Slot::w13);
  prepared.plan = make_plan("w", *prepared.from, steps, nullptr);
  prepared.dtype = prepared.plan.dtype;
  prepared.shape = prepared.plan.shape;
  random.layer.tensors.push_back(std::move(prepared));
  return random;
}

/// The number of an explained element in the tensor's bytes.
std::int64_t number_of(const TensorStack& stack, const LogicalElement& element) {
  const std::int64_t half = element.projection == "up" ? 1 : 0;
  return (element.expert * stack.rows() + half * stack.half_rows + element.row) * stack.cols +
         element.col;
}

/// All rows, one after the other.
Bytes recoded(const PreparedTensor& tensor) {
  Bytes all;
  for (std::int64_t expert = 0; expert < tensor.from->experts; ++expert) {
    for (std::int64_t row = 0; row < tensor.from->rows(); ++row) {
      const Bytes piece = recoded_row(tensor, expert, row);
      all.insert(all.end(), piece.begin(), piece.end());
    }
  }
  return all;
}

/// Bytes explained, all of a small tensor: each bit is the element's bit that the explanation
/// names, or the fill.
void expect_explains_bytes(RandomTensor& random) {
  const Tensor made = make(random.tensor(), 1);
  const Bytes elements = recoded(random.tensor());
  const int element_bits = random.tensor().plan.map.element_bits;
  const std::int64_t bytes = byte_count(random.tensor());
  const std::int64_t distance = std::max<std::int64_t>(bytes / 4096, 1) | 1;
  for (std::int64_t byte = 0; byte < bytes; byte += distance) {
    std::int64_t next = byte * 8;
    for (const Meaning& meaning : explain_byte(random.layer, random.tensor(), byte)) {
      ASSERT_EQ(meaning.bit, next);
      next += meaning.bits;
      for (int i = 0; i < meaning.bits; ++i) {
        const int expected =
            meaning.pad
                ? std::to_integer<int>(meaning.fill) >> ((meaning.bit + i) % 8) & 1
                : bit_of(elements, number_of(random.stack(), meaning.element) * element_bits +
                                       meaning.element_bit + i);
        ASSERT_EQ(bit_of(made.bytes, meaning.bit + i), expected) << "byte " << byte;
      }
    }
    ASSERT_EQ(next, byte * 8 + 8);
  }
}

/// All bits of one element flipped: exactly the bits that find_element names change.
void expect_finds(RandomTensor& random, std::int64_t expert, std::int64_t row, std::int64_t col) {
  LogicalElement element;
  element.expert = expert;
  const TensorStack& stack = random.stack();
  element.projection = stack.halves == 1 ? "" : row < stack.half_rows ? "gate" : "up";
  element.row = row % stack.half_rows;
  element.col = col;
  const Tensor before = make(random.tensor(), 1);
  const int bits = stack.element_bits;
  const std::int64_t first = ((expert * stack.rows() + row) * stack.cols + col) * bits;
  const auto flip = [&] {
    for (int i = 0; i < bits; ++i) {
      random.bytes[static_cast<std::size_t>((first + i) / 8)] ^=
          static_cast<std::byte>(1 << ((first + i) % 8));
    }
  };
  flip();
  const Tensor after = make(random.tensor(), 1);
  flip();
  std::set<std::int64_t> changed;
  for (std::int64_t bit = 0; bit < byte_count(random.tensor()) * 8; ++bit) {
    if (bit_of(before.bytes, bit) != bit_of(after.bytes, bit)) changed.insert(bit);
  }
  std::set<std::int64_t> found;
  int in_element = 0;
  for (const Meaning& part : find_element(random.layer, random.tensor(), element)) {
    EXPECT_EQ(describe(part.element), describe(element));
    in_element += part.bits;
    for (int i = 0; i < part.bits; ++i) found.insert(part.bit + i);
    // The inverse: each byte that is named says so.
    bool named = false;
    for (const Meaning& meaning : explain_byte(random.layer, random.tensor(), part.bit / 8)) {
      named = named || (!meaning.pad && describe(meaning.element) == describe(element));
    }
    EXPECT_TRUE(named);
  }
  if (random.tensor().plan.recoders.empty()) {
    EXPECT_EQ(found, changed);
  } else {  // two codes may become nearly the same one
    EXPECT_TRUE(std::includes(found.begin(), found.end(), changed.begin(), changed.end()));
  }
  EXPECT_EQ(in_element % random.tensor().plan.map.element_bits, 0);
  EXPECT_FALSE(found.empty());
}

void expect_agrees(RandomTensor& random) {
  expect_explains_bytes(random);
  const TensorStack& stack = random.stack();
  std::mt19937_64 generator(7);
  const auto below = [&](std::int64_t size) {
    return static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(size));
  };
  for (int i = 0; i < 3; ++i) {
    expect_finds(random, below(stack.experts), below(stack.rows()), below(stack.cols));
  }
}

/// Steps with the first parameters that a tensor of these sizes takes.
std::optional<RandomTensor> try_step(const NamedStep& step, int bits) {
  const std::size_t count = step.parameters.empty()
                                ? 0
                                : 1 + static_cast<std::size_t>(std::count(
                                          step.parameters.begin(), step.parameters.end(), ','));
  for (const std::int64_t value : {3, 16, 8, 4, 2, 32, 128, 1}) {
    const std::vector<std::int64_t> parameters(count, value);
    try {
      RandomTensor random = random_tensor(bits, 2, 2, 128, 256, {step.make(parameters)});
      make(random.tensor(), 1);
      return random;
    } catch (const Error&) {
      if (count == 0) return std::nullopt;
    }
  }
  return std::nullopt;
}

TEST(Explain, AgreesWithMakeForEveryStep) {
  for (const NamedStep& step : all_steps()) {
    int sizes = 0;
    for (const int bits : {4, 8, 16, 32}) {
      SCOPED_TRACE(std::string(step.name) + " on " + std::to_string(bits) + " bits");
      auto random = try_step(step, bits);
      if (!random) continue;
      ++sizes;
      expect_agrees(*random);
      if (::testing::Test::HasFatalFailure()) return;
    }
    EXPECT_GT(sizes, 0) << step.name;
  }
}

TEST(Explain, AgreesWithMakeForStepsTogether) {
  const std::vector<std::string> texts{
      "swap_halves pad_halves(64) interleave_halves(1) shuffle_rows(128)",
      "pad_rows(32) pad_cols(64)", "repeat_rows(3)", "pad_cols(48) swap_pairs pad_halves(16)",
      "swap_halves pad_halves(48) interleave_halves(8) shuffle_rows(64)"};
  for (const std::string& text : texts) {
    for (const int bits : {4, 8, 16, 32}) {
      SCOPED_TRACE(text);
      RandomTensor random = random_tensor(bits, 3, 2, 24, 40, parse_steps("steps", text));
      expect_agrees(random);
    }
  }
  for (const int bits : {8, 16}) {
    RandomTensor random = random_tensor(
        bits, 2, 2, 40, 6, parse_steps("steps", "swap_halves pad_halves(3) swizzle_128x4"));
    expect_agrees(random);
  }
}

TEST(Explain, TellsBitsThatAWordPermutationSpreads) {
  std::array<int, 32> source{};
  for (int bit = 0; bit < 32; ++bit) source[static_cast<std::size_t>(bit)] = (bit * 5 + 3) % 32;
  const auto bits = std::make_shared<const BitPermutation>("spread", source);
  for (const int element_bits : {4, 8, 16, 32}) {
    RandomTensor random =
        random_tensor(element_bits, 2, 2, 6, 16, {PadHalves{.multiple = 4}, PermuteBits{bits}});
    expect_agrees(random);
  }
}

TEST(Explain, NamesPadsByTheirStepAndFill) {
  RandomTensor random = random_tensor(
      8, 1, 2, 3, 4, {PadHalves{.multiple = 4, .fill = std::byte{0x7F}}, PadCols{.multiple = 8}});
  const auto row_pad = explain_byte(random.layer, random.tensor(), 3 * 8);
  ASSERT_EQ(row_pad.size(), 1u);
  EXPECT_EQ(describe(row_pad.front()), "padding by pad_halves, 0x7F");
  // Where a padded row meets a padded column, the later step wins.
  EXPECT_EQ(describe(explain_byte(random.layer, random.tensor(), 3 * 8 + 7).front()),
            "padding by pad_cols, 0x00");
  EXPECT_EQ(describe(explain_byte(random.layer, random.tensor(), 4 * 8 + 1).front()),
            "expert 0, up row 0, column 1");
}

TEST(Explain, RefusesPlacesOutside) {
  RandomTensor random = random_tensor(8, 1, 2, 3, 4, {});
  for (const std::int64_t byte : {std::int64_t{-1}, std::int64_t{24}, std::int64_t{1} << 62}) {
    EXPECT_THROW(explain_byte(random.layer, random.tensor(), byte), Error);
  }
  EXPECT_THROW(explain_bits(random.layer, random.tensor(), 190, 3), Error);
  EXPECT_THROW(explain_bits(random.layer, random.tensor(), -1, 1), Error);
  LogicalElement element;
  element.projection = "gate";
  const auto find = [&] { return find_element(random.layer, random.tensor(), element); };
  EXPECT_EQ(find().size(), 1u);
  for (std::int64_t LogicalElement::*index :
       {&LogicalElement::expert, &LogicalElement::row, &LogicalElement::col}) {
    const std::int64_t kept = element.*index;
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{4}, INT64_MAX}) {
      element.*index = wrong;
      EXPECT_THROW(find(), Error);
    }
    element.*index = kept;
  }
  element.projection = "down";
  EXPECT_THROW(find(), Error);
  element.slot = Slot::w2;
  EXPECT_TRUE(find().empty());
}

}  // namespace
}  // namespace moeref
