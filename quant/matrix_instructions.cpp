#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/matrix_unit.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

using Formats = std::vector<Format>;

const Formats kF16{Format::f16};
const Formats kBf16{Format::bf16};
const Formats kTf32{Format::f32};
const Formats kHalf{Format::f16, Format::bf16};
const Formats kFp8{Format::e4m3, Format::e5m2};
const Formats kFp8Fp4{Format::e4m3, Format::e5m2, Format::e2m1};
const Formats kFp4{Format::e2m1};

/// The same step with an f16 accumulator.
FusedDot in_f16(FusedDot unit) {
  unit.output = StepOutput::f16_nearest;
  return unit;
}

FusedDot fused(int k, int terms, int fraction_bits) {
  FusedDot unit;
  unit.k = k;
  unit.terms = terms;
  unit.fraction_bits = fraction_bits;
  return unit;
}

/// FP8 steps that keep 13 fraction bits.
FusedDot narrow(int k, int terms) {
  FusedDot unit = fused(k, terms, 13);
  unit.output = StepOutput::e8m13_toward_zero;
  return unit;
}

/// FP8 mma.sync where there is no such unit: two f16 steps, then c is added.
FusedDot by_f16(int k) {
  FusedDot unit = fused(k, k / 2, 25);
  unit.operand = Format::f16;
  unit.order = TermOrder::kw4;
  unit.accumulator = AccumulatorPoint::added_after;
  return unit;
}

FusedDot block_scaled(int k) {
  FusedDot unit = fused(k, k, 25);
  unit.block_scales = true;
  return unit;
}

ScaledGroupDot scaled_groups(int block, Format scale) {
  ScaledGroupDot unit;
  unit.block = block;
  unit.scale = scale;
  return unit;
}

class Table {
 public:
  explicit Table(std::vector<MatrixInstruction>& rows) : rows_(rows) {}

  Table& of(std::string_view arch) {
    arch_ = arch;
    return *this;
  }
  Table& add(std::string_view name, const Formats& operands, MatrixUnit unit, UnitEvidence evidence,
             Format accumulator = Format::f32) {
    rows_.push_back({arch_, name, operands, operands.size() > 1 && mixes(operands), accumulator,
                     unit, evidence});
    return *this;
  }
  /// With f32 and with f16 accumulator.
  Table& add_both(std::string_view name, const Formats& operands, const FusedDot& unit,
                  UnitEvidence evidence) {
    add(name, operands, unit, evidence);
    return add(name, operands, in_f16(unit), evidence, Format::f16);
  }

 private:
  /// 16-bit operands are of one type, narrower ones may be of two.
  static bool mixes(const Formats& operands) { return info(operands.front()).bits <= 8; }

  std::vector<MatrixInstruction>& rows_;
  std::string_view arch_;
};

/// mma.sync of Ampere: K is cut into groups of 8.
void add_ampere(Table& table) {
  using enum UnitEvidence;
  table.add_both("mma.m16n8k16", kF16, fused(16, 8, 24), simulator)
      .add("mma.m16n8k16", kBf16, fused(16, 8, 24), simulator)
      .add_both("mma.m16n8k8", kF16, fused(8, 8, 24), simulator)
      .add("mma.m16n8k8", kBf16, fused(8, 8, 24), simulator)
      .add("mma.m16n8k8", kTf32, fused(8, 4, 24), literature)
      .add("mma.m16n8k4", kTf32, fused(4, 4, 24), literature);
}

/// mma.sync of 16 bits and TF32 since Hopper: one step.
void add_one_step(Table& table, UnitEvidence evidence) {
  table.add_both("mma.m16n8k16", kF16, fused(16, 16, 25), evidence)
      .add("mma.m16n8k16", kBf16, fused(16, 16, 25), evidence)
      .add_both("mma.m16n8k8", kF16, fused(8, 8, 25), evidence)
      .add("mma.m16n8k8", kBf16, fused(8, 8, 25), evidence)
      .add("mma.m16n8k8", kTf32, fused(8, 8, 25), evidence)
      .add("mma.m16n8k4", kTf32, fused(4, 4, 25), evidence);
}

void add_block_scaled(Table& table, std::string_view mxf8f6f4, std::string_view mxf4,
                      std::string_view block16_ue4m3, std::string_view block16_e8m0) {
  using enum UnitEvidence;
  table.add(mxf8f6f4, kFp8, block_scaled(32), simulator)
      .add(mxf8f6f4, kFp8Fp4, block_scaled(32), literature)
      .add(mxf4, kFp4, scaled_groups(32, Format::e8m0), simulator)
      .add(block16_ue4m3, kFp4, scaled_groups(16, Format::ue4m3), simulator)
      .add(block16_e8m0, kFp4, scaled_groups(16, Format::e8m0), simulator);
}

std::vector<MatrixInstruction> list() {
  using enum UnitEvidence;
  std::vector<MatrixInstruction> rows;
  Table table(rows);
  table.of("sm_70").add_both("mma.m8n8k4", kF16, fused(4, 4, 23), literature);
  table.of("sm_75").add_both("mma.m16n8k8", kF16, fused(8, 8, 24), literature);
  add_ampere(table.of("sm_80"));
  add_ampere(table.of("sm_86"));
  add_ampere(table.of("sm_89"));
  table.add("mma.m16n8k32", kFp8, narrow(32, 16), simulator)
      .add("mma.m16n8k32", kFp8, in_f16(narrow(32, 16)), literature, Format::f16)
      .add("mma.m16n8k16", kFp8, narrow(16, 16), literature)
      .add("mma.m16n8k16", kFp8, in_f16(narrow(16, 16)), literature, Format::f16);
  add_one_step(table.of("sm_90"), hardware);
  table.add_both("mma.m16n8k32", kFp8, by_f16(32), hardware)
      .add_both("mma.m16n8k16", kFp8, by_f16(16), hardware)
      .add_both("wgmma.k16", kF16, fused(16, 16, 25), hardware)
      .add("wgmma.k16", kBf16, fused(16, 16, 25), hardware)
      .add("wgmma.k8", kTf32, fused(8, 8, 25), hardware)
      .add("wgmma.k32", kFp8, narrow(32, 32), hardware)
      .add("wgmma.k32", kFp8, in_f16(narrow(32, 32)), hardware, Format::f16);
  add_one_step(table.of("sm_100"), literature);
  table.add("tcgen05.f16", kHalf, fused(16, 16, 25), simulator)
      .add("tcgen05.f16", kF16, in_f16(fused(16, 16, 25)), literature, Format::f16)
      .add("tcgen05.tf32", kTf32, fused(8, 8, 25), literature)
      .add("tcgen05.f8f6f4", kFp8, fused(32, 32, 25), simulator)
      .add("tcgen05.f8f6f4", kFp8Fp4, fused(32, 32, 25), literature)
      .add("tcgen05.f8f6f4", kFp8Fp4, in_f16(fused(32, 32, 25)), literature, Format::f16);
  add_block_scaled(table, "tcgen05.mxf8f6f4", "tcgen05.mxf4", "tcgen05.mxf4nvf4",
                   "tcgen05.mxf4nvf4.e8m0");
  table.of("sm_120")
      .add_both("mma.m16n8k16", kF16, fused(16, 16, 25), literature)
      .add("mma.m16n8k16", kBf16, fused(16, 16, 25), literature)
      .add("mma.m16n8k8", kTf32, fused(8, 8, 25), literature);
  table.add_both("mma.m16n8k32", kFp8Fp4, fused(32, 32, 25), literature)
      .add_both("mma.m16n8k16", kFp8Fp4, fused(16, 16, 25), literature);
  add_block_scaled(table, "mma.mxf8f6f4", "mma.mxf4", "mma.mxf4nvf4", "mma.mxf4nvf4.e8m0");
  const Formats fp8_fnuz{Format::e4m3fnuz, Format::e5m2fnuz};
  table.of("gfx942")
      .add("mfma.16x16x16", kHalf, MfmaDot{.k = 16, .terms = 8}, simulator)
      .add("mfma.32x32x8", kHalf, MfmaDot{.k = 8, .terms = 8}, simulator)
      .add("mfma.16x16x4", kHalf, MfmaDot{.k = 4, .terms = 4}, literature)
      .add("mfma.32x32x4", kHalf, MfmaDot{.k = 4, .terms = 4}, literature)
      .add("mfma.16x16x8.xf32", kTf32, MfmaDot{.k = 8, .terms = 4}, literature)
      .add("mfma.32x32x4.xf32", kTf32, MfmaDot{.k = 4, .terms = 4}, literature)
      .add("mfma.16x16x32", fp8_fnuz, MfmaDot{.k = 32, .terms = 16, .splits_even_odd = true},
           simulator)
      .add("mfma.32x32x16", fp8_fnuz, MfmaDot{.k = 16, .terms = 16, .splits_even_odd = true},
           simulator)
      .add("mfma.16x16x4.f32", kTf32, FmaChain{4}, literature)
      .add("mfma.32x32x2.f32", kTf32, FmaChain{2}, literature);
  return rows;
}

/// What is asked for now and then and has no model.
struct Gap {
  std::string_view arch;
  std::string_view reason;
};
constexpr std::array kGaps{
    Gap{"gfx950", "no bit-accurate model of CDNA4's matrix unit is known"},
    Gap{"gfx908", "CDNA1 serves no backend here"},
    Gap{"gfx90a", "CDNA2 serves no backend here"},
};

std::string join_names(std::span<const MatrixInstruction> rows, std::string_view arch) {
  std::vector<std::string_view> names;
  for (const MatrixInstruction& row : rows) {
    if (row.arch == arch && (names.empty() || names.back() != row.name)) names.push_back(row.name);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return fmt::format("{}", fmt::join(names, ", "));
}

bool takes(const MatrixInstruction& row, Format a, Format b) {
  const auto has = [&row](Format format) {
    return std::find(row.operands.begin(), row.operands.end(), format) != row.operands.end();
  };
  return has(a) && has(b) && (a == b || row.mixes);
}

}  // namespace

std::string_view name(UnitEvidence evidence) {
  switch (evidence) {
    case UnitEvidence::hardware:
      return "hardware";
    case UnitEvidence::simulator:
      return "simulator";
    case UnitEvidence::literature:
      break;
  }
  return "literature";
}

std::span<const MatrixInstruction> all_matrix_instructions() {
  static const std::vector<MatrixInstruction> rows = list();
  return rows;
}

const MatrixInstruction& find_matrix_instruction(std::string_view arch, std::string_view name,
                                                 Format a, Format b, Format accumulator) {
  for (const Gap& gap : kGaps) {
    if (gap.arch == arch) fail(arch, "cannot be replayed: {}", gap.reason);
  }
  const auto rows = all_matrix_instructions();
  bool known_arch = false;
  bool known_name = false;
  for (const MatrixInstruction& row : rows) {
    known_arch |= row.arch == arch;
    if (row.arch != arch || row.name != name) continue;
    known_name = true;
    if (row.accumulator == accumulator && takes(row, a, b)) return row;
  }
  if (!known_arch) {
    std::vector<std::string_view> archs;
    for (const MatrixInstruction& row : rows) {
      if (archs.empty() || archs.back() != row.arch) archs.push_back(row.arch);
    }
    fail(arch, "has no matrix unit that is known; known: {}", fmt::join(archs, ", "));
  }
  if (!known_name) {
    fail(name, "is no instruction of {} that is known (sparse and .ws forms are not); known: {}",
         arch, join_names(rows, arch));
  }
  fail(name, "of {} does not multiply {} by {} into {}", arch, moeref::name(a), moeref::name(b),
       moeref::name(accumulator));
}

}  // namespace moeref
