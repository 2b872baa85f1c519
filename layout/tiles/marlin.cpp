#include "layout/tiles/marlin.hpp"

#include <fmt/format.h>

#include <array>

#include "layout/recode/marlin_scales.hpp"
#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;

constexpr std::string_view kRepackSource =
    "vllm@04aa528e marlin_utils_test.py get_weight_perm, marlin_weights";
constexpr std::string_view kScaleSource = "vllm@007d5005 marlin_utils.py marlin_permute_scales";
constexpr std::string_view kFp4Source = "vllm@00d52e93 marlin_utils_fp4.py";

/// The order of the codes of each form: tile column, tile row, lane (row, then column), then the
/// lane's own words and the codes inside a word.
std::vector<Digit> repack_digits(int bits, bool eight_bit_activations) {
  if (eight_bit_activations) {
    const std::vector<Digit> tile{{col, 32},   {row, 32},    {row, 1, 8},
                                  {col, 4, 4}, {row, 16, 2}, {row, 8, 2}};
    const std::vector<Digit> lane = bits == 4 ? std::vector<Digit>{{col, 1, 4}, {col, 16, 2}}
                                              : std::vector<Digit>{{col, 16, 2}, {col, 1, 4}};
    std::vector<Digit> all = tile;
    all.insert(all.end(), lane.begin(), lane.end());
    return all;
  }
  const std::vector<Digit> tile{{col, 16}, {row, 64}, {row, 1, 8}, {col, 2, 4}, {row, 16, 4}};
  const std::vector<Digit> lane = bits == 4
                                      ? std::vector<Digit>{{col, 1, 2}, {row, 8, 2}, {col, 8, 2}}
                                      : std::vector<Digit>{{row, 8, 2}, {col, 1, 2}, {col, 8, 2}};
  std::vector<Digit> all = tile;
  all.insert(all.end(), lane.begin(), lane.end());
  return all;
}

Shape group_major_shape(const TileExtent& extent) {
  return {extent.experts, extent.cols, extent.rows};
}

Step repack_step(Parameters p, bool eight_bit_activations) {
  return Tile{marlin_repack(static_cast<int>(p[0]), eight_bit_activations)};
}

}  // namespace

TileLayout marlin_repack(int bits, bool eight_bit_activations) {
  const std::string name =
      fmt::format("marlin_repack{}({})", eight_bit_activations ? "_a8" : "", bits);
  if (bits != 4 && bits != 8) fail(name, "repacks codes of 4 or 8 bits, not of {}", bits);
  return {.name = name,
          .digits = repack_digits(bits, eight_bit_activations),
          .bits = {bits},
          .need_rows = eight_bit_activations ? 32 : 64,
          .need_cols = eight_bit_activations ? 32 : 16,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.cols / 16, extent.rows * 16 * extent.element_bits / 32};
          },
          .dtype = DType::i32};
}

PermuteRuns marlin_permute_groups() {
  PermuteRuns step{"marlin_permute_groups", std::vector<int>(64)};
  for (int i = 0; i < 64; ++i) step.source[static_cast<std::size_t>(i)] = i / 8 + i % 8 * 8;
  return step;
}

PermuteRuns marlin_permute_single() {
  constexpr std::array<int, 8> kLanes{0, 1, 8, 9, 16, 17, 24, 25};
  PermuteRuns step{"marlin_permute_single", std::vector<int>(32)};
  for (std::size_t i = 0; i < 32; ++i) {
    step.source[i] = 2 * static_cast<int>(i / 8) + kLanes[i % 8];
  }
  return step;
}

PermuteRuns marlin_scale_order(std::int64_t k, std::int64_t group, bool eight_bit_activations) {
  const bool group_wise = group > 0 && group < k && !eight_bit_activations;
  return group_wise ? marlin_permute_groups() : marlin_permute_single();
}

PermuteRuns marlin_swap_quads() { return {"marlin_swap_quads", {0, 2, 1, 3}}; }

TileLayout marlin_group_major() {
  return {.name = "marlin_group_major",
          .digits = {{col, 1}, {row, 1}},
          .bits = {8, 16, 32},
          .shape = group_major_shape};
}

TileLayout marlin_group_pairs() {
  return {.name = "marlin_group_pairs",
          .digits = {{col, 2}, {row, 8}, {col, 1, 2}, {row, 1, 8}},
          .bits = {8, 16, 32},
          .need_rows = 8,
          .need_cols = 2,
          .shape = group_major_shape};
}

TileLayout marlin_bias_row() {
  return {.name = "marlin_bias_row",
          .digits = {{row, 1}, {col, 1}},
          .bits = {16, 32},
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows * extent.cols};
          }};
}

std::span<const NamedStep> marlin() {
  static const std::array<NamedStep, 10> steps{{
      {"marlin_repack", "bits", StepKind::move, "codes of 4 or 8 bits as Marlin words, 16-bit x",
       kRepackSource, [](Parameters p) { return repack_step(p, false); }},
      {"marlin_repack_a8", "bits", StepKind::move, "codes of 4 or 8 bits as Marlin words, FP8 x",
       kRepackSource, [](Parameters p) { return repack_step(p, true); }},
      {"marlin_permute_groups", "", StepKind::move, "runs of 64 rows: group-wise Marlin scales",
       kScaleSource, [](Parameters) -> Step { return marlin_permute_groups(); }},
      {"marlin_permute_single", "", StepKind::move,
       "runs of 32 rows: Marlin biases, channel scales, scales beside FP8 x", kScaleSource,
       [](Parameters) -> Step { return marlin_permute_single(); }},
      {"marlin_swap_quads", "", StepKind::move, "0, 2, 1, 3 of every 4 rows: one-byte scales",
       kFp4Source, [](Parameters) -> Step { return marlin_swap_quads(); }},
      {"marlin_group_major", "", StepKind::move, "scales [n, groups] -> [groups, n]", kScaleSource,
       [](Parameters) -> Step { return Tile{marlin_group_major()}; }},
      {"marlin_group_pairs", "", StepKind::move,
       "the same, two groups alternating by 8 rows (kernels of 2025)",
       "vllm (2025 releases) marlin_utils_fp4.py nvfp4_marlin_process_scales",
       [](Parameters) -> Step { return Tile{marlin_group_pairs()}; }},
      {"marlin_bias_row", "", StepKind::move, "a bias column as one row per expert",
       "vllm@007d5005 marlin_utils.py marlin_permute_bias",
       [](Parameters) -> Step { return Tile{marlin_bias_row()}; }},
      {"marlin_s0e5m3", "factor", StepKind::recode,
       "E4M3 scales times 128 and a power of two as S0E5M3", kFp4Source,
       [](Parameters p) -> Step { return recode::marlin_s0e5m3(p[0]); }},
      {"marlin_e8m0_plus", "exponents", StepKind::recode,
       "E8M0 scales with a larger exponent (6 beside FP8 x)", kFp4Source,
       [](Parameters p) -> Step { return recode::marlin_e8m0_plus(p[0]); }},
  }};
  return steps;
}

}  // namespace moeref::tiles
