#include "tests/engine/mainloop_gemm.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "engine/accumulate/mainloop.hpp"
#include "quant/formats.hpp"

namespace moeref::testing {
namespace {

using judge::UnitCodes;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The scales of the chains of one row.
std::vector<float> scales_of(const StoredMatrix& matrix, std::int64_t row, std::int64_t length) {
  std::vector<float> scales;
  if (!matrix.view.scales) return scales;
  const ScaleGrid& grid = *matrix.view.scales;
  for (std::int64_t first = 0; first < matrix.view.cols; first += length) {
    const std::int64_t at = row / grid.block_rows * grid.row_stride + first / grid.block_cols;
    scales.push_back(matrix.scales[to_size(at)]);
  }
  return scales;
}

FusedDot table_unit(std::string_view arch, std::string_view name, Format a, Format b) {
  return std::get<FusedDot>(find_matrix_instruction(arch, name, a, b, Format::f32).unit);
}

std::vector<Form> make_forms() {
  using enum Format;
  FusedDot simulated;
  simulated.zeros = ZeroOperands::smallest_exponent;
  simulated.lowest_exponent = kNoLowestExponent;
  FusedDot wide_e8m13;
  wide_e8m13.output = StepOutput::e8m13_toward_zero;
  return {
      {"wgmma_bf16", table_unit("sm_90", "wgmma.k16", bf16, bf16), bf16, bf16},
      {"wgmma_f16", table_unit("sm_90", "wgmma.k16", f16, f16), f16, f16},
      {"wgmma_e4m3", table_unit("sm_90", "wgmma.k32", e4m3, e4m3), e4m3, e4m3},
      {"wgmma_e5m2_e4m3", table_unit("sm_90", "wgmma.k32", e5m2, e4m3), e5m2, e4m3},
      {"kw4_e4m3_in_f16", converted(f16, TermOrder::kw4), e4m3, e4m3},
      {"kw4_e4m3_in_bf16", converted(bf16, TermOrder::kw4), bf16, e4m3},
      {"kw8_e2m1_in_bf16", converted(bf16, TermOrder::kw8), e4m3, e2m1},
      {"e2m1_in_bf16", converted(bf16, TermOrder::natural), bf16, e2m1},
      {"tcgen05_e4m3", table_unit("sm_100", "tcgen05.f8f6f4", e4m3, e4m3), e4m3, e4m3},
      {"tcgen05_e5m2_e2m1", table_unit("sm_100", "tcgen05.f8f6f4", e5m2, e2m1), e5m2, e2m1},
      {"ampere_bf16", table_unit("sm_80", "mma.m16n8k16", bf16, bf16), bf16, bf16},
      {"ada_e4m3", table_unit("sm_89", "mma.m16n8k32", e4m3, e4m3), e4m3, e4m3},
      {"volta_f16", table_unit("sm_70", "mma.m8n8k4", f16, f16), f16, f16},
      {"zeros_take_part", simulated, bf16, bf16},
      {"e8m13_of_25_bits", wide_e8m13, bf16, bf16},
  };
}

}  // namespace

StoredMatrix store(const char* name, Format format, std::int64_t cols,
                   const std::vector<CodeRow>& rows) {
  StoredMatrix matrix;
  const int bits = info(format).bits;
  const std::size_t elements = rows.size() * to_size(cols);
  matrix.bytes.assign((elements * to_size(bits) + 7) / 8 + 1, std::byte{0});
  std::size_t at = 0;
  for (const CodeRow& row : rows) {
    matrix.rows.push_back({format, row});
    for (const std::uint32_t code : row) {
      if (bits == 4) {
        matrix.bytes[at / 2] |= static_cast<std::byte>(code << (at % 2 == 0 ? 0 : 4));
      }
      for (int byte = 0; byte < bits / 8; ++byte) {
        matrix.bytes[at * to_size(bits / 8) + to_size(byte)] =
            static_cast<std::byte>(code >> (8 * byte));
      }
      ++at;
    }
  }
  matrix.view.name = name;
  matrix.view.rows = static_cast<std::int64_t>(rows.size());
  matrix.view.cols = cols;
  matrix.view.codes = {matrix.bytes.data(), format, NibbleOrder::low_first, 0, cols, 1};
  // Left out of the sums.
  matrix.view.global_rule = GlobalScaleRule::multiply;
  matrix.view.global_scale = 3.0f;
  return matrix;
}

void add_scales(Scales kind, std::int64_t block_rows, std::int64_t block_cols, StoredMatrix& matrix,
                std::mt19937_64& random) {
  if (kind == Scales::none) return;
  const std::int64_t across = ceil_div(std::max<std::int64_t>(matrix.view.cols, 1), block_cols);
  const std::int64_t count = ceil_div(matrix.view.rows, block_rows) * across;
  constexpr float kWild[] = {0.0f,
                             -0.0f,
                             0x1p-126f,
                             0x1.8p-127f,
                             0x1p-149f,
                             0x1.fffffep-127f,
                             0x1p127f,
                             -0x1.234568p-70f,
                             std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN()};
  for (std::int64_t i = 0; i < count; ++i) {
    const bool wild = kind == Scales::wild && random() % 2 == 0;
    const auto fraction = static_cast<std::uint32_t>(random() & 0x7F'FFFFu);
    const auto field = static_cast<std::uint32_t>(122 + random() % 8);
    matrix.scales.push_back(wild ? kWild[random() % std::size(kWild)]
                                 : std::bit_cast<float>(field << 23 | fraction));
  }
  matrix.view.scales = ScaleGrid{.data = reinterpret_cast<const std::byte*>(matrix.scales.data()),
                                 .format = Format::f32,
                                 .block_rows = block_rows,
                                 .block_cols = block_cols,
                                 .row_stride = across,
                                 .col_stride = 1};
}

FusedDot converted(Format operand, TermOrder order) {
  FusedDot unit;
  unit.operand = operand;
  unit.order = order;
  return unit;
}

const std::vector<Form>& forms() {
  static const std::vector<Form> forms = make_forms();
  return forms;
}

std::int64_t chunk_of(const FusedDot& unit) {
  const int width = unit.order == TermOrder::kw8 ? 4 : unit.order == TermOrder::kw4 ? 2 : 1;
  return std::max(unit.k, unit.terms * width);
}

Gemm make_gemm(const Mainloop& mainloop, const Form& form, UnitInputs inputs, Scales scales,
               const GemmSize& size, std::mt19937_64& random) {
  Gemm gemm{mainloop, {}, {}, {}};
  const std::int64_t stored = std::max<std::int64_t>(size.rows, 1);
  const UnitTile tile = random_tile(inputs, form.left, form.right, to_size(stored),
                                    to_size(size.cols), to_size(size.k), random);
  gemm.x = store("x", form.left, size.k, tile.left);
  gemm.weight = store("w", form.right, size.k, tile.right);
  const std::int64_t length = mainloop.chain == 0 ? size.k : mainloop.chain;
  add_scales(scales, 1, length, gemm.x, random);
  // A block of the weight may be several chains wide.
  add_scales(scales, 5, length * static_cast<std::int64_t>(1 + random() % 2), gemm.weight, random);
  for (std::int64_t i = 0; i < size.rows; ++i) {
    gemm.rows.push_back(static_cast<std::int64_t>(random() % to_size(stored)));
  }
  return gemm;
}

std::vector<float> run(const Gemm& gemm, int threads) {
  const std::int64_t stride = gemm.weight.view.rows + 3;
  std::vector<float> acc(gemm.rows.size() * to_size(stride), kUntouched);
  accumulate::run_mainloop(gemm.mainloop,
                           accumulate::mainloop_input(gemm.mainloop, gemm.x.view, gemm.rows),
                           gemm.weight.view, acc.data(), stride, threads);
  return acc;
}

std::vector<std::uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

void expect_as_judged(const Gemm& gemm, const std::string& what) {
  const std::vector<float> made = run(gemm, 1);
  const std::int64_t cols = gemm.weight.view.rows;
  const std::int64_t length =
      gemm.mainloop.chain == 0 ? gemm.weight.view.cols : gemm.mainloop.chain;
  const bool scales_rows = gemm.mainloop.promotion == Promotion::fma_product ||
                           gemm.mainloop.promotion == Promotion::fma_row ||
                           gemm.mainloop.promotion == Promotion::fma_column;
  const bool scales_columns = scales_rows || gemm.mainloop.promotion == Promotion::column_groups;
  for (std::size_t i = 0; i < gemm.rows.size(); ++i) {
    const std::int64_t row = gemm.rows[i];
    const std::vector<float> as =
        scales_rows ? scales_of(gemm.x, row, length) : std::vector<float>{};
    for (std::int64_t j = 0; j < cols + 3; ++j) {
      const float element = made[i * to_size(cols + 3) + to_size(j)];
      if (j >= cols) {
        ASSERT_EQ(element, kUntouched) << what;
        continue;
      }
      const std::vector<float> bs =
          scales_columns ? scales_of(gemm.weight, j, length) : std::vector<float>{};
      const std::uint32_t judged = judge::judge_mainloop(gemm.mainloop, gemm.x.rows[to_size(row)],
                                                         gemm.weight.rows[to_size(j)], as, bs);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(element), judged)
          << fmt::format("{}: row {} of x ({} of {}), column {}: made {:a}, judged {:a}", what, row,
                         i, gemm.rows.size(), j, element, std::bit_cast<float>(judged));
    }
  }
  // Threads share the panels of 16 columns.
  if (cols <= 16) return;
  ASSERT_EQ(bits_of(run(gemm, 3)), bits_of(made)) << what << ", 3 threads";
}

}  // namespace moeref::testing
