#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/gemm.hpp"
#include "engine/operand.hpp"
#include "simd/kernels.hpp"

// What a GEMM knows before it reads a weight.

namespace moeref {

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

/// Everything that stays the same over the panels of one GEMM.
struct GemmProblem {
  const GemmInput& x;
  const ScaledMatrix& weight;
  const GemmEpilogue& epilogue;
  std::vector<std::int64_t> bounds;    ///< columns where segments begin, then K
  std::vector<Window> x_windows = {};  ///< [rows, segments]
  std::vector<double> x_scales = {};   ///< [rows, segments]: the wide scales
  std::vector<int> x_bits = {};        ///< [rows]: that the sum over any segment spans
  int most_bits = 0;                   ///< of all rows
  std::vector<Tail> tails = {};        ///< [rows]
  const simd::KernelTable& kernels;
  bool wide_weight_scales = false;
  const SlicedRows* sliced = nullptr;  ///< sums are those of whole numbers, where they are proved

  std::int64_t segments() const { return std::ssize(bounds) - 1; }
  std::int64_t start(std::int64_t s) const { return bounds[static_cast<std::size_t>(s)]; }
  std::int64_t end(std::int64_t s) const { return bounds[static_cast<std::size_t>(s + 1)]; }
  std::int64_t depth() const { return weight.cols; }
  const Window& window(std::int64_t row, std::int64_t s) const {
    return x_windows[static_cast<std::size_t>(row * segments() + s)];
  }
  double x_scale(std::int64_t row, std::int64_t s) const {
    return x_scales[static_cast<std::size_t>(row * segments() + s)];
  }
};

/// The operands measured. Error: sizes that disagree, storage that cannot be.
GemmProblem describe_gemm(const GemmInput& x, const ScaledMatrix& weight,
                          const GemmEpilogue& epilogue);

/// Sums of short significands often lie on midpoints of the output type, where no estimate decides.
bool has_short_significands(const ScaledMatrix& matrix);

}  // namespace moeref
