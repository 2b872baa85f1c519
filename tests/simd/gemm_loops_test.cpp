// The loops of the exact GEMM: every instruction set gives the bytes of the scalar ones, and those
// are what they say.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/exact/linear_form.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"
#include "simd/kernels.hpp"
#include "simd/kernels_scalar.hpp"
#include "tests/support/isas.hpp"

namespace moeref {
namespace {

using simd::kPanelColumns;

const simd::GemmKernels& scalar() { return *simd::find_kernels("scalar")->gemm; }

class GemmLoops : public ::testing::TestWithParam<std::string> {
 protected:
  const simd::GemmKernels& loops() const { return *simd::find_kernels(GetParam().c_str())->gemm; }
};

INSTANTIATE_TEST_SUITE_P(Isa, GemmLoops, ::testing::ValuesIn(moeref::testing::isas()),
                         [](const auto& isa) { return isa.param; });

/// Whole numbers whose sums of products are exact.
std::vector<double> whole_numbers(std::size_t count, std::mt19937_64& random) {
  std::vector<double> values(count);
  for (double& value : values) {
    value = static_cast<double>(static_cast<std::int64_t>(random() % 4097) - 2048);
  }
  return values;
}

TEST_P(GemmLoops, SumProductsForEveryNumberOfRowsAndAnyDepth) {
  std::mt19937_64 random(1);
  for (std::size_t rows = 1; rows <= simd::kMaxRowBlock; ++rows) {
    for (const std::size_t k : {0u, 1u, 2u, 3u, 4u, 5u, 7u, 8u, 31u, 128u, 131u}) {
      const std::vector<double> a = whole_numbers(k * rows, random);
      const std::vector<double> panel = whole_numbers(k * kPanelColumns, random);
      const std::vector<double> before = whole_numbers(rows * kPanelColumns + 1, random);
      for (const bool adds : {false, true}) {
        std::vector<double> sums = before;
        loops().dot(a.data(), rows, panel.data(), k, adds, sums.data());
        for (std::size_t row = 0; row < rows; ++row) {
          for (std::size_t j = 0; j < kPanelColumns; ++j) {
            double sum = adds ? before[row * kPanelColumns + j] : 0.0;
            for (std::size_t i = 0; i < k; ++i) {
              sum += a[i * rows + row] * panel[i * kPanelColumns + j];
            }
            ASSERT_EQ(sums[row * kPanelColumns + j], sum)
                << rows << " rows, depth " << k << ", row " << row << ", column " << j;
          }
        }
        EXPECT_EQ(sums.back(), before.back()) << "written beyond the rows";
      }
    }
  }
}

struct Type {
  simd::CodeType code;
  Format format;
  std::size_t unit;
};
constexpr Type kTypes[] = {{simd::CodeType::e2m1, Format::e2m1, 32},
                           {simd::CodeType::e4m3, Format::e4m3, 16},
                           {simd::CodeType::bf16, Format::bf16, 8},
                           {simd::CodeType::f16, Format::f16, 8}};

TEST_P(GemmLoops, DecodeEveryFiniteCodeExactly) {
  std::mt19937_64 random(2);
  for (const Type& type : kTypes) {
    // Enough units that every code of 16 bits comes once, at odd addresses.
    const std::size_t k = type.format == Format::bf16 || type.format == Format::f16 ? 4096 : 64;
    const std::size_t stride = k * static_cast<std::size_t>(info(type.format).bits) / 8 + 1;
    std::vector<std::byte> bytes(stride * kPanelColumns + 1);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    if (k == 4096) {
      for (std::uint32_t code = 0; code < 0x10000; ++code) {
        const auto half = static_cast<std::uint16_t>(code * 40503u);
        std::memcpy(bytes.data() + 1 + code / k * stride + 2 * (code % k), &half, 2);
      }
    }
    std::vector<double> factors((k / simd::kFactorUnit + 1) * kPanelColumns);
    for (double& factor : factors)
      factor = std::ldexp(1.0 + static_cast<double>(random() % 8) / 8.0,
                          static_cast<int>(random() % 255) - 127);
    for (const bool scaled : {false, true}) {
      simd::PanelCodes codes;
      codes.type = type.code;
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        codes.columns[j] = bytes.data() + 1 + j * stride;
      }
      if (scaled) codes.factors = factors.data();
      for (const std::size_t depth : {type.unit, 3 * type.unit, k}) {
        if (depth > k) continue;
        std::vector<double> panel(depth * kPanelColumns + 1, -7.0);
        loops().decode(codes, depth, panel.data());
        for (std::size_t i = 0; i < depth; ++i) {
          for (std::size_t j = 0; j < kPanelColumns; ++j) {
            const float value =
                decode(type.format, read_code(codes.columns[j], type.format, NibbleOrder::low_first,
                                              static_cast<std::int64_t>(i)));
            if (!std::isfinite(value)) continue;
            const double factor = scaled ? factors[i / simd::kFactorUnit * kPanelColumns + j] : 1.0;
            ASSERT_EQ(std::bit_cast<std::uint64_t>(panel[i * kPanelColumns + j]),
                      std::bit_cast<std::uint64_t>(static_cast<double>(value) * factor))
                << info(type.format).name << " " << i << " " << j;
          }
        }
        EXPECT_EQ(panel.back(), -7.0) << "written beyond the depth";
      }
    }
  }
}

TEST_P(GemmLoops, FindTheSmallestAndTheLargestMagnitude) {
  std::mt19937_64 random(3);
  for (const auto& [bytes, mask] :
       {std::pair<std::size_t, std::uint32_t>{1, 0x7F}, {1, 0xFF}, {2, 0x7FFF}}) {
    for (std::size_t count = 0; count < 200; ++count) {
      for (const std::uint64_t range : {1ull, 3ull, ~0ull}) {
        std::vector<std::byte> codes(bytes * count + 1);
        std::uint32_t smallest = ~0u;
        std::uint32_t largest = 0;
        std::uint32_t any = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const auto code =
              static_cast<std::uint16_t>(range == ~0ull ? random() : random() % range);
          std::memcpy(codes.data() + 1 + bytes * i, &code, bytes);
          const std::uint32_t size = code & mask & (bytes == 1 ? 0xFFu : 0xFFFFu);
          if (size != 0) smallest = std::min(smallest, size);
          largest = std::max(largest, size);
          any |= size;
        }
        const simd::Magnitudes sizes = loops().magnitudes(bytes, mask, codes.data() + 1, count);
        EXPECT_EQ(sizes.largest, largest);
        EXPECT_EQ(sizes.bits, any);
        if (largest == 0) {
          EXPECT_GT(sizes.smallest, sizes.largest);
        } else {
          EXPECT_EQ(sizes.smallest, smallest) << bytes << " bytes, " << count << " codes";
        }
      }
    }
  }
}

TEST_P(GemmLoops, SumWholeNumbersAsTheScalarOnesDo) {
  const simd::SliceKernels* kernels = simd::find_kernels(GetParam().c_str())->slices;
  if (kernels == nullptr) GTEST_SKIP() << "has no slices";
  const simd::SliceKernels& plain = simd::scalar::slice_kernels;
  std::mt19937_64 random(6);
  constexpr std::size_t kBlocks = 4;
  for (const std::size_t steps : {4u, 8u}) {
    const std::size_t block_cols = steps * simd::kSliceStep;
    const std::size_t k = kBlocks * 8 * simd::kSliceStep;  // whole units of codes
    std::vector<std::byte> bytes(k / 2 * kPanelColumns + 1);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    simd::PanelCodes codes;
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      codes.columns[j] = bytes.data() + 1 + j * k / 2;
    }
    std::vector<std::uint8_t> weights(k * kPanelColumns + 1, 77);
    std::vector<std::uint8_t> expected_weights = weights;
    kernels->decode(codes, k, weights.data());
    plain.decode(codes, k, expected_weights.data());
    ASSERT_EQ(weights, expected_weights);
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      for (std::size_t step = 0; step < k / simd::kSliceStep; ++step) {
        for (std::size_t i = 0; i < simd::kSliceStep; ++i) {
          const float value = decode(
              Format::e2m1, read_code(codes.columns[j], Format::e2m1, NibbleOrder::low_first,
                                      static_cast<std::int64_t>(simd::slice_column(step, i))));
          ASSERT_EQ(weights[(step * kPanelColumns + j) * simd::kSliceStep + i], 2 * value + 12);
        }
      }
    }
    for (std::size_t rows = 1; rows <= simd::kMaxRowBlock; ++rows) {
      const std::size_t cells = kBlocks * rows;
      std::vector<std::uint8_t> slices(cells);
      std::vector<std::int8_t> digits(cells * simd::kMostSlices * block_cols);
      std::vector<std::int32_t> starts(cells * simd::kMostSlices);
      std::vector<double> factors(cells);
      std::vector<double> scales(kBlocks * kPanelColumns);
      for (std::uint8_t& count : slices) {
        count = static_cast<std::uint8_t>(random() % (simd::kMostSlices + 1));
      }
      // The ends of the range, too.
      for (std::int8_t& digit : digits) {
        digit = random() % 4 == 0 ? (random() % 2 == 0 ? -128 : 127)
                                  : static_cast<std::int8_t>(random());
      }
      for (std::size_t i = 0; i < starts.size(); ++i) {
        std::int32_t sum = 0;
        for (std::size_t at = 0; at < block_cols; ++at) sum += digits[i * block_cols + at];
        starts[i] = -simd::kWeightOffset * sum;
      }
      for (double& factor : factors) factor = std::ldexp(1.0, static_cast<int>(random() % 4));
      for (double& scale : scales) scale = std::ldexp(1.0, static_cast<int>(random() % 4));
      std::vector<simd::SliceBlock> blocks;
      for (std::size_t b = 0; b < kBlocks; ++b) {
        const std::size_t cell = b * rows;
        blocks.push_back({slices.data() + cell,
                          digits.data() + cell * simd::kMostSlices * block_cols,
                          starts.data() + cell * simd::kMostSlices, factors.data() + cell});
      }
      std::vector<double> sums(rows * kPanelColumns + 1, 3.0);
      std::vector<double> expected = sums;
      kernels->dot(blocks.data(), kBlocks, steps, rows, weights.data(), scales.data(), sums.data());
      plain.dot(blocks.data(), kBlocks, steps, rows, weights.data(), scales.data(),
                expected.data());
      EXPECT_EQ(sums, expected) << rows << " rows, " << steps << " steps";
    }
  }
}

double random_double(std::mt19937_64& random, int exponents) {
  const double fraction = 1.0 + static_cast<double>(random() >> 12) * 0x1p-52;
  const int exponent =
      static_cast<int>(random() % static_cast<unsigned>(exponents)) - exponents / 2;
  return std::ldexp((random() & 1) != 0 ? fraction : -fraction, exponent);
}

float random_float(std::mt19937_64& random, int exponents) {
  return static_cast<float>(random_double(random, exponents));
}

/// Random terms and what moeref's integers make of them.
struct Terms {
  std::vector<double> high, low, error, scales, bias, residual;
  std::vector<double> multipliers, divisors;
  simd::FinishTerms terms;

  Terms(std::mt19937_64& random, int exponents) {
    for (std::vector<double>* values : {&high, &low, &error, &scales, &bias, &residual}) {
      values->resize(kPanelColumns);
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      // A few bits: sums on midpoints.
      const bool coarse = random() % 2 == 0;
      high[j] = coarse ? static_cast<double>(random() % 0x4000001) - 0x2000000
                       : random_double(random, exponents);
      if (random() % 16 == 0) high[j] = 0.0;
      low[j] = std::ldexp(static_cast<double>(random() % 3) - 1.0,
                          (high[j] == 0.0 ? 0 : std::ilogb(high[j])) - 54);
      scales[j] = static_cast<double>(coarse ? 1.0f : random_float(random, 8));
      bias[j] = coarse ? 0.5 : static_cast<double>(random_float(random, 8));
      residual[j] = static_cast<double>(coarse ? 0.25f : random_float(random, exponents));
      error[j] = random() % 4 == 0 ? std::ldexp(1.0, std::ilogb(high[j] + 1.0) - 60) : 0.0;
    }
    const auto drawn = [&](std::vector<double>& into, std::size_t most) {
      for (std::size_t i = random() % (most + 1); i > 0; --i) {
        into.push_back(static_cast<double>(random_float(random, 8)));
      }
    };
    drawn(multipliers, 4);
    drawn(divisors, 2);
    terms.high = high.data();
    if (random() % 2 == 0) terms.low = low.data();
    if (random() % 2 == 0) terms.error = error.data();
    if (random() % 2 == 0) terms.column_scales = scales.data();
    if (random() % 2 == 0) terms.row_scale = static_cast<double>(random_float(random, 8));
    if (random() % 2 == 0) terms.addends[0] = bias.data();
    if (random() % 2 == 0) terms.addends[1] = residual.data();
    terms.multipliers = multipliers.data();
    terms.multiplier_count = multipliers.size();
    terms.divisors = divisors.data();
    terms.divisor_count = divisors.size();
  }

  /// With `shift` of high + low, the end of an interval of error.
  float exact(std::size_t j, double shift, Format format) const {
    exact::LinearForm form;
    form.add_product(1.0, high[j]);
    if (terms.low != nullptr) form.add_product(1.0, low[j]);
    if (shift != 0.0) form.add_product(1.0, shift);
    form.multiply_by(terms.row_scale);
    if (terms.column_scales != nullptr) form.multiply_by(scales[j]);
    for (const double factor : multipliers) form.multiply_by(factor);
    for (const double divisor : divisors) form.divide_by(divisor);
    if (terms.addends[0] != nullptr) form.add(bias[j]);
    if (terms.addends[1] != nullptr) form.add(residual[j]);
    return form.round_by_integers(format);
  }
};

TEST_P(GemmLoops, RoundTheExactValueOnceOrSayThatTheyCannot) {
  const std::pair<Format, simd::OutputType> outputs[] = {
      {Format::f32, {24, -126, 127}}, {Format::bf16, {8, -126, 127}}, {Format::f16, {11, -14, 15}}};
  std::mt19937_64 random(4);
  int decided = 0;
  int undecided = 0;
  for (int round = 0; round < 3000; ++round) {
    const int exponents = round % 3 == 0 ? 8 : round % 3 == 1 ? 60 : 300;
    const Terms made(random, exponents);
    const auto& [format, type] = outputs[static_cast<std::size_t>(round / 3) % 3];
    float out[kPanelColumns];
    float expected[kPanelColumns];
    const std::uint32_t doubts = loops().finish(made.terms, type, out);
    EXPECT_EQ(doubts, scalar().finish(made.terms, type, expected));
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      if ((doubts >> j & 1) != 0) {
        ++undecided;
        continue;
      }
      ++decided;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[j]), std::bit_cast<std::uint32_t>(expected[j]));
      const double error = made.terms.error != nullptr ? made.error[j] : 0.0;
      for (const double shift : {0.0, error, -error}) {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(out[j]),
                  std::bit_cast<std::uint32_t>(made.exact(j, shift, format)))
            << info(format).name << " round " << round << " column " << j << " shift " << shift;
      }
    }
  }
  EXPECT_GT(decided, 20 * undecided) << undecided;
  EXPECT_GT(undecided, 0);
}

TEST_P(GemmLoops, AddSegmentsWithAllThatTheyDrop) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<double> high[2], low[2], error[2];
    for (int side = 0; side < 2; ++side) {
      for (auto* values : {&high[side], &low[side], &error[side]}) {
        values->assign(kPanelColumns, 0.0);
      }
    }
    std::vector<exact::LinearForm> forms(kPanelColumns);
    for (int segment = 0; segment < 5; ++segment) {
      std::vector<double> sums(kPanelColumns), scales(kPanelColumns);
      const double scale = static_cast<double>(random_float(random, 10));
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        sums[j] = random_double(random, 40);
        scales[j] = static_cast<double>(random_float(random, 10));
        forms[j].add_product(scale * scales[j], sums[j]);
      }
      loops().add_segment(sums.data(), scales.data(), scale, high[0].data(), low[0].data(),
                          error[0].data());
      scalar().add_segment(sums.data(), scales.data(), scale, high[1].data(), low[1].data(),
                           error[1].data());
    }
    EXPECT_EQ(high[0], high[1]);
    EXPECT_EQ(low[0], low[1]);
    EXPECT_EQ(error[0], error[1]);
    simd::FinishTerms terms;
    terms.high = high[0].data();
    terms.low = low[0].data();
    terms.error = error[0].data();
    float out[kPanelColumns];
    const std::uint32_t doubts = loops().finish(terms, {24, -126, 127}, out);
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      if ((doubts >> j & 1) == 0) {
        EXPECT_EQ(out[j], forms[j].round_by_integers(Format::f32));
      }
    }
  }
}

}  // namespace
}  // namespace moeref
