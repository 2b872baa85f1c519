// MXFP4 codes and scales rewritten for FP8 activations on Hopper.

#include "layout/recode/humming.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "tests/layout/sample_source.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// The original's arithmetic on f32 bit patterns, with doubles for its Python floats.
std::uint32_t original_code(std::uint32_t delta, std::uint32_t code) {
  const auto from_bits = [](std::uint32_t bits) {
    return static_cast<double>(std::bit_cast<float>(bits));
  };
  if (code == 8) code = 0;
  if (delta == 0) return code;
  const double value =
      from_bits((code & 8u) << 28 | (code & 7u) << 22) * from_bits(0x3F800000u - (delta << 23));
  // x86 makes a negative NaN of 0 * infinity.
  const std::uint32_t bits =
      std::isnan(value) ? 0xFFC00000u : std::bit_cast<std::uint32_t>(static_cast<float>(value));
  constexpr std::uint32_t kMask = 0x81C00000u;
  const std::uint32_t down = bits & kMask;
  const std::uint32_t up = (bits + 0x00200000u) & kMask;
  const bool takes_up = std::fabs(value - from_bits(down)) >= std::fabs(value - from_bits(up));
  const std::uint32_t rounded = takes_up ? up : down;
  return (rounded & 0x80000000u) >> 28 | (rounded & 0x01C00000u) >> 22;
}

TEST(HummingTable, HoldsWhatTheOriginalArithmeticGives) {
  for (std::uint32_t delta = 0; delta < 256; ++delta) {
    for (std::uint32_t code = 0; code < 16; ++code) {
      ASSERT_EQ(recode::humming_table()[delta][code], original_code(delta, code))
          << delta << ", " << code;
    }
  }
}

/// A layer of one weight with its scales.
struct MxWeight {
  Source codes;
  Source scales;

  MxWeight(std::int64_t experts, std::int64_t rows, std::int64_t cols, int lowest, int highest)
      : codes(experts, rows, cols, 4), scales(experts, rows, cols / 32, 8, lowest, highest) {}
  LayerTensors layer() const {
    LayerTensors tensors;
    tensors.stacks[static_cast<std::size_t>(Slot::w13)] = codes.stack();
    TensorStack stack = scales.stack();
    stack.block_cols = 32;
    tensors.stacks[static_cast<std::size_t>(Slot::w13_scale)] = stack;
    return tensors;
  }
};

/// The lowest byte that is kept of expert e.
int floor_of(const Source& scales, std::int64_t e, int max_range, bool padded) {
  int least = padded ? 0 : 255;
  int most = 0;
  for (std::int64_t r = 0; r < scales.rows; ++r) {
    for (std::int64_t c = 0; c < scales.cols; ++c) {
      least = std::min<int>(least, scales.at(e, r, c));
      most = std::max<int>(most, scales.at(e, r, c));
    }
  }
  return most - std::min(most - least, max_range);
}

TEST(Humming, RewritesCodesOffsetsAndResiduals) {
  for (const int max_range : {0, 3, 11}) {
    for (const bool padded : {false, true}) {
      const MxWeight weight(3, 6, 128, 108, 124);
      const LayerTensors layer = weight.layer();
      const recode::HummingRange range{max_range, padded};
      const Bytes codes =
          applied(weight.codes, {recode::humming_codes(Slot::w13_scale, range)}, &layer);
      const Bytes offsets =
          applied(weight.scales, {recode::humming_offsets(Slot::w13_scale, range)}, &layer);
      const Bytes deltas =
          applied(weight.scales, {recode::humming_deltas(Slot::w13_scale, range)}, &layer);
      const std::vector<float> residuals = recode::humming_residuals(layer, Slot::w13_scale, range);
      for (std::int64_t e = 0; e < 3; ++e) {
        const int floor = floor_of(weight.scales, e, max_range, padded);
        EXPECT_EQ(residuals[static_cast<std::size_t>(e)],
                  static_cast<float>(std::pow(2.0, floor - 128)));
        for (std::int64_t r = 0; r < 6; ++r) {
          for (std::int64_t c = 0; c < 128; ++c) {
            const int scale = weight.scales.at(e, r, c / 32);
            const auto block = static_cast<std::size_t>((e * 6 + r) * 4 + c / 32);
            const int delta = std::max(scale, floor) - scale;
            ASSERT_EQ(deltas[block], delta);
            ASSERT_EQ(offsets[block], ((std::max(scale, floor) - floor + 1) & 15));
            const auto nibble = [c](int byte) { return c % 2 == 0 ? byte & 15 : byte >> 4; };
            const int before = nibble(weight.codes.at(e, r, c / 2));
            const int after = nibble(codes[static_cast<std::size_t>((e * 6 + r) * 64 + c / 2)]);
            ASSERT_EQ(after, static_cast<int>(original_code(static_cast<std::uint32_t>(delta),
                                                            static_cast<std::uint32_t>(before))));
          }
        }
      }
    }
  }
}

TEST(Humming, ReadsScalesThatAreNumbers) {
  MxWeight weight(1, 2, 64, 120, 124);
  const LayerTensors bytes = weight.layer();
  std::vector<float> numbers;
  for (const std::uint8_t scale : weight.scales.bytes) {
    numbers.push_back(decode(Format::e8m0, scale));
  }
  LayerTensors floats = weight.layer();
  TensorStack stack =
      dense_stack({"numbers", DType::f32, {1, 2, 2}, std::as_bytes(std::span(numbers))},
                  GateOrder::separate, 32);
  stack.block_cols = 32;
  floats.stacks[static_cast<std::size_t>(Slot::w13_scale)] = stack;
  const std::vector<Step> rewrite{recode::humming_codes(Slot::w13_scale)};
  EXPECT_EQ(applied(weight.codes, rewrite, &floats), applied(weight.codes, rewrite, &bytes));
  EXPECT_EQ(recode::humming_residuals(floats, Slot::w13_scale),
            recode::humming_residuals(bytes, Slot::w13_scale));
  const std::vector<Step> offsets{recode::humming_offsets(Slot::w13_scale)};
  const Plan plan = make_plan("made", stack, offsets, &floats);
  Bytes made(4);
  apply(plan.map, stack, plan.recoders, std::as_writable_bytes(std::span(made)), 1);
  EXPECT_EQ(made, applied(weight.scales, offsets, &bytes));
}

TEST(Humming, RejectsRangesAndPadsThatTheTableSpoils) {
  const MxWeight small(1, 2, 64, 120, 124);
  const MxWeight large(1, 2, 64, 140, 142);
  const LayerTensors small_layer = small.layer();
  const LayerTensors large_layer = large.layer();
  const auto plan = [](const MxWeight& weight, const LayerTensors& layer,
                       recode::HummingRange range) {
    return error_of([&] {
      make_plan("made", weight.codes.stack(),
                std::vector<Step>{recode::humming_codes(Slot::w13_scale, range)}, &layer);
    });
  };
  EXPECT_THAT(plan(small, small_layer, {12, false}), HasSubstr("max_range is 12"));
  EXPECT_THAT(plan(small, small_layer, {-1, false}), HasSubstr("max_range is -1"));
  EXPECT_EQ(plan(small, small_layer, {11, true}), "no error");
  EXPECT_EQ(plan(large, large_layer, {11, false}), "no error");
  EXPECT_THAT(plan(large, large_layer, {11, true}),
              AllOf(HasSubstr("padding (0) lies"), HasSubstr("needs no padding")));
}

}  // namespace
}  // namespace moeref
