// Where the paths of the exact GEMM meet: the edge of the window proof, rows that whole numbers
// leave out, sums of many blocks, many panels, shards of scales.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/gemm.hpp"
#include "engine/operand.hpp"
#include "quant/formats.hpp"
#include "simd/kernels.hpp"
#include "tests/judge/exact_dot.hpp"
#include "tests/support/isas.hpp"
#include "tests/support/random_matrix.hpp"

namespace moeref {
namespace {

using judge::ExactSum;
using testing::all_rows;
using testing::OwnedMatrix;
using testing::random_matrix;
using testing::Scheme;
using testing::Spread;

std::uint16_t bf16(float value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
}

class EveryIsa : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(simd::use_kernels(GetParam().c_str())); }

  /// Every output against the judge's; rows of the output lie apart.
  static void expect_exact(const ScaledMatrix& x, const ScaledMatrix& w, int threads = 1) {
    const std::int64_t stride = w.rows + 5;
    std::vector<float> out(static_cast<std::size_t>(x.rows * stride), -7.0f);
    gemm(GemmInput(x, all_rows(x)), w, {}, out.data(), stride, threads);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      for (std::int64_t n = 0; n < stride; ++n) {
        const float actual = out[static_cast<std::size_t>(i * stride + n)];
        if (n >= w.rows) {
          ASSERT_EQ(actual, -7.0f) << "written between the rows";
          continue;
        }
        ExactSum sum;
        sum.add_dot(x, i, w, n);
        const float expected = sum.round(Format::f32);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(actual), std::bit_cast<std::uint32_t>(expected))
            << x.name << " x " << w.name << " row " << i << " column " << n << ": " << actual
            << " instead of " << expected;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, EveryIsa, ::testing::ValuesIn(moeref::testing::isas()),
                         [](const auto& isa) { return isa.param; });

TEST_P(EveryIsa, SumsRowsThatWholeNumbersLeaveOut) {
  // A number far below its neighbours in some rows of two blocks of rows: not so far that bf16 rows
  // would be split, but beyond the digits.
  constexpr std::int64_t kRows = 15;
  constexpr std::int64_t kCols = 544;
  std::mt19937_64 random(1);
  for (const Scheme scheme : {Scheme::mxfp4, Scheme::nvfp4_multiplied, Scheme::nvfp4_divided}) {
    OwnedMatrix w = random_matrix(scheme, Spread::tame, 40, kCols, random);
    // Rows of one scale each, which leave the most room.
    const std::size_t blocks = w.scales.size() / 40;
    for (std::size_t i = 0; i < w.scales.size(); ++i) w.scales[i] = w.scales[i / blocks * blocks];
    std::vector<float> x(kRows * kCols, 1.0f);
    for (const auto& [row, col] : {std::pair{0, 200}, {1, 31}, {3, 530}, {9, 7}, {10, 540}}) {
      x[static_cast<std::size_t>(row * kCols + col)] = 0x1p-39f;
    }
    std::vector<std::uint16_t> halves;
    for (const float value : x) halves.push_back(bf16(value));
    ScaledMatrix left = f32_matrix("x", x.data(), kRows, kCols);
    expect_exact(left, w.matrix);
    left.codes.data = reinterpret_cast<const std::byte*>(halves.data());
    left.codes.format = Format::bf16;
    expect_exact(left, w.matrix);
    if (HasFatalFailure()) return;
  }
}

TEST_P(EveryIsa, SumsOfAsManyBlocksAsThereAre) {
  // One column spans many more bits than the others; each block adds a little to a midpoint.
  constexpr std::int64_t kCols = 32768;
  constexpr std::int64_t kOdd = 15;
  std::vector<std::uint16_t> x(kCols, 0);
  std::vector<std::uint8_t> codes(16 * kCols / 2, 0x22);    // ones
  std::vector<std::uint8_t> scales(16 * kCols / 16, 0x38);  // ones
  const auto set = [&](std::int64_t k, unsigned code) {
    std::uint8_t& byte = codes[static_cast<std::size_t>((kOdd * kCols + k) / 2)];
    byte = static_cast<std::uint8_t>(k % 2 != 0 ? (byte & 0x0F) | code << 4 : (byte & 0xF0) | code);
  };
  for (std::int64_t k = 0; k < kCols; ++k) set(k, 0);
  for (std::int64_t b = 0; b < kCols / 16; ++b) {
    scales[static_cast<std::size_t>(kOdd * kCols / 16 + b)] = b == 0 ? 0x78 : b == 1 ? 0x01 : 0x50;
    if (b < 2) continue;
    x[static_cast<std::size_t>(16 * b)] = bf16(0x1p-48f);
    set(16 * b, 6);
  }
  x[0] = bf16(1.0f);
  x[1] = bf16(0x1p-22f);
  x[2] = bf16(-25 * 0x1p-45f);
  set(0, 6);
  set(1, 2);
  set(2, 2);
  ScaledMatrix left;
  left.name = "x";
  left.rows = 1;
  left.cols = kCols;
  left.codes = {reinterpret_cast<const std::byte*>(x.data()),
                Format::bf16,
                NibbleOrder::low_first,
                0,
                kCols,
                1};
  ScaledMatrix right;
  right.name = "w";
  right.rows = 16;
  right.cols = kCols;
  right.codes = {reinterpret_cast<const std::byte*>(codes.data()),
                 Format::e2m1,
                 NibbleOrder::low_first,
                 0,
                 kCols,
                 1};
  right.scales = ScaleGrid{
      reinterpret_cast<const std::byte*>(scales.data()), Format::ue4m3, 1, 16, 0, 0, kCols / 16, 1};
  expect_exact(left, right);
}

/// 2^a big + small - (2^(a-1) + ... + 1) big: big + small remain, the last bit of which an f64 sum
/// has or has not.
struct EdgeCodes {
  Format codes;
  Format scales;  ///< f32: none
  std::uint32_t big, small, big_scale, small_scale;
};
constexpr EdgeCodes kEdges[] = {
    {Format::bf16, Format::f32, 0x3F80, 0x3F81, 0, 0},
    {Format::bf16, Format::f32, 0x4780, 0x3F81, 0, 0},
    {Format::bf16, Format::f32, 0x3F80, 0x3FC0, 0, 0},
    {Format::bf16, Format::f32, 0x3F80, 0x3F80, 0, 0},
    {Format::bf16, Format::f32, 0x0280, 0x0001, 0, 0},
    {Format::bf16, Format::f32, 0x0180, 0x0081, 0, 0},
    {Format::f16, Format::f32, 0x3C00, 0x3C01, 0, 0},
    {Format::f16, Format::f32, 0x3C00, 0x0001, 0, 0},
    {Format::f16, Format::f32, 0x0400, 0x0001, 0, 0},
    {Format::e4m3, Format::f32, 0x38, 0x39, 0, 0},
    {Format::e4m3, Format::f32, 0x38, 0x01, 0, 0},
    {Format::e4m3, Format::f32, 0x38, 0x38, 0, 0},
    {Format::e4m3, Format::e8m0, 0x38, 0x39, 127, 120},
    {Format::e4m3, Format::e8m0, 0x38, 0x39, 10, 0},
    {Format::e4m3, Format::e8m0, 0x38, 0x38, 0, 0},
    {Format::e2m1, Format::e8m0, 2, 1, 127, 120},
    {Format::e2m1, Format::e8m0, 6, 1, 10, 0},
    {Format::e2m1, Format::e8m0, 6, 1, 0, 0},
    {Format::e2m1, Format::ue4m3, 6, 1, 0x38, 0x01},
    {Format::e2m1, Format::ue4m3, 6, 1, 0x38, 0x39},
    {Format::e2m1, Format::bf16, 6, 1, 0x3F80, 0x3F81},
    {Format::e2m1, Format::f16, 6, 1, 0x3C00, 0x0001},
    {Format::e2m1, Format::f16, 6, 1, 0x3C00, 0x3C01},
};

void put(std::vector<std::byte>& bytes, Format format, std::size_t i, std::uint32_t code) {
  switch (info(format).bits) {
    case 4:
      bytes[i / 2] |= static_cast<std::byte>(code << (i % 2 * 4));
      break;
    case 8:
      bytes[i] = static_cast<std::byte>(code);
      break;
    default: {
      const auto half = static_cast<std::uint16_t>(code);
      std::memcpy(&bytes[2 * i], &half, sizeof half);
    }
  }
}

TEST_P(EveryIsa, ProvesNoMoreThanItHolds) {
  constexpr std::size_t kCols = 640;
  for (const bool short_x : {false, true}) {
    for (const EdgeCodes& edge : kEdges) {
      for (int a = 0; a < 56; ++a) {
        std::vector<float> x(kCols, 0.0f);
        x[0] = std::ldexp(1.0f, a);
        x[32] = 1.0f;
        for (int i = 0; i < a; ++i) x[64 + 8 * static_cast<std::size_t>(i)] = -std::ldexp(1.0f, i);
        std::vector<std::uint16_t> halves;
        for (const float value : x) halves.push_back(bf16(value));
        ScaledMatrix left = f32_matrix("x", x.data(), 1, kCols);
        if (short_x) {
          left.codes.data = reinterpret_cast<const std::byte*>(halves.data());
          left.codes.format = Format::bf16;
        }
        std::vector<std::byte> codes(kCols * static_cast<std::size_t>(info(edge.codes).bits) / 8);
        for (std::size_t k = 0; k < kCols; ++k) {
          const bool second = k / 32 == 1;
          put(codes, edge.codes, k, second ? (k == 32 ? edge.small : 0u) : edge.big);
        }
        ScaledMatrix right;
        right.name = std::string(info(edge.codes).name);
        right.rows = 1;
        right.cols = kCols;
        right.codes = {codes.data(), edge.codes, NibbleOrder::low_first, 0, kCols, 1};
        std::vector<std::byte> scales(kCols / 32 * 2);
        if (edge.scales != Format::f32) {
          for (std::size_t b = 0; b < kCols / 32; ++b) {
            put(scales, edge.scales, b, b == 1 ? edge.small_scale : edge.big_scale);
          }
          right.scales = ScaleGrid{scales.data(), edge.scales, 1, 32, 0, 0, kCols / 32, 1};
        }
        SCOPED_TRACE(std::to_string(&edge - kEdges) + " a " + std::to_string(a));
        expect_exact(left, right);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(EveryIsa, TakesManyPanelsAndBlocksOfRows) {
  std::mt19937_64 random(2);
  for (const Scheme scheme :
       {Scheme::mxfp4, Scheme::nvfp4_divided, Scheme::mxfp8, Scheme::e4m3_block128, Scheme::bf16}) {
    for (const Scheme left : {Scheme::bf16, Scheme::f32}) {
      // Too many activations to take a panel at a time.
      const OwnedMatrix x = random_matrix(left, Spread::tame, 60, 600, random);
      const OwnedMatrix w = random_matrix(scheme, Spread::tame, 150, 600, random);
      expect_exact(x.matrix, w.matrix, 2);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryIsa, FindsTheScalesOfShards) {
  std::mt19937_64 random(3);
  for (const Scheme scheme : {Scheme::mxfp4, Scheme::nvfp4_multiplied, Scheme::mxfp8,
                              Scheme::e4m3_block128_bf16, Scheme::e4m3_block128}) {
    const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 3, 768, random);
    const OwnedMatrix one = random_matrix(Scheme::bf16, Spread::tame, 1, 768, random);
    const OwnedMatrix w = random_matrix(scheme, Spread::wide, 300, 768, random);
    for (const std::int64_t begin : {0, 16, 32, 48, 100, 128, 144, 256}) {
      for (const std::int64_t cols : {16, 40, 160, 512}) {
        for (const std::int64_t first : {0, 1, 130}) {
          for (const OwnedMatrix* left : {&x, &one}) {
            expect_exact(col_slice(left->matrix, begin, cols),
                         col_slice(row_slice(w.matrix, first, 37), begin, cols));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

/// E2M1 under every form of scales, for rows so few that they go along the weight rows.
TEST_P(EveryIsa, TakesFewRowsUnderEveryScaleOfE2m1) {
  struct Scales {
    Format format;
    std::int64_t rows, cols;  ///< of a block; 0: no scales
  };
  constexpr Scales kScales[] = {
      {Format::f32, 0, 0},    {Format::f32, 1, 1 << 20}, {Format::f32, 128, 128},
      {Format::e8m0, 1, 32},  {Format::e8m0, 2, 16},     {Format::e8m0, 1, 64},
      {Format::ue4m3, 1, 16}, {Format::ue4m3, 1, 32},    {Format::bf16, 1, 32}};
  constexpr std::int64_t kRows = 19;
  std::mt19937_64 random(12);
  for (const Scales& kind : kScales) {
    for (const std::int64_t cols : {1, 15, 31, 33, 511, 515, 1030}) {
      const std::int64_t stride = (cols + 1) / 2 * 2;
      std::vector<std::byte> codes(static_cast<std::size_t>(kRows * stride / 2));
      for (std::byte& byte : codes) byte = static_cast<std::byte>(random());
      ScaledMatrix w;
      w.name = std::string("e2m1 x ") + std::string(info(kind.format).name);
      w.rows = kRows;
      w.cols = cols;
      w.codes = {codes.data(), Format::e2m1, NibbleOrder::low_first, 0, stride, 1};
      std::vector<std::byte> scales;
      if (kind.rows != 0) {
        const std::int64_t blocks = (cols + kind.cols - 1) / kind.cols;
        for (std::int64_t i = 0; i < (kRows + kind.rows - 1) / kind.rows * blocks; ++i) {
          const auto change = static_cast<std::uint32_t>(random() % 9);
          const std::size_t bytes = static_cast<std::size_t>(info(kind.format).bits) / 8;
          const std::uint32_t code = kind.format == Format::f32 ? 0x3F80'0000u + change * 0x12'3457u
                                     : kind.format == Format::bf16 ? 0x3F80u + change
                                     : kind.format == Format::e8m0 ? 123u + change
                                                                   : 0x30u + change;
          const auto* from = reinterpret_cast<const std::byte*>(&code);
          scales.insert(scales.end(), from, from + bytes);
        }
        w.scales = ScaleGrid{scales.data(), kind.format, kind.rows, kind.cols, 0, 0, blocks, 1};
      }
      for (const Scheme left : {Scheme::bf16, Scheme::f32, Scheme::mxfp4}) {
        for (const Spread spread : {Spread::tame, Spread::wide}) {
          const OwnedMatrix x = random_matrix(left, spread, 2, cols, random);
          expect_exact(x.matrix, w, 2);
          expect_exact(row_slice(x.matrix, 1, 1), w);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(EveryIsa, FlagsScalesThatAreNotANumberForOneRow) {
  std::mt19937_64 random(13);
  for (const Scheme scheme : {Scheme::mxfp4, Scheme::nvfp4_multiplied}) {
    const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 1, 200, random);
    OwnedMatrix w = random_matrix(scheme, Spread::tame, 20, 200, random);
    ScaleGrid& grid = *w.matrix.scales;
    std::vector<std::byte> scales(grid.data, grid.data + 20 * grid.row_stride);
    grid.data = scales.data();
    scales[static_cast<std::size_t>(3 * grid.row_stride + 5)] =
        grid.format == Format::e8m0 ? std::byte{0xFF} : std::byte{0x7F};
    std::vector<float> out(20);
    gemm(GemmInput(x.matrix, all_rows(x.matrix)), w.matrix, {}, out.data(), 20, 1);
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isnan(out[i]), i == 3) << w.matrix.name << " " << i;
    }
  }
}

TEST_P(EveryIsa, FlagsCodesThatAreNotFinite) {
  std::mt19937_64 random(4);
  for (const Scheme scheme : {Scheme::bf16, Scheme::f16, Scheme::e4m3_tensor, Scheme::mxfp8}) {
    const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 9, 200, random);
    OwnedMatrix w = random_matrix(scheme, Spread::tame, 20, 200, random);
    const std::size_t bytes = static_cast<std::size_t>(info(w.matrix.codes.format).bits) / 8;
    const std::uint16_t nan = bytes == 1 ? 0x7F : 0x7FC0;
    std::memcpy(w.codes.data() + (3 * 200 + 150) * bytes, &nan, bytes);
    std::vector<float> out(9 * 20);
    gemm(GemmInput(x.matrix, all_rows(x.matrix)), w.matrix, {}, out.data(), 20, 1);
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isnan(out[i]), i % 20 == 3) << w.matrix.name << " " << i;
    }
  }
}

TEST_P(EveryIsa, GivesTheBiasWhereThereAreNoColumns) {
  const float values[] = {5.0f, 6.0f};
  GemmEpilogue epilogue;
  epilogue.bias = f32_matrix("bias", values, 1, 2);
  const ScaledMatrix x = f32_matrix("x", values, 1, 0);
  std::vector<float> out(2);
  gemm(GemmInput(x, all_rows(x)), f32_matrix("w", values, 2, 0), epilogue, out.data(), 2, 1);
  EXPECT_EQ(out, (std::vector<float>{5.0f, 6.0f}));
}

TEST_P(EveryIsa, TakesRandomShapesOnAnyNumberOfThreads) {
  std::mt19937_64 random(11);
  for (int trial = 0; trial < 60; ++trial) {
    const auto pick = [&](std::int64_t most) {
      return 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most));
    };
    // One row and two have ways of their own.
    const std::int64_t rows = trial % 3 == 0 ? pick(3) : pick(40);
    const std::int64_t columns = pick(90);
    const std::int64_t depth = pick(trial % 4 == 0 ? 2300 : 300);
    const Scheme left = testing::kAllSchemes[random() % std::size(testing::kAllSchemes)];
    const Scheme right = trial % 2 == 0
                             ? (trial % 4 == 0 ? Scheme::mxfp4 : Scheme::nvfp4_divided)
                             : testing::kAllSchemes[random() % std::size(testing::kAllSchemes)];
    const Spread spread = random() % 2 == 0 ? Spread::tame : Spread::wide;
    const OwnedMatrix x = random_matrix(left, spread, rows, depth, random);
    const OwnedMatrix w = random_matrix(right, Spread::tame, columns, depth, random);
    SCOPED_TRACE(trial);
    constexpr int kThreads[] = {1, 2, 7};
    expect_exact(x.matrix, w.matrix, kThreads[trial % 3]);
    if (HasFatalFailure()) return;
  }
}

TEST_P(EveryIsa, SumsByF64WhereWholeNumbersLeaveManyBlocksOut) {
  std::mt19937_64 random(12);
  for (const std::int64_t rows : {1, 5, 20}) {
    for (const int many : {1, 3, 100}) {  // of 100 blocks
      std::vector<float> x(static_cast<std::size_t>(rows) * 3200, 1.0f);
      for (std::size_t block = 0; block < x.size() / 32; ++block) {
        if (static_cast<int>(random() % 100) < many)
          x[32 * block + random() % 32] = 0x1.000002p-45f;
      }
      const OwnedMatrix w = random_matrix(Scheme::mxfp4, Spread::tame, 21, 3200, random);
      expect_exact(f32_matrix("x", x.data(), rows, 3200), w.matrix);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryIsa, EstimatesKnowWhatAChainOfAdditionsLoses) {
  // In f64 every small term is lost: less than half an ulp each, together enough to pass the middle
  // between two f32 numbers.
  constexpr std::int64_t kRows = 8;
  constexpr std::int64_t kCols = 128;
  std::vector<float> x(kRows * kCols, 0x1.ffcp-54f);
  const std::vector<std::uint16_t> ones(16 * kCols, bf16(1.0f));
  for (std::int64_t row = 0; row < kRows; ++row) {
    float* values = x.data() + row * kCols;
    values[0] = 1.0f;
    values[1] = 0x1p-24f;   // the middle
    values[2] = -0x1p-48f;  // 32 halves of an ulp below it
  }
  ScaledMatrix w = f32_matrix("w", nullptr, 16, kCols);
  w.codes.data = reinterpret_cast<const std::byte*>(ones.data());
  w.codes.format = Format::bf16;
  expect_exact(f32_matrix("x", x.data(), kRows, kCols), w);
}

TEST_P(EveryIsa, TakesChosenRowsOfThosePreparedOnce) {
  std::mt19937_64 random(13);
  for (const Scheme scheme : {Scheme::mxfp4, Scheme::nvfp4_multiplied, Scheme::e4m3_block128}) {
    const OwnedMatrix x = random_matrix(Scheme::bf16, Spread::tame, 12, 300, random);
    const OwnedMatrix w = random_matrix(scheme, Spread::tame, 33, 300, random);
    const auto prepared =
        std::make_shared<const PreparedRows>(x.matrix, all_rows(x.matrix), /*threads=*/2);
    std::vector<float> whole(12 * 33);
    gemm(GemmInput(x.matrix, all_rows(x.matrix)), w.matrix, {}, whole.data(), 33, 1);
    for (const std::vector<std::int64_t>& chosen :
         {std::vector<std::int64_t>{7}, {11, 0, 0}, {3, 2, 1, 0, 4, 5, 6, 7, 8, 9, 10, 3}}) {
      std::vector<float> some(chosen.size() * 33);
      gemm(GemmInput(prepared, chosen), w.matrix, {}, some.data(), 33, 1);
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        for (std::size_t n = 0; n < 33; ++n) {
          EXPECT_EQ(some[i * 33 + n], whole[static_cast<std::size_t>(chosen[i]) * 33 + n]);
        }
      }
    }
  }
}

TEST_P(EveryIsa, KnowsProductsThatAreNoDoubleAnyMore) {
  // 2^-1192 decides which way the middle between two bf16 numbers goes.
  const float tiny = 0x1p-149f;
  ScaledMatrix x = f32_matrix("x", &tiny, 1, 1);
  x.scales = ScaleGrid{reinterpret_cast<const std::byte*>(&tiny), Format::f32, 1, 1, 0, 0, 1, 1};
  x.global_rule = GlobalScaleRule::multiply;
  x.global_scale = tiny;
  const float residual = 1.0f + 0x1p-8f;
  GemmEpilogue epilogue;
  epilogue.factor = tiny;
  epilogue.row_scales = {&tiny, 1};
  epilogue.residual = &residual;
  epilogue.residual_stride = 1;
  epilogue.output = Format::bf16;
  float out = 0.0f;
  gemm(GemmInput(x, all_rows(x)), x, epilogue, &out, 1, 1);
  EXPECT_EQ(out, 1.0f + 0x1p-7f);
}

TEST_P(EveryIsa, ReadsNoScalesWhereThereAreNoColumns) {
  // Storage that ends where it begins, for sanitizers.
  const std::vector<float> storage(4);
  const float* end = storage.data() + storage.size();
  for (const Format format : {Format::e2m1, Format::e4m3}) {
    ScaledMatrix w = f32_matrix("w", end, 2, 0);
    w.codes.format = format;
    w.scales = ScaleGrid{reinterpret_cast<const std::byte*>(end), Format::e8m0, 1, 32, 0, 0, 0, 1};
    const ScaledMatrix x = f32_matrix("x", end, 3, 0);
    std::vector<float> out(6, -7.0f);
    gemm(GemmInput(x, all_rows(x)), w, {}, out.data(), 2, 1);
    EXPECT_EQ(out, std::vector<float>(6, 0.0f));
  }
}

}  // namespace
}  // namespace moeref
