#include "engine/gemm.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "engine/operand.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "simd/kernels.hpp"
#include "tests/judge/exact_dot.hpp"
#include "tests/support/error_of.hpp"
#include "tests/support/random_matrix.hpp"

namespace moeref {
namespace {

using judge::ExactSum;
using testing::all_rows;
using testing::OwnedMatrix;
using testing::random_matrix;
using testing::Scheme;
using testing::Spread;

std::vector<float> run(const ScaledMatrix& x, const ScaledMatrix& w, const GemmEpilogue& epilogue,
                       int threads = 1, GemmStatistics* statistics = nullptr) {
  std::vector<float> out(static_cast<std::size_t>(x.rows * w.rows), -7.0f);
  gemm(GemmInput(x, all_rows(x)), w, epilogue, out.data(), w.rows, threads, statistics);
  return out;
}

/// Compares every output with the judge's, by bits.
void expect_exact(const ScaledMatrix& x, const ScaledMatrix& w, const GemmEpilogue& epilogue,
                  const ScaledMatrix& bias, const std::vector<float>& factors,
                  const std::vector<float>& residual) {
  const std::vector<float> out = run(x, w, epilogue);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t n = 0; n < w.rows; ++n) {
      ExactSum sum;
      sum.add_dot(x, i, w, n);
      if (!factors.empty()) sum.multiply(factors[static_cast<std::size_t>(i)]);
      if (bias) {
        sum.add(
            judge::decode_by_formula(Format::bf16, load<std::uint16_t>(bias.codes.data + 2 * n)));
      }
      const auto at = static_cast<std::size_t>(i * w.rows + n);
      if (!residual.empty()) sum.add(residual[at]);
      const float expected = sum.round(epilogue.output);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[at]), std::bit_cast<std::uint32_t>(expected))
          << x.name << " x " << w.name << " row " << i << " column " << n << ": " << out[at]
          << " instead of " << expected;
    }
  }
}

class GemmPairs : public ::testing::TestWithParam<std::tuple<Scheme, Scheme, Spread>> {};

TEST_P(GemmPairs, RoundsTheExactValueOnce) {
  const auto [x_scheme, w_scheme, spread] = GetParam();
  std::mt19937_64 random(1000 * static_cast<unsigned>(x_scheme) +
                         10 * static_cast<unsigned>(w_scheme) + static_cast<unsigned>(spread));
  const OwnedMatrix x = random_matrix(x_scheme, spread, 3, 160, random);
  const OwnedMatrix w = random_matrix(w_scheme, spread, 19, 160, random);
  expect_exact(x.matrix, w.matrix, {}, {}, {}, {});

  GemmEpilogue epilogue;
  const OwnedMatrix bias = random_matrix(Scheme::bf16, Spread::tame, 1, 19, random);
  epilogue.bias = bias.matrix;
  const std::vector<float> factors{0.3f, -1.7f, 1.0f};
  epilogue.row_scales = factors;
  expect_exact(x.matrix, w.matrix, epilogue, bias.matrix, factors, {});

  std::vector<float> residual(3 * 19);
  for (float& value : residual) value = std::ldexp(static_cast<float>(random() % 4096), -6);
  epilogue.residual = residual.data();
  epilogue.residual_stride = 19;
  for (const Format output : {Format::f32, Format::bf16, Format::f16}) {
    epilogue.output = output;
    expect_exact(x.matrix, w.matrix, epilogue, bias.matrix, factors, residual);
  }
}

std::string pair_name(const ::testing::TestParamInfo<GemmPairs::ParamType>& pair) {
  const char* spreads[] = {"tame", "wide", "extreme"};
  return std::string(testing::name(std::get<0>(pair.param))) + "_x_" +
         testing::name(std::get<1>(pair.param)) + "_" +
         spreads[static_cast<int>(std::get<2>(pair.param))];
}

INSTANTIATE_TEST_SUITE_P(Schemes, GemmPairs,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllSchemes),
                                            ::testing::ValuesIn(testing::kAllSchemes),
                                            ::testing::Values(Spread::tame, Spread::wide,
                                                              Spread::extreme)),
                         pair_name);

TEST(Gemm, UsesEveryPathOfTheProof) {
  std::mt19937_64 random(7);
  GemmStatistics tame;
  const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 4, 256, random);
  const OwnedMatrix w = random_matrix(Scheme::mxfp4, Spread::tame, 32, 256, random);
  run(x.matrix, w.matrix, {}, 1, &tame);
  EXPECT_EQ(tame.one_sum, 4 * 32);

  GemmStatistics coarse;
  const OwnedMatrix wide_x = random_matrix(Scheme::bf16, Spread::wide, 4, 256, random);
  run(wide_x.matrix, w.matrix, {}, 1, &coarse);
  EXPECT_EQ(coarse.split, 4 * 32);

  GemmStatistics fine;
  const OwnedMatrix fine_x = random_matrix(Scheme::f32, Spread::wide, 4, 256, random);
  run(fine_x.matrix, w.matrix, {}, 1, &fine);
  EXPECT_EQ(fine.estimated, 4 * 32);

  // Sums that cancel but for their last bits.
  GemmStatistics cancelling;
  const float x_row[] = {1.0f, 0x1p-30f, -1.0f, 0x1p-60f};
  const float w_row[] = {1.0f, 1.0f, 1.0f, 0x1p-5f};
  const std::vector<float> out =
      run(f32_matrix("x", x_row, 1, 4), f32_matrix("w", w_row, 1, 4), {}, 1, &cancelling);
  EXPECT_EQ(out[0], 0x1p-30f);
  EXPECT_EQ(cancelling.wide, 1);
}

TEST(Gemm, GivesTheSameBytesForEveryThreadCountAndInstructionSet) {
  std::mt19937_64 random(11);
  const OwnedMatrix x = random_matrix(Scheme::f32, Spread::wide, 9, 320, random);
  const OwnedMatrix w = random_matrix(Scheme::e4m3_block128, Spread::wide, 100, 320, random);
  ASSERT_TRUE(simd::use_kernels("scalar"));
  const std::vector<float> expected = run(x.matrix, w.matrix, {});
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    ASSERT_TRUE(simd::use_kernels(*isa));
    for (const int threads : {1, 2, 7}) {
      const std::vector<float> out = run(x.matrix, w.matrix, {}, threads);
      EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
          << *isa << ", " << threads << " threads";
    }
  }
}

TEST(Gemm, GivesPlusZeroForAnExactlyZeroSum) {
  const float x[] = {1.0f, -1.0f, -0.0f};
  const float w[] = {3.0f, 3.0f, 5.0f, -0.0f, -0.0f, -0.0f};
  const std::vector<float> out = run(f32_matrix("x", x, 1, 3), f32_matrix("w", w, 2, 3), {});
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[0]), 0u);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[1]), 0u);
}

TEST(Gemm, RoundsSubnormalResultsAndOverflowOnce) {
  const float x[] = {0x1p-126f, 0x1p-127f, 0x1p127f, 0x1.8p0f};
  const float w[] = {0x1p-23f, 0x1p-23f, 0.0f,           0.0f,   // 2^-149 + 2^-150: a tie, to even
                     0.0f,     0x1p-23f, 0.0f,           0.0f,   // 2^-150: a tie, to zero
                     0.0f,     0.0f,     2.0f,           0.0f,   // 2^128: infinity
                     0.0f,     0.0f,     -0x1.fffffep0f, 0.0f};  // just fits
  const std::vector<float> out = run(f32_matrix("x", x, 1, 4), f32_matrix("w", w, 4, 4), {});
  EXPECT_EQ(out[0], 0x1p-148f);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[1]), 0u);
  EXPECT_EQ(out[2], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out[3], -0x1.fffffep127f);
}

TEST(Gemm, PropagatesNanAndInfinityByTheIeeeSum) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::bit_cast<float>(0xFFC12345u);
  const float x[] = {1.0f, inf,  2.0f,   //
                     1.0f, 3.0f, -2.0f,  //
                     nan,  0.0f, 0.0f};
  const float w[] = {1.0f, 1.0f,  1.0f,   // +inf
                     1.0f, -1.0f, 1.0f,   // -inf
                     1.0f, 0.0f,  1.0f,   // inf * 0
                     inf,  -1.0f, 1.0f};  // inf - inf
  const std::vector<float> out = run(f32_matrix("x", x, 3, 3), f32_matrix("w", w, 4, 3), {});
  const std::uint32_t kNan = 0x7FC00000u;
  EXPECT_EQ(out[0], inf);
  EXPECT_EQ(out[1], -inf);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[2]), kNan);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[3]), kNan);
  EXPECT_EQ(out[4], 2.0f);  // a finite row beside them is exact
  EXPECT_EQ(out[7], inf);
  for (int n = 8; n < 12; ++n)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(out[static_cast<std::size_t>(n)]), kNan);
}

TEST(Gemm, TakesNanScalesAndCodesAsNan) {
  std::mt19937_64 random(5);
  OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 1, 64, random);
  OwnedMatrix w = random_matrix(Scheme::mxfp4, Spread::tame, 3, 64, random);
  w.scales[2] = std::byte{0xFF};  // row 1, first block
  const std::vector<float> out = run(x.matrix, w.matrix, {});
  EXPECT_TRUE(std::isfinite(out[0]));
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[1]), 0x7FC00000u);
  EXPECT_TRUE(std::isfinite(out[2]));
}

TEST(Gemm, WorksOnShardsThatStartInsideABlock) {
  std::mt19937_64 random(6);
  const OwnedMatrix x = random_matrix(Scheme::f32, Spread::tame, 2, 300, random);
  const OwnedMatrix w = random_matrix(Scheme::e4m3_block128, Spread::tame, 40, 300, random);
  const ScaledMatrix x_part = col_slice(x.matrix, 100, 150);
  const ScaledMatrix w_part = col_slice(row_slice(w.matrix, 7, 20), 100, 150);
  expect_exact(x_part, w_part, {}, {}, {}, {});
}

TEST(Gemm, SumsOfColumnShardsKeptExactEqualTheWhole) {
  std::mt19937_64 random(8);
  for (const Scheme scheme : testing::kAllSchemes) {
    const OwnedMatrix x = random_matrix(Scheme::f32, Spread::tame, 2, 384, random);
    const OwnedMatrix w = random_matrix(scheme, Spread::tame, 5, 384, random);
    const std::vector<float> whole = run(x.matrix, w.matrix, {});
    for (std::int64_t n = 0; n < 5; ++n) {
      ExactSum sum;
      for (std::int64_t rank = 0; rank < 4; ++rank) {
        sum.add_dot(col_slice(x.matrix, rank * 96, 96), 1, col_slice(w.matrix, rank * 96, 96), n);
      }
      EXPECT_EQ(sum.round(Format::f32), whole[static_cast<std::size_t>(5 + n)]) << w.matrix.name;
    }
  }
}

#if defined(__x86_64__)
TEST(Gemm, IgnoresTheCallersFlushToZero) {
  const float x[] = {0x1p-130f, 0x1p-130f};
  const float w[] = {1.0f, 1.0f};
  const unsigned int saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // FTZ and DAZ
  const std::vector<float> out = run(f32_matrix("x", x, 1, 2), f32_matrix("w", w, 1, 2), {});
  const unsigned int after = _mm_getcsr();
  _mm_setcsr(saved);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(out[0]), std::bit_cast<std::uint32_t>(0x1p-129f));
  EXPECT_EQ(after & 0x8040, 0x8040u);  // and it is still the caller's
}
#endif

TEST(Gemm, CountsInfiniteFactorsProductByProduct) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> factors{inf};
  GemmEpilogue epilogue;
  epilogue.row_scales = factors;
  const float w[] = {1.0f, 1.0f, 1.0f};
  for (const auto& row : {std::array{1e30f, 1.0f, -1e30f}, std::array{1e30f, -1e30f, 1.0f}}) {
    const std::vector<float> out =
        run(f32_matrix("x", row.data(), 1, 3), f32_matrix("w", w, 1, 3), epilogue);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(out[0]), 0x7FC00000u);
  }
  const float positive[] = {1.0f, 2.0f, 0x1p-149f};
  EXPECT_EQ(run(f32_matrix("x", positive, 1, 3), f32_matrix("w", w, 1, 3), epilogue)[0], inf);
}

TEST(Gemm, AppliesGlobalScalesToInfinity) {
  std::mt19937_64 random(1);
  OwnedMatrix w = random_matrix(Scheme::nvfp4_multiplied, Spread::tame, 1, 16, random);
  std::fill(w.codes.begin(), w.codes.end(), std::byte{0x22});  // ones
  std::vector<float> x(16, 1.0f);
  x[3] = std::numeric_limits<float>::infinity();
  w.matrix.global_scale = -1.0f;
  EXPECT_EQ(run(f32_matrix("x", x.data(), 1, 16), w.matrix, {})[0], -x[3]);
  w.matrix.global_scale = 0.0f;
  EXPECT_EQ(std::bit_cast<std::uint32_t>(run(f32_matrix("x", x.data(), 1, 16), w.matrix, {})[0]),
            0x7FC00000u);
}

TEST(Gemm, KeepsScalesOfAnyWidthExact) {
  // f32 codes with bf16 and f16 scales: code and scale together are too wide to be one value.
  std::mt19937_64 random(12);
  const OwnedMatrix x = random_matrix(Scheme::f32, Spread::wide, 2, 96, random);
  OwnedMatrix w = random_matrix(Scheme::f32, Spread::wide, 20, 96, random);
  for (const Format format : {Format::bf16, Format::f16}) {
    std::vector<std::uint16_t> scales;
    for (int i = 0; i < 20 * 3; ++i) {
      const float scale = 1.0f + static_cast<float>(random() % 1024) / 1024.0f;
      scales.push_back(static_cast<std::uint16_t>(encode(format, scale, EncodePolicy::eigen)));
    }
    w.matrix.scales =
        ScaleGrid{reinterpret_cast<const std::byte*>(scales.data()), format, 1, 32, 0, 0, 3, 1};
    expect_exact(x.matrix, w.matrix, {}, {}, {}, {});
  }
}

TEST(Gemm, EstimatesOnlyTheOddColumn) {
  std::mt19937_64 random(13);
  const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 3, 128, random);
  OwnedMatrix w = random_matrix(Scheme::bf16, Spread::tame, 32, 128, random);
  const auto tiny =
      static_cast<std::uint16_t>(encode(Format::bf16, 0x1p-100f, EncodePolicy::eigen));
  std::memcpy(w.codes.data() + 2 * (5 * 128 + 9), &tiny, 2);
  GemmStatistics statistics;
  run(x.matrix, w.matrix, {}, 1, &statistics);
  EXPECT_EQ(statistics.estimated + statistics.wide, 3);
  EXPECT_EQ(statistics.one_sum, 3 * 31);
  expect_exact(x.matrix, w.matrix, {}, {}, {}, {});
}

TEST(Gemm, RejectsOperandsThatDoNotFit) {
  std::mt19937_64 random(9);
  const OwnedMatrix x = random_matrix(Scheme::f32, Spread::tame, 1, 64, random);
  const OwnedMatrix w = random_matrix(Scheme::f32, Spread::tame, 4, 96, random);
  EXPECT_EQ(error_of([&] { run(x.matrix, w.matrix, {}); }),
            "f32: has 96 columns, its input f32 has 64; they must be equal");
  OwnedMatrix divided = random_matrix(Scheme::nvfp4_divided, Spread::tame, 4, 64, random);
  divided.matrix.global_scale = 0.0f;
  EXPECT_THROW(run(x.matrix, divided.matrix, {}), Error);
  OwnedMatrix wide = random_matrix(Scheme::f32, Spread::tame, 4, 64, random);
  wide.matrix.codes.format = Format::f64;
  EXPECT_THROW(run(x.matrix, wide.matrix, {}), Error);
  GemmEpilogue epilogue;
  const OwnedMatrix bias = random_matrix(Scheme::bf16, Spread::tame, 1, 3, random);
  epilogue.bias = bias.matrix;
  const OwnedMatrix fitting = random_matrix(Scheme::f32, Spread::tame, 4, 64, random);
  EXPECT_THROW(run(x.matrix, fitting.matrix, epilogue), Error);
}

}  // namespace
}  // namespace moeref
