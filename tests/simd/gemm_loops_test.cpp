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

#include "engine/exact/dyadic.hpp"
#include "engine/exact/linear_form.hpp"
#include "engine/sum_bounds.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"
#include "simd/kernels.hpp"
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
  simd::PanelCode code;
  Format format;
  std::size_t unit;
};
constexpr Type kTypes[] = {{simd::PanelCode::e2m1, Format::e2m1, 32},
                           {simd::PanelCode::e4m3, Format::e4m3, 16},
                           {simd::PanelCode::e8m0, Format::e8m0, 16},
                           {simd::PanelCode::bf16, Format::bf16, 8},
                           {simd::PanelCode::f16, Format::f16, 8}};

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
      if (scaled && type.code == simd::PanelCode::e8m0) continue;
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
    for (std::size_t count = 1; count < 100; ++count) {
      for (const std::uint64_t range : {1ull, 3ull, ~0ull}) {
        const std::size_t stride = bytes * count + 1;  // at odd addresses, too
        std::vector<std::byte> codes(stride * kPanelColumns);
        const std::byte* columns[kPanelColumns];
        std::uint32_t smallest[2][kPanelColumns];  // with zeros, without
        std::uint32_t largest[kPanelColumns] = {};
        std::uint32_t any[kPanelColumns] = {};
        for (std::size_t j = 0; j < kPanelColumns; ++j) {
          columns[j] = codes.data() + j * stride;
          smallest[0][j] = smallest[1][j] = ~0u;
          for (std::size_t i = 0; i < count; ++i) {
            const auto code =
                static_cast<std::uint16_t>(range == ~0ull ? random() : random() % range);
            std::memcpy(codes.data() + j * stride + bytes * i, &code, bytes);
            const std::uint32_t size = code & mask & (bytes == 1 ? 0xFFu : 0xFFFFu);
            smallest[0][j] = std::min(smallest[0][j], size);
            if (size != 0) smallest[1][j] = std::min(smallest[1][j], size);
            largest[j] = std::max(largest[j], size);
            any[j] |= size;
          }
        }
        for (const bool skips_zero : {false, true}) {
          simd::Magnitudes found[kPanelColumns];
          loops().magnitudes(bytes, mask, skips_zero, columns, count, found);
          for (std::size_t j = 0; j < kPanelColumns; ++j) {
            EXPECT_EQ(found[j].largest, largest[j]);
            EXPECT_EQ(found[j].bits, any[j]);
            if (skips_zero && largest[j] == 0) {
              EXPECT_GT(found[j].smallest, found[j].largest);
            } else {
              EXPECT_EQ(found[j].smallest, smallest[skips_zero ? 1 : 0][j])
                  << bytes << " bytes, " << count << " codes";
            }
          }
        }
      }
    }
  }
}

TEST_P(GemmLoops, SumSquaresOfCodes) {
  const std::pair<simd::PanelCode, Format> types[] = {{simd::PanelCode::e4m3, Format::e4m3},
                                                      {simd::PanelCode::e8m0, Format::e8m0},
                                                      {simd::PanelCode::bf16, Format::bf16},
                                                      {simd::PanelCode::f16, Format::f16}};
  std::mt19937_64 random(17);
  for (const auto& [type, format] : types) {
    const std::size_t bytes = format == Format::bf16 || format == Format::f16 ? 2 : 1;
    for (std::size_t count = 1; count < 100; ++count) {
      const std::size_t stride = bytes * count;
      std::vector<std::byte> codes(stride * kPanelColumns);
      const std::byte* columns[kPanelColumns];
      double expected[kPanelColumns] = {};
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        columns[j] = codes.data() + j * stride;
        for (std::size_t i = 0; i < count; ++i) {
          // Neither NaN nor infinity.
          const auto code = static_cast<std::uint16_t>(random() % 0x7F +
                                                       (bytes == 2 ? (random() % 0x60) << 8 : 0));
          std::memcpy(codes.data() + j * stride + bytes * i, &code, bytes);
          const double value = decode(format, code);
          expected[j] += value * value;
        }
      }
      double sums[kPanelColumns + 1];
      sums[kPanelColumns] = 3.0;
      loops().squares(type, columns, count, sums);
      EXPECT_EQ(sums[kPanelColumns], 3.0) << "written beyond the sums";
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        EXPECT_GE(sums[j], expected[j] * (1.0 - 0x1p-45));
        EXPECT_LE(sums[j], expected[j] * (1.0 + 0x1p-45) + 16 * 0x1p-254);
      }
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

TEST_P(GemmLoops, AddSegmentsWithinTheirBound) {
  std::mt19937_64 random(5);
  int exact_ones = 0;
  int rounded_ones = 0;
  for (int round = 0; round < 600; ++round) {
    // Of few bits, so that nothing is rounded; or of all, some of them far apart.
    const bool few_bits = round % 3 == 0;
    const int exponents = round % 3 == 1 ? 4 : 40;
    std::vector<double> high[2], low[2];
    for (int side = 0; side < 2; ++side) {
      high[side].assign(kPanelColumns, 0.0);
      low[side].assign(kPanelColumns, 0.0);
    }
    std::vector<exact::Dyadic> sums_of(kPanelColumns);
    std::vector<double> totals(kPanelColumns, 0.0);
    std::vector<int> lowest(kPanelColumns, 4000);
    const int segments = 1 + round % 60;
    for (int segment = 0; segment < segments; ++segment) {
      std::vector<double> sums(kPanelColumns), scales(kPanelColumns);
      const double scale = static_cast<double>(few_bits ? 1.5f : random_float(random, 10));
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        sums[j] = few_bits ? static_cast<double>(random() >> 24) : random_double(random, exponents);
        scales[j] = static_cast<double>(few_bits ? 0.75f : random_float(random, 10));
        const exact::Dyadic product =
            exact::Dyadic(scale) * exact::Dyadic(scales[j]) * exact::Dyadic(sums[j]);
        if (product.is_zero()) continue;
        sums_of[j] += product;
        totals[j] += std::fabs(scale * scales[j] * sums[j]) * (1.0 + 0x1p-40);
        lowest[j] = std::min(lowest[j], static_cast<int>(product.lowest_exponent()));
      }
      loops().add_segment(sums.data(), 1, scales.data(), &scale, high[0].data(), low[0].data());
      scalar().add_segment(sums.data(), 1, scales.data(), &scale, high[1].data(), low[1].data());
    }
    EXPECT_EQ(high[0], high[1]);
    EXPECT_EQ(low[0], low[1]);
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      const exact::Dyadic lack =
          sums_of[j] - (exact::Dyadic(high[0][j]) + exact::Dyadic(low[0][j]));
      const double bound = fold_bound(segments, totals[j], lowest[j]);
      if (bound == 0.0) {
        EXPECT_TRUE(lack.is_zero());
        ++exact_ones;
        continue;
      }
      ++rounded_ones;
      EXPECT_FALSE(exact::Dyadic(bound) < lack.absolute());
    }
  }
  EXPECT_GT(exact_ones, 1000);
  EXPECT_GT(rounded_ones, 1000);
}

}  // namespace
}  // namespace moeref
