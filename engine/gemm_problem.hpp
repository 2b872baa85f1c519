#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/gemm.hpp"
#include "engine/operand.hpp"
#include "simd/kernels.hpp"

// What a GEMM knows before it reads a weight.

namespace moeref {

/// Scales of the columns of a panel that has none.
inline constexpr std::array<double, simd::kPanelColumns> kNoScales = [] {
  std::array<double, simd::kPanelColumns> ones{};
  ones.fill(1.0);
  return ones;
}();

/// The scalar factors of an output behind its sum.
struct Tail {
  double factor = 1.0;  ///< 48 bits: exact
  double weight = 1.0;
  std::array<double, 4> multipliers{};  ///< these and the operands' global scales, but for ones
  std::size_t multiplier_count = 0;
  std::array<double, 2> divisors{};
  std::size_t divisor_count = 0;
  bool finite = true;
};

/// What the sum of a row over all segments spans, scales included.
struct RowReach {
  double total = 0.0;    ///< an upper bound of the sum of all |value * wide scale|
  int lowest = kNoBits;  ///< all of them are multiples of 2^lowest
  static constexpr int kNoBits = 4000;
};

/// Everything that stays the same over the panels of one GEMM.
struct GemmProblem {
  const GemmInput& x;
  const ScaledMatrix& weight;
  const GemmEpilogue& epilogue;
  const PreparedRows::Measured& measured;  ///< of x.prepared()
  const simd::KernelTable& kernels;
  std::vector<int> x_bits = {};        ///< [rows]: that the sum over any segment spans
  int most_bits = 0;                   ///< of all rows
  std::vector<RowReach> reaches = {};  ///< [rows]
  std::vector<Tail> tails = {};        ///< [rows]
  bool wide_weight_scales = false;
  /// [x.prepared().count()]: sums are those of whole numbers, where they are proved; or empty.
  std::span<const SlicedRow> sliced = {};
  std::span<const LinedRow> lined = {};  ///< likewise, where sums go along the weight rows
  /// A block of columns that has no slices, from the first column on.
  struct LeftOut {
    std::int64_t block;
    std::int64_t row;
  };
  std::vector<LeftOut> left_out = {};  ///< in the order of their blocks
  const PackedRows* packed = nullptr;  ///< where they are f64 sums

  std::int64_t segments() const { return std::ssize(measured.bounds) - 1; }
  std::int64_t start(std::int64_t s) const { return measured.bounds[static_cast<std::size_t>(s)]; }
  std::int64_t end(std::int64_t s) const {
    return measured.bounds[static_cast<std::size_t>(s + 1)];
  }
  std::int64_t depth() const { return weight.cols; }
  std::span<const Window> windows(std::int64_t row) const {
    return std::span(measured.windows).subspan(first(row), static_cast<std::size_t>(segments()));
  }
  const Window& window(std::int64_t row, std::int64_t s) const {
    return measured.windows[first(row) + static_cast<std::size_t>(s)];
  }
  double x_scale(std::int64_t row, std::int64_t s) const {
    return measured.scales[first(row) + static_cast<std::size_t>(s)];
  }

 private:
  std::size_t first(std::int64_t row) const {
    return static_cast<std::size_t>(x.chosen(row) * segments());
  }
};

/// The operands measured. Error: sizes that disagree, storage that cannot be.
GemmProblem describe_gemm(const GemmInput& x, const ScaledMatrix& weight,
                          const GemmEpilogue& epilogue, int threads);

/// The type that outputs are rounded to: f32, bf16 or f16.
simd::OutputType output_type(Format output);

/// Sums of short significands often lie on midpoints of the output type, where no estimate decides.
bool has_short_significands(const ScaledMatrix& matrix);

}  // namespace moeref
