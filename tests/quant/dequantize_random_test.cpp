#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "tests/quant/dequantize_judge.hpp"

namespace moeref {
namespace {

using namespace test;

/// Storage, scales and strides drawn at random, of every kind that checkpoints have.
class RandomMatrix {
 public:
  explicit RandomMatrix(std::uint64_t seed) : random_(seed) {
    constexpr Format kCodes[] = {Format::e4m3, Format::e4m3fnuz, Format::e5m2, Format::e5m2fnuz,
                                 Format::e2m1, Format::bf16,     Format::f16,  Format::f32};
    constexpr Format kScales[] = {Format::e8m0, Format::e4m3, Format::f32, Format::bf16,
                                  Format::f16};
    matrix.name = "random";
    matrix.rows = static_cast<std::int64_t>(1 + draw(70));
    matrix.cols = static_cast<std::int64_t>(1 + draw(70));
    matrix.codes.format = kCodes[draw(8)];
    draw_strides();
    draw_codes();
    if (draw(5) != 0) draw_scales(kScales[draw(5)]);
    matrix.global_rule = static_cast<GlobalScaleRule>(draw(3));
    matrix.global_scale = draw_float(-20, 20);
  }
  RandomMatrix(const RandomMatrix&) = delete;
  RandomMatrix& operator=(const RandomMatrix&) = delete;

  ScaledMatrix matrix;

  std::size_t draw(std::size_t count) { return random_() % count; }
  /// Any significand, an exponent in [low, high], any sign.
  float draw_float(int low, int high) {
    const auto significand = static_cast<float>(0x80'0000u + draw(0x80'0000));
    const int exponent = low + static_cast<int>(draw(static_cast<std::size_t>(high - low + 1)));
    return std::ldexp(draw(2) != 0 ? significand : -significand, exponent - 23);
  }

 private:
  void draw_strides() {
    CodeGrid& codes = matrix.codes;
    codes.nibbles = draw(2) != 0 ? NibbleOrder::low_first : NibbleOrder::high_first;
    codes.origin = static_cast<std::int64_t>(draw(7));
    switch (draw(4)) {
      case 0:
        codes.row_stride = matrix.cols;
        break;
      case 1:
        codes.row_stride = 2 * matrix.cols + 1;
        break;  // interleaved rows of another
      case 2:
        codes.row_stride = 1;
        codes.col_stride = matrix.rows + 3;  // transposed
        break;
      default:
        codes.col_stride = 3;
        codes.row_stride = 3 * matrix.cols;
        break;
    }
    count_ = codes.origin + (matrix.rows - 1) * codes.row_stride +
             (matrix.cols - 1) * codes.col_stride + 1;
  }

  void draw_codes() {
    const int bits = info(matrix.codes.format).bits;
    storage_.resize(static_cast<std::size_t>((count_ * bits + 7) / 8));
    for (std::byte& byte : storage_) byte = static_cast<std::byte>(draw(256));
    if (matrix.codes.format == Format::f32) {
      for (std::size_t i = 0; i + 4 <= storage_.size(); i += 4) {
        const float value = draw_float(-30, 30);
        std::memcpy(&storage_[i], &value, sizeof value);
      }
    }
    matrix.codes.data = storage_.data();
  }

  void draw_scales(Format format) {
    ScaleGrid grid;
    grid.format = format;
    grid.block_rows = static_cast<std::int64_t>(1 + draw(40));
    grid.block_cols = static_cast<std::int64_t>(1 + draw(40));
    grid.row_begin = static_cast<std::int64_t>(draw(50));
    grid.col_begin = static_cast<std::int64_t>(draw(50));
    const std::int64_t block_rows = (grid.row_begin + matrix.rows) / grid.block_rows + 1;
    const std::int64_t block_cols = (grid.col_begin + matrix.cols) / grid.block_cols + 1;
    const bool is_column_major = draw(2) != 0;
    grid.row_stride = is_column_major ? 1 : block_cols;
    grid.col_stride = is_column_major ? block_rows : 1;
    const int bytes = info(format).bits / 8;
    scales_.resize(static_cast<std::size_t>(block_rows * block_cols * bytes));
    for (std::byte& byte : scales_) byte = static_cast<std::byte>(draw(256));
    if (format == Format::f32) {
      for (std::size_t i = 0; i < scales_.size(); i += 4) {
        const float value = draw_float(-30, 30);
        std::memcpy(&scales_[i], &value, sizeof value);
      }
    }
    grid.data = scales_.data();
    matrix.scales = grid;
  }

  std::mt19937_64 random_;
  std::int64_t count_ = 0;
  std::vector<std::byte> storage_;
  std::vector<std::byte> scales_;
};

TEST(Dequantize, FollowsTheFormulaOfEveryOrderOnRandomMatrices) {
  std::int64_t elements = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    const RandomMatrix random(seed);
    const ScaledMatrix& matrix = random.matrix;
    for (const DequantizeOrder order :
         {DequantizeOrder::once, DequantizeOrder::checkpoint, DequantizeOrder::modelopt_nvfp4,
          DequantizeOrder::modelopt_fp8, DequantizeOrder::sglang_fp16}) {
      const bool is_two_factor =
          order == DequantizeOrder::modelopt_fp8 || order == DequantizeOrder::sglang_fp16;
      if (is_two_factor && matrix.global_rule != GlobalScaleRule::none) continue;
      if (order == DequantizeOrder::modelopt_nvfp4 && matrix.codes.format != Format::e2m1) continue;
      for (const Format target : {Format::f32, Format::bf16, Format::f16}) {
        const std::vector<float> values = values_of(matrix, order, target);
        // The exact judge is slow: every seventh element.
        const std::int64_t step = order == DequantizeOrder::once ? 7 : 1;
        for (std::int64_t i = static_cast<std::int64_t>(seed) % step; i < matrix.rows * matrix.cols;
             i += step) {
          const std::int64_t row = i / matrix.cols;
          const std::int64_t col = i % matrix.cols;
          const std::uint32_t code = code_at(matrix, row, col);
          const float q = decode(matrix.codes.format, code);
          const float expected =
              expected_value(order, target, q, scale_at(matrix, row, col), matrix.global_rule,
                             matrix.global_scale, matrix.codes.format == Format::e2m1 && code == 8);
          ASSERT_EQ(to_bits(values[static_cast<std::size_t>(i)]), to_bits(expected))
              << "seed " << seed << " order " << static_cast<int>(order) << " target "
              << name(target) << " element " << row << ", " << col << " q " << q;
          ++elements;
        }
      }
    }
  }
  EXPECT_GT(elements, 1'000'000);
}

TEST(Dequantize, GivesF64ProductsOnRandomMatrices) {
  for (std::uint64_t seed = 1001; seed <= 1200; ++seed) {
    const RandomMatrix random(seed);
    const ScaledMatrix& matrix = random.matrix;
    const std::vector<double> values = f64_values_of(matrix);
    const auto global = static_cast<double>(matrix.global_scale);
    for (std::int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
      const std::int64_t row = i / matrix.cols;
      const std::int64_t col = i % matrix.cols;
      double expected =
          element_at(matrix, row, col) * static_cast<double>(scale_at(matrix, row, col));
      if (matrix.global_rule == GlobalScaleRule::multiply) expected *= global;
      if (matrix.global_rule == GlobalScaleRule::divide) expected /= global;
      if (expected != expected) expected = std::numeric_limits<double>::quiet_NaN();
      ASSERT_EQ(std::bit_cast<std::uint64_t>(values[static_cast<std::size_t>(i)]),
                std::bit_cast<std::uint64_t>(expected))
          << seed;
    }
  }
}

TEST(Dequantize, GivesASliceWhatTheWholeHasThere) {
  for (std::uint64_t seed = 2001; seed <= 2100; ++seed) {
    RandomMatrix random(seed);
    const ScaledMatrix& whole = random.matrix;
    const std::vector<float> values = values_of(whole, DequantizeOrder::once, Format::bf16);
    const auto row = static_cast<std::int64_t>(random.draw(static_cast<std::size_t>(whole.rows)));
    const auto col = static_cast<std::int64_t>(random.draw(static_cast<std::size_t>(whole.cols)));
    const std::int64_t rows = whole.rows - row;
    const std::int64_t cols = whole.cols - col;
    const ScaledMatrix slice = col_slice(row_slice(whole, row, rows), col, cols);
    const std::vector<float> part = values_of(slice, DequantizeOrder::once, Format::bf16);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const std::int64_t there = (row + i / cols) * whole.cols + col + i % cols;
      ASSERT_EQ(to_bits(part[static_cast<std::size_t>(i)]),
                to_bits(values[static_cast<std::size_t>(there)]))
          << seed;
    }
  }
}

/// Factors whose exact product or quotient lies on, or as near as it can to, a boundary of the
/// target.
TEST(DequantizeOnce, RoundsHardProductsAndQuotientsExactly) {
  std::mt19937_64 random(7);
  const auto draw_float = [&](int bits) {  // `bits` significant bits, around 1
    const auto top = std::uint64_t{1} << (bits - 1);
    return std::ldexp(static_cast<float>(top + random() % top), 1 - bits);
  };
  int double_roundings = 0;
  for (int i = 0; i < 60'000; ++i) {
    const bool is_wide = i % 3 == 0;  // f32 codes: three 24-bit factors
    const float q = is_wide ? draw_float(24) : draw_float(4);
    const float g = draw_float(24);
    const Format target = i % 2 == 0 ? Format::bf16 : (i % 4 == 1 ? Format::f16 : Format::f32);
    const GlobalScaleRule rule = i % 5 < 2 ? GlobalScaleRule::multiply : GlobalScaleRule::divide;
    // s such that the result is next to the middle of two values of the target.
    const int target_bits = info(target).significand_bits;
    const double boundary =
        static_cast<double>(draw_float(target_bits)) + std::ldexp(1.0, -target_bits);
    const double scale = rule == GlobalScaleRule::multiply
                             ? boundary / (static_cast<double>(q) * static_cast<double>(g))
                             : boundary * static_cast<double>(g) / static_cast<double>(q);
    std::uint32_t scale_bits = to_bits(static_cast<float>(scale));
    scale_bits += static_cast<std::uint32_t>(i % 7 == 0) - static_cast<std::uint32_t>(i % 11 == 0);
    const std::vector<float> scales{from_bits(scale_bits)};
    const std::vector<float> wide{q};
    const std::vector<std::uint8_t> narrow{
        static_cast<std::uint8_t>(encode(Format::e4m3, q, EncodePolicy::torch))};
    ScaledMatrix matrix = is_wide ? plain(1, 1, Format::f32, bytes_of(wide))
                                  : plain(1, 1, Format::e4m3, bytes_of(narrow));
    matrix.scales = blocks(Format::f32, bytes_of(scales), 1, 1, 1);
    matrix.global_rule = rule;
    matrix.global_scale = g;
    const float expected = rounded_once(target, q, scales[0], rule, g);
    ASSERT_EQ(to_bits(values_of(matrix, DequantizeOrder::once, target)[0]), to_bits(expected))
        << i << " " << name(target) << " " << q << " " << scales[0] << " " << g;
    const float in_f32 = rounded_once(Format::f32, q, scales[0], rule, g);
    double_roundings += round_to(target, in_f32) != expected ? 1 : 0;
  }
  EXPECT_GT(double_roundings, 1000);  // the inputs are hard: rounding to f32 first is often wrong
}

TEST(DequantizeOnce, RoundsResultsInTheSubnormalRangeExactly) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 20'000; ++i) {
    const Format target = i % 3 == 0 ? Format::f32 : (i % 3 == 1 ? Format::bf16 : Format::f16);
    const int bottom = target == Format::f16 ? -26 : (target == Format::bf16 ? -135 : -151);
    const float q = std::ldexp(static_cast<float>(1 + random() % 15), -3);
    const float g = std::ldexp(static_cast<float>(1 + random() % 0x100'0000), -24);
    const float s = std::ldexp(static_cast<float>(1 + random() % 0x100'0000),
                               bottom - 20 + static_cast<int>(random() % 16));
    const GlobalScaleRule rule = static_cast<GlobalScaleRule>(i % 3 == 0 ? 0 : 1 + random() % 2);
    const std::vector<std::uint8_t> codes{
        static_cast<std::uint8_t>(encode(Format::e4m3, q, EncodePolicy::torch))};
    const std::vector<float> scales{s};
    ScaledMatrix matrix = plain(1, 1, Format::e4m3, bytes_of(codes));
    matrix.scales = blocks(Format::f32, bytes_of(scales), 1, 1, 1);
    matrix.global_rule = rule;
    matrix.global_scale = g;
    ASSERT_EQ(to_bits(values_of(matrix, DequantizeOrder::once, target)[0]),
              to_bits(rounded_once(target, q, s, rule, g)))
        << i << " " << name(target) << " " << q << " " << s << " " << g;
  }
}

}  // namespace
}  // namespace moeref
