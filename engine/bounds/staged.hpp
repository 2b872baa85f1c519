#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "engine/bounds/dense.hpp"

namespace moeref::bounds {

// MoE forwards that go stage by stage over all slots, as references in PyTorch are written: a row
// of a matrix is one (token, slot) pair, and every line of the reference is one rounded operation.

/// Rows of one expert to rows of its result.
using ExpertRun = std::function<BoundedMatrix(
    const BoundedMatrix& rows, std::span<const std::int64_t> slots, std::int64_t expert)>;

/// Every row through its expert: [input.rows, cols]. `experts`: of each row; -1 = none, such rows
/// are exact zeros.
BoundedMatrix by_expert(const BoundedMatrix& input, std::span<const std::int64_t> experts,
                        std::int64_t cols, const ExpertRun& run);

/// Each row `times` times: row r of the result is row r / times.
BoundedMatrix repeat_rows(const BoundedMatrix& matrix, std::int64_t times);

/// x[r, c] * factors[r], and x[r, c] * factors[c] (or one factor for all columns).
BoundedMatrix scale_rows(const Arithmetic& arithmetic, BoundedMatrix matrix,
                         std::span<const double> factors);
BoundedMatrix scale_cols(const Arithmetic& arithmetic, BoundedMatrix matrix,
                         std::span<const double> factors);
/// x[r, c] + terms[c] (or one term for all columns).
BoundedMatrix add_to_rows(const Arithmetic& arithmetic, BoundedMatrix matrix,
                          std::span<const double> terms);

/// Sums of `top_k` rows each: [rows / top_k, cols].
BoundedMatrix sum_slots(const Arithmetic& arithmetic, const BoundedMatrix& matrix,
                        std::int64_t top_k);

/// What a stage applies to its pre-activation. g, u: the halves of a gated row.
enum class StageFunction : std::uint8_t {
  identity,  ///< g * u
  silu,      ///< g * sigmoid(g) * u
  gelu,      ///< g * (1 + erf(g / sqrt(2))) / 2 * u
  swiglu,    ///< g * sigmoid(alpha * g) * (u + 1)
  situ,      ///< beta * tanh(g / beta) * sigmoid(g) * (linear_beta * tanh(u / linear_beta))
};

struct StageActivation {
  StageFunction function = StageFunction::silu;
  std::optional<Bounded> limit;  ///< L: g = min(g, L), u = min(max(u, -L), L) first
  Bounded alpha = exact(1.0);
  Bounded beta = exact(1.0);  ///< both finite and not 0
  Bounded linear_beta = exact(1.0);
};

/// The first half of each row is the gate, the second is up: [rows, cols / 2].
BoundedMatrix activate_halves(const Arithmetic& arithmetic, const StageActivation& activation,
                              const BoundedMatrix& matrix);
/// The function of the gate alone, without the limit, on every element.
BoundedMatrix activate_each(const Arithmetic& arithmetic, const StageActivation& activation,
                            const BoundedMatrix& matrix);

}  // namespace moeref::bounds
