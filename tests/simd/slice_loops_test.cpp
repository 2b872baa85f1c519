// The loops of sums of whole numbers: what they say, on every instruction set.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"
#include "simd/kernels.hpp"
#include "simd/kernels_scalar.hpp"
#include "tests/support/isas.hpp"

namespace moeref {
namespace {

using simd::kPanelColumns;

/// The scalar loops are not in their table.
class SliceLoops : public ::testing::TestWithParam<std::string> {
 protected:
  const simd::SliceKernels& slices() const {
    const simd::SliceKernels* found = simd::find_kernels(GetParam().c_str())->slices;
    return found != nullptr ? *found : simd::scalar::slice_kernels;
  }
  const simd::LineKernels& lines() const {
    const simd::LineKernels* found = simd::find_kernels(GetParam().c_str())->lines;
    return found != nullptr ? *found : simd::scalar::line_kernels;
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, SliceLoops, ::testing::ValuesIn(moeref::testing::isas()),
                         [](const auto& isa) { return isa.param; });

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

TEST_P(SliceLoops, SumWholeNumbers) {
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

TEST_P(SliceLoops, SumWholeNumbersAlongWeightRows) {
  const simd::LineKernels& kernels = lines();
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

/// Blocks that need every number of slices, and what they mean.
TEST_P(SliceLoops, CutNumbersIntoTheDigitsThatTheyAre) {
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
      EXPECT_LE(largest, simd::kSliceReach[slices - 1]);
      EXPECT_GT(largest, slices == 1 ? -1.0 : simd::kSliceReach[slices - 2]);
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

}  // namespace
}  // namespace moeref
