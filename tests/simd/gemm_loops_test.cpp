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
#include "simd/kernels_scalar.hpp"
#include "tests/support/isas.hpp"

namespace moeref {
namespace {

using simd::kPanelColumns;

const simd::GemmKernels& scalar() { return *simd::find_kernels("scalar")->gemm; }

class GemmLoops : public ::testing::TestWithParam<std::string> {
 protected:
  const simd::GemmKernels& loops() const { return *simd::find_kernels(GetParam().c_str())->gemm; }
  /// The scalar ones are not in their table.
  const simd::SliceKernels& slices() const {
    const simd::SliceKernels* found = simd::find_kernels(GetParam().c_str())->slices;
    return found != nullptr ? *found : simd::scalar::slice_kernels;
  }
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

/// Slice `s` of a group; the ends of what it can be, too.
std::int8_t random_digit(std::size_t s, std::mt19937_64& random) {
  const int least = s == 2 ? -64 : -128;
  const int most = s == 2 ? 63 : 127;
  if (random() % 4 == 0) return static_cast<std::int8_t>(random() % 2 == 0 ? least : most);
  return static_cast<std::int8_t>(
      least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1)));
}

/// The blocks of a row as SliceRow has them.
struct SlicedBlocks {
  std::vector<std::uint8_t> counts;
  std::vector<std::uint8_t> blocks;
  std::vector<double> factors;
  std::vector<std::int8_t> digits;
  std::vector<std::int32_t> starts;

  SlicedBlocks(std::size_t count, std::size_t block_cols, std::mt19937_64& random)
      : counts(simd::kMostSlices) {
    // Those without slices are not among them.
    std::vector<std::size_t> slices(count);
    for (std::size_t& number : slices) number = random() % (simd::kMostSlices + 1);
    for (std::size_t number = 1; number <= simd::kMostSlices; ++number) {
      for (std::size_t b = 0; b < count; ++b) {
        if (slices[b] == number) add(b, number, block_cols, random);
      }
    }
  }

  void add(std::size_t block, std::size_t slices, std::size_t block_cols, std::mt19937_64& random) {
    ++counts[slices - 1];
    blocks.push_back(static_cast<std::uint8_t>(block));
    factors.push_back(std::ldexp(1.0, static_cast<int>(random() % 4)));
    for (std::size_t group = 0; group < simd::slice_groups(slices); ++group) {
      starts.push_back(0);
      for (std::size_t s = 0; s < simd::slices_of_group(slices, group); ++s) {
        for (std::size_t i = 0; i < block_cols; ++i) {
          digits.push_back(random_digit(s, random));
          starts.back() -= simd::kWeightOffset * digits.back() * (1 << (8 * s));
        }
      }
    }
  }

  /// 3 and what the blocks add to it, from what digits and codes mean; then 3, which stays.
  std::vector<double> sums(const simd::PanelCodes& codes, std::size_t steps,
                           const std::vector<double>& scales) const {
    std::vector<double> sums(kPanelColumns + 1, 3.0);
    const std::size_t cols = steps * simd::kSliceStep;
    std::size_t number = 0;
    const std::int8_t* digit = digits.data();
    for (std::size_t slices = 1; slices <= simd::kMostSlices; ++slices) {
      for (std::size_t n = 0; n < counts[slices - 1]; ++n, ++number, digit += slices * cols) {
        for (std::size_t j = 0; j < kPanelColumns; ++j) {
          std::int64_t total = 0;
          for (std::size_t i = 0; i < cols; ++i) {
            std::int64_t whole = 0;
            for (std::size_t s = slices; s-- > 0;) whole = whole * 256 + digit[s * cols + i];
            const std::size_t col = blocks[number] * cols +
                                    simd::slice_column(i / simd::kSliceStep, i % simd::kSliceStep);
            const float weight = decode(
                Format::e2m1, read_code(codes.columns[j], Format::e2m1, NibbleOrder::low_first,
                                        static_cast<std::int64_t>(col)));
            total += whole * static_cast<std::int64_t>(2.0f * weight);
          }
          sums[j] += static_cast<double>(total) * factors[number] *
                     scales[blocks[number] * kPanelColumns + j];
        }
      }
    }
    return sums;
  }

  simd::SliceRow row() const {
    return {counts.data(), blocks.data(), factors.data(), digits.data(), starts.data()};
  }
};

TEST_P(GemmLoops, SumWholeNumbers) {
  const simd::SliceKernels& kernels = slices();
  std::mt19937_64 random(6);
  constexpr std::size_t kBlocks = 6;
  for (const std::size_t steps : {4u, 8u}) {
    const std::size_t block_cols = steps * simd::kSliceStep;
    const std::size_t k = kBlocks * 8 * simd::kSliceStep;  // whole units of codes
    std::vector<std::vector<std::byte>> bytes(simd::kSlicePanels);
    std::vector<simd::PanelCodes> codes(simd::kSlicePanels);
    std::vector<std::vector<std::uint8_t>> weights(simd::kSlicePanels);
    std::vector<std::vector<double>> scales(simd::kSlicePanels);
    for (std::size_t p = 0; p < simd::kSlicePanels; ++p) {
      // Not a byte more than there are codes.
      bytes[p].resize(k / 2 * kPanelColumns + 1);
      for (std::byte& byte : bytes[p]) byte = static_cast<std::byte>(random());
      for (std::size_t j = 0; j < kPanelColumns; ++j) {
        codes[p].columns[j] = bytes[p].data() + 1 + j * k / 2;
      }
      weights[p].assign(k * kPanelColumns + 1, 77);
      kernels.decode(codes[p], k, weights[p].data());
      EXPECT_EQ(weights[p].back(), 77) << "written beyond the weights";
      scales[p].resize(kBlocks * kPanelColumns);
      for (double& scale : scales[p]) scale = std::ldexp(1.0, static_cast<int>(random() % 4));
    }
    for (std::size_t j = 0; j < kPanelColumns; ++j) {
      for (std::size_t step = 0; step < k / simd::kSliceStep; ++step) {
        for (std::size_t i = 0; i < simd::kSliceStep; ++i) {
          const float value = decode(
              Format::e2m1, read_code(codes[0].columns[j], Format::e2m1, NibbleOrder::low_first,
                                      static_cast<std::int64_t>(simd::slice_column(step, i))));
          ASSERT_EQ(weights[0][(step * kPanelColumns + j) * simd::kSliceStep + i], 2 * value + 12);
        }
      }
    }
    for (int trial = 0; trial < 50; ++trial) {
      const SlicedBlocks blocks(kBlocks, block_cols, random);
      std::vector<std::vector<double>> expected(simd::kSlicePanels);
      for (std::size_t p = 0; p < simd::kSlicePanels; ++p) {
        expected[p] = blocks.sums(codes[p], steps, scales[p]);
      }
      for (std::size_t count = 1; count <= simd::kSlicePanels; ++count) {
        std::vector<std::vector<double>> sums(count, std::vector<double>(kPanelColumns + 1, 3.0));
        std::vector<simd::SlicePanel> panels;
        for (std::size_t p = 0; p < count; ++p) {
          panels.push_back({weights[p].data(), scales[p].data(), sums[p].data()});
        }
        kernels.dot(blocks.row(), steps, panels.data(), count);
        for (std::size_t p = 0; p < count; ++p) {
          EXPECT_EQ(sums[p], expected[p]) << count << " panels, " << steps << " steps";
        }
      }
    }
  }
}

/// A row in chunks as LineChunk has them, and what it means.
struct LinedBlocks {
  std::vector<std::size_t> slices;  ///< of each chunk
  std::vector<std::vector<std::int8_t>> digits;
  std::vector<std::vector<double>> factors;
  std::vector<std::vector<std::int32_t>> starts;

  LinedBlocks(std::size_t cols, std::size_t block_cols, std::mt19937_64& random) {
    const std::size_t chunk_cols = simd::kLineBlocks * block_cols;
    for (std::size_t begin = 0; begin < cols; begin += chunk_cols) {
      // Few enough bits for sums over all columns in f64.
      const std::size_t most = 1 + random() % (cols > 600 ? 3 : 4);
      const std::size_t count = most > 3 ? simd::kMostSlices : most;
      slices.push_back(count);
      digits.emplace_back(count * chunk_cols);
      factors.emplace_back();
      starts.emplace_back(simd::slice_groups(count) * simd::kLineBlocks);
      for (std::size_t b = 0; b < simd::kLineBlocks; ++b) {
        factors.back().push_back(random() % 2 == 0 ? 1.0 : 2.0);
        std::size_t slice = 0;
        for (std::size_t group = 0; group < simd::slice_groups(count); ++group) {
          std::int32_t& start = starts.back()[group * simd::kLineBlocks + b];
          for (std::size_t s = 0; s < simd::slices_of_group(count, group); ++s, ++slice) {
            for (std::size_t i = 0; i < block_cols; ++i) {
              if (begin + b * block_cols + i >= cols) continue;  // zeros
              std::int8_t& digit =
                  digits.back()[slice * chunk_cols + simd::line_digit(b, i, block_cols)];
              digit = random_digit(s, random);
              start -= simd::kWeightOffset * digit * (1 << (8 * s));
            }
          }
        }
      }
    }
  }

  std::vector<simd::LineChunk> chunks() const {
    std::vector<simd::LineChunk> made;
    for (std::size_t c = 0; c < slices.size(); ++c) {
      made.push_back({slices[c], digits[c].data(), factors[c].data(), starts[c].data()});
    }
    return made;
  }

  /// The number in column `col`.
  double value(std::size_t col, std::size_t block_cols) const {
    const std::size_t chunk_cols = simd::kLineBlocks * block_cols;
    const std::size_t c = col / chunk_cols;
    const std::size_t b = col % chunk_cols / block_cols;
    std::int64_t whole = 0;
    for (std::size_t s = slices[c]; s-- > 0;) {
      whole = whole * 256 +
              digits[c][s * chunk_cols + simd::line_digit(b, col % block_cols, block_cols)];
    }
    return 2.0 * static_cast<double>(whole) * factors[c][b];
  }
};

TEST_P(GemmLoops, SumWholeNumbersAlongWeightRows) {
  const simd::KernelTable& table = *simd::find_kernels(GetParam().c_str());
  const simd::LineKernels& kernels =
      table.lines != nullptr ? *table.lines : simd::scalar::line_kernels;
  std::mt19937_64 random(16);
  for (const std::size_t block_cols : {16u, 32u}) {
    for (const Format scale : {Format::e8m0, Format::e4m3}) {
      for (int trial = 0; trial < 60; ++trial) {
        const std::size_t cols = 1 + random() % (trial % 4 == 0 ? 3000 : 600);
        const std::size_t blocks = (cols + block_cols - 1) / block_cols;
        const LinedBlocks row(cols, block_cols, random);
        // Each weight row in storage of its own: not a byte more than there are codes.
        std::vector<std::vector<std::byte>> codes(kPanelColumns);
        std::vector<std::vector<std::byte>> scales(kPanelColumns);
        std::vector<const std::byte*> code_rows;
        std::vector<const std::byte*> scale_rows;
        for (std::size_t j = 0; j < kPanelColumns; ++j) {
          codes[j].resize((cols + 1) / 2);
          for (std::byte& byte : codes[j]) byte = static_cast<std::byte>(random());
          scales[j].resize(blocks);
          for (std::byte& byte : scales[j]) {
            // 1 and 2; E4M3 has zero, too.
            byte = scale == Format::e8m0
                       ? static_cast<std::byte>(127 + random() % 2)
                       : static_cast<std::byte>(random() % 8 == 0 ? 0 : 0x38 + 8 * (random() % 2));
          }
          code_rows.push_back(codes[j].data());
          scale_rows.push_back(scales[j].data());
        }
        simd::LineWeights weights;
        weights.codes = code_rows.data();
        weights.scales = scale_rows.data();
        weights.scale_type = scale == Format::e8m0 ? simd::PanelCode::e8m0 : simd::PanelCode::e4m3;
        weights.cols = cols;
        weights.block_cols = block_cols;
        std::vector<double> sums(kPanelColumns + 1, 3.0);
        kernels.dot(row.chunks().data(), weights, sums.data());
        EXPECT_EQ(sums.back(), 3.0) << "written beyond the sums";
        for (std::size_t j = 0; j < kPanelColumns; ++j) {
          double expected = 0.0;  // exact: below 2^53
          for (std::size_t col = 0; col < cols; ++col) {
            const auto at = static_cast<std::int64_t>(col);
            const double weight = decode(
                Format::e2m1, read_code(codes[j].data(), Format::e2m1, NibbleOrder::low_first, at));
            const double factor =
                decode(scale, std::to_integer<std::uint32_t>(scales[j][col / block_cols]));
            expected += row.value(col, block_cols) * weight * factor;
          }
          EXPECT_EQ(sums[j], expected) << cols << " columns in blocks of " << block_cols;
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

/// Blocks that need every number of slices, and what they mean.
TEST_P(GemmLoops, CutNumbersIntoTheDigitsThatTheyAre) {
  const simd::SliceKernels& kernels = slices();
  std::mt19937_64 random(7);
  for (const std::size_t steps : {4u, 8u}) {
    const std::size_t cols = steps * simd::kSliceStep;
    for (int trial = 0; trial < 3000; ++trial) {
      const int bits = 1 + trial % 43;
      const int unit = static_cast<int>(random() % 600) - 300;
      std::vector<double> numbers(cols);
      for (double& number : numbers) {
        const auto whole = static_cast<std::int64_t>(random() >> (64 - bits));
        number = std::ldexp(static_cast<double>(random() % 2 == 0 ? whole : -whole), unit);
        if (random() % 8 == 0) number = random() % 2 == 0 ? 0.0 : -0.0;
      }
      std::vector<std::int8_t> digits(simd::kMostSlices * cols + 1, 99);
      std::int32_t starts[simd::slice_groups(simd::kMostSlices)];
      double factor = 0.0;
      const std::size_t slices = kernels.cut(numbers.data(), steps, digits.data(), starts, &factor);
      std::vector<std::int8_t> expected_digits(simd::kMostSlices * cols + 1, 99);
      std::int32_t expected_starts[simd::slice_groups(simd::kMostSlices)];
      double expected_factor = 0.0;
      ASSERT_EQ(slices,
                simd::scalar::slice_kernels.cut(numbers.data(), steps, expected_digits.data(),
                                                expected_starts, &expected_factor));
      if (slices == 0) {
        double largest = 0.0;
        double lowest = HUGE_VAL;
        for (const double number : numbers) {
          if (number == 0.0) continue;
          largest = std::max(largest, std::fabs(number));
          lowest = std::min(lowest, std::ldexp(1.0, std::countr_zero(static_cast<std::uint64_t>(
                                                        std::ldexp(std::fabs(number), -unit))) +
                                                        unit));
        }
        EXPECT_GE(largest, 0x1p38 * lowest);
        continue;
      }
      EXPECT_EQ(digits, expected_digits);
      EXPECT_EQ(factor, expected_factor);
      double largest = 0.0;
      for (std::size_t step = 0; step < steps; ++step) {
        for (std::size_t i = 0; i < simd::kSliceStep; ++i) {
          std::int64_t whole = 0;
          for (std::size_t s = slices; s-- > 0;) {
            whole = whole * 256 + digits[(s * steps + step) * simd::kSliceStep + i];
          }
          const double value = static_cast<double>(whole) * 2.0 * factor;
          ASSERT_EQ(value, numbers[simd::slice_column(step, i)]);
          largest = std::max(largest, std::fabs(static_cast<double>(whole)));
        }
      }
      EXPECT_LE(largest, simd::slice_reach(slices));
      EXPECT_GT(largest, slices == 1 ? -1.0 : simd::slice_reach(slices - 1));
      const std::int8_t* digit = digits.data();
      for (std::size_t group = 0; group < simd::slice_groups(slices); ++group) {
        std::int64_t sum = 0;
        std::int64_t most = 0;  // of the products with weights of 6
        for (std::size_t i = 0; i < cols; ++i) {
          std::int64_t whole = 0;
          for (std::size_t s = simd::slices_of_group(slices, group); s-- > 0;) {
            whole = whole * 256 + digit[s * cols + i];
          }
          sum += whole;
          most += 12 * std::abs(whole);
        }
        EXPECT_EQ(starts[group], -simd::kWeightOffset * sum);
        EXPECT_EQ(starts[group], expected_starts[group]);
        EXPECT_LT(most, 1ll << 31);
        digit += simd::slices_of_group(slices, group) * cols;
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
