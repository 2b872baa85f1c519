// One scale for gate and up of per-tensor FP8.

#include "layout/recode/max_requantize.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "layout/transform.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Experts whose gate and up hold all 256 codes in one row each.
struct AllCodes {
  std::vector<std::byte> bytes;
  LayerTensors layer;

  AllCodes(const std::vector<float>& scales, bool gated) {
    layer.shape.model = "sample";
    layer.shape.gated = gated;
    layer.shape.experts = static_cast<std::int64_t>(scales.size()) / layer.shape.halves();
    layer.scalars.w13_scale = scales;
    for (std::size_t i = 0; i < scales.size() * 256; ++i) bytes.push_back(std::byte(i % 256));
    layer.stacks[static_cast<std::size_t>(Slot::w13)] = dense_stack(
        {"w13", DType::f8_e4m3, {layer.shape.experts, layer.shape.halves(), 256}, bytes},
        gated ? GateOrder::gate_up : GateOrder::none, 8);
  }

  std::vector<std::uint8_t> requantized(bool fnuz = false,
                                        TorchDevice device = TorchDevice::cuda) const {
    const TensorStack& stack = layer.at(Slot::w13);
    const Plan plan = make_plan(
        "w13", stack, std::vector<Step>{recode::max_requantize_w13(fnuz, device)}, &layer);
    std::vector<std::uint8_t> made(bytes.size());
    apply(plan.map, stack, plan.recoders, std::as_writable_bytes(std::span(made)), 1);
    return made;
  }
};

/// The f16 nearest to a double, by comparing neighbours.
double nearest_f16(double value) {
  const double magnitude = std::fabs(value);
  if (magnitude >= 65520.0) return std::copysign(INFINITY, value);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 11, -24));
  return std::copysign(std::nearbyint(magnitude / unit) * unit, value);
}

/// The code by the stated steps, on doubles that hold every intermediate f32 exactly.
std::uint8_t expected(std::uint8_t code, float own, float common, bool fnuz, bool cuda) {
  const Format format = fnuz ? Format::e4m3fnuz : Format::e4m3;
  const double largest = fnuz ? 240.0 : 448.0;
  const double factor = cuda ? nearest_f16(own) : static_cast<double>(own);
  const auto product = static_cast<float>(static_cast<double>(decode(format, code)) * factor);
  const double half = nearest_f16(product);
  const float scaled = static_cast<float>(half) * (1.0f / common);
  if (std::isnan(scaled)) return fnuz ? 0x7F : 0x7E;
  const auto clamped = static_cast<float>(std::fmin(std::fmax(scaled, -largest), largest));
  // The nearest code, ties to even, by search.
  std::uint8_t best = 0;
  double distance = INFINITY;
  for (int candidate = 0; candidate < 256; ++candidate) {
    const auto bits = static_cast<std::uint8_t>(candidate);
    const double value = decode(format, bits);
    if (std::isnan(value) || (!fnuz && std::signbit(value) != std::signbit(clamped))) continue;
    const double away = std::fabs(value - static_cast<double>(clamped));
    if (away < distance || (away == distance && bits % 2 == 0)) {
      best = bits;
      distance = away;
    }
  }
  return best;
}

TEST(MaxRequantize, FollowsTheStatedRoundings) {
  const std::vector<float> scales{0.00123f, 0.000457f, 3.0e-5f, 2.9e-5f, 1.0e-7f, 3.0e-8f,
                                  1.0f,     150.0f,    400.0f,  0.2f,    0.011f,  0.011f};
  const AllCodes codes(scales, true);
  for (const bool fnuz : {false, true}) {
    for (const TorchDevice device : {TorchDevice::cuda, TorchDevice::cpu}) {
      const std::vector<std::uint8_t> made = codes.requantized(fnuz, device);
      const float unit = fnuz ? 2.0f : 1.0f;
      for (std::size_t i = 0; i < made.size(); ++i) {
        const float own = scales[i / 256];
        const float common = std::max(scales[i / 512 * 2], scales[i / 512 * 2 + 1]);
        ASSERT_EQ(made[i], expected(static_cast<std::uint8_t>(i % 256), unit * own, unit * common,
                                    fnuz, device == TorchDevice::cuda))
            << "code " << i % 256 << " scale " << own << " of " << common;
      }
    }
  }
}

/// Codes 0x00 .. 0x7E of the smaller of the scales 0x3AA137F4 and 0x39EF9980, as the original
/// kernels gave them.
constexpr std::string_view kMeasured =
    "0000010101020203030304040405050606070708090a0a0b0c0d0f101112121314151718191a1a1b1c1d1f202122"
    "222324252728292a2a2b2c2d2f303132323334353738393a3a3b3c3d3f404142424344454748494a4a4b4c4d4f50"
    "5152525354555758595a5a5b5c5d5f606162626364656768696a6a6b6c6d6f70717272";

TEST(MaxRequantize, GivesTheMeasuredCodes) {
  const AllCodes codes({std::bit_cast<float>(0x3AA137F4u), std::bit_cast<float>(0x39EF9980u)},
                       true);
  const std::vector<std::uint8_t> made = codes.requantized();
  for (std::size_t code = 0; code < 0x7F; ++code) {
    const auto measured = static_cast<std::uint8_t>(
        std::stoi(std::string(kMeasured.substr(2 * code, 2)), nullptr, 16));
    EXPECT_EQ(made[code], code) << "the larger scale";
    EXPECT_EQ(made[256 + code], measured) << code;
    EXPECT_EQ(made[256 + 128 + code], measured | 0x80) << code;
  }
}

TEST(MaxRequantize, ChangesAlsoTheHalfThatHasTheCommonScale) {
  // 448 * 200 is above what FP16 holds: infinity, which saturates.
  const std::vector<std::uint8_t> made = AllCodes({200.0f}, false).requantized();
  EXPECT_EQ(made[0x7D], 0x7E);
  // Scales below FP16's least value vanish where the scale itself is rounded.
  const AllCodes tiny({2.0e-8f, 2.0e-8f}, true);
  EXPECT_EQ(tiny.requantized()[0x7E], 0x00);
  EXPECT_NE(tiny.requantized(false, TorchDevice::cpu)[0x7E], 0x00);
}

TEST(MaxRequantize, MakesTheLargestValueOfNaN) {
  const std::vector<std::uint8_t> made = AllCodes({1.0f, 0.5f}, true).requantized();
  EXPECT_EQ(made[0x7F], 0x7E);
  EXPECT_EQ(made[0xFF], 0x7E);
  EXPECT_EQ(AllCodes({1.0f, 0.5f}, true).requantized(true)[0x80], 0x7F);
}

TEST(MaxScale, IsTheLargerOfEachExpert) {
  const AllCodes gated({1.0f, 2.0f, 4.0f, 3.0f}, true);
  EXPECT_THAT(recode::max_scale(gated.layer.scalars, gated.layer.shape), ElementsAre(2.0f, 4.0f));
  const AllCodes plain({1.0f, 2.0f, 4.0f}, false);
  EXPECT_THAT(recode::max_scale(plain.layer.scalars, plain.layer.shape),
              ElementsAre(1.0f, 2.0f, 4.0f));
}

TEST(MaxScale, NeedsAScaleForEachProjection) {
  AllCodes codes({1.0f, 2.0f, 4.0f, 3.0f}, true);
  codes.layer.scalars.w13_scale.pop_back();
  EXPECT_THAT(error_of([&] { codes.requantized(); }),
              HasSubstr("sample: has 3 per-tensor scales of w13, 2 experts need 4"));
}

}  // namespace
}  // namespace moeref
