#include "engine/bounds/staged.hpp"

#include <vector>

#include "engine/bounds/functions.hpp"

namespace moeref::bounds {
namespace {

template <typename Change>
void change_each(BoundedMatrix& matrix, const Change& change) {
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t col = 0; col < matrix.cols; ++col) {
      matrix.set(row, col, change(matrix.at(row, col), row, col));
    }
  }
}

double of_column(std::span<const double> values, std::int64_t col) {
  return values.size() == 1 ? values[0] : values[static_cast<std::size_t>(col)];
}

/// What becomes of the gate before it meets up.
Bounded gate_part(const Arithmetic& arithmetic, const StageActivation& activation,
                  const Bounded& gate) {
  switch (activation.function) {
    case StageFunction::identity:
      return gate;
    case StageFunction::silu:
      return swish(arithmetic, gate, exact(1.0));
    case StageFunction::gelu:
      return gelu_erf(arithmetic, gate);
    case StageFunction::swiglu:
      return swish(arithmetic, gate, activation.alpha);
    case StageFunction::situ:
      return tanh_glu(arithmetic, gate, activation.beta);
  }
  return {};
}

Bounded up_part(const Arithmetic& arithmetic, const StageActivation& activation,
                const Bounded& up) {
  if (activation.function == StageFunction::swiglu) return add(arithmetic, up, exact(1.0));
  if (activation.function == StageFunction::situ)
    return scaled_tanh(arithmetic, up, activation.linear_beta);
  return up;
}

}  // namespace

BoundedMatrix by_expert(const BoundedMatrix& input, std::span<const std::int64_t> experts,
                        std::int64_t cols, const ExpertRun& run) {
  std::vector<std::vector<std::int64_t>> slots;  // of every expert
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    if (experts[slot] < 0) continue;
    const auto expert = static_cast<std::size_t>(experts[slot]);
    if (expert >= slots.size()) slots.resize(expert + 1);
    slots[expert].push_back(static_cast<std::int64_t>(slot));
  }
  BoundedMatrix output(input.rows, cols);
  for (std::size_t expert = 0; expert < slots.size(); ++expert) {
    const std::vector<std::int64_t>& mine = slots[expert];
    if (mine.empty()) continue;
    const BoundedMatrix result =
        run(gather_rows(input, mine), mine, static_cast<std::int64_t>(expert));
    for (std::size_t i = 0; i < mine.size(); ++i) {
      for (std::int64_t col = 0; col < cols; ++col) {
        output.set(mine[i], col, result.at(static_cast<std::int64_t>(i), col));
      }
    }
  }
  return output;
}

BoundedMatrix repeat_rows(const BoundedMatrix& matrix, std::int64_t times) {
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < matrix.rows * times; ++row) rows.push_back(row / times);
  return gather_rows(matrix, rows);
}

BoundedMatrix scale_rows(const Arithmetic& arithmetic, BoundedMatrix matrix,
                         std::span<const double> factors) {
  change_each(matrix, [&](const Bounded& x, std::int64_t row, std::int64_t) {
    return scale(arithmetic, x, factors[static_cast<std::size_t>(row)]);
  });
  return matrix;
}

BoundedMatrix scale_cols(const Arithmetic& arithmetic, BoundedMatrix matrix,
                         std::span<const double> factors) {
  change_each(matrix, [&](const Bounded& x, std::int64_t, std::int64_t col) {
    return scale(arithmetic, x, of_column(factors, col));
  });
  return matrix;
}

BoundedMatrix add_to_rows(const Arithmetic& arithmetic, BoundedMatrix matrix,
                          std::span<const double> terms) {
  change_each(matrix, [&](const Bounded& x, std::int64_t, std::int64_t col) {
    return add(arithmetic, x, exact(of_column(terms, col)));
  });
  return matrix;
}

BoundedMatrix sum_slots(const Arithmetic& arithmetic, const BoundedMatrix& matrix,
                        std::int64_t top_k) {
  BoundedMatrix sums(matrix.rows / top_k, matrix.cols);
  std::vector<Bounded> terms(static_cast<std::size_t>(top_k));
  for (std::int64_t token = 0; token < sums.rows; ++token) {
    for (std::int64_t col = 0; col < sums.cols; ++col) {
      for (std::int64_t slot = 0; slot < top_k; ++slot) {
        terms[static_cast<std::size_t>(slot)] = matrix.at(token * top_k + slot, col);
      }
      sums.set(token, col, sum(arithmetic, terms));
    }
  }
  return sums;
}

BoundedMatrix activate_halves(const Arithmetic& arithmetic, const StageActivation& activation,
                              const BoundedMatrix& matrix) {
  BoundedMatrix activated(matrix.rows, matrix.cols / 2);
  change_each(activated, [&](const Bounded&, std::int64_t row, std::int64_t col) {
    Bounded gate = matrix.at(row, col);
    Bounded up = matrix.at(row, activated.cols + col);
    if (activation.limit) {
      gate = at_most(gate, *activation.limit);
      up = at_most(at_least(up, negate(*activation.limit)), *activation.limit);
    }
    return multiply(arithmetic, gate_part(arithmetic, activation, gate),
                    up_part(arithmetic, activation, up));
  });
  return activated;
}

BoundedMatrix activate_each(const Arithmetic& arithmetic, const StageActivation& activation,
                            const BoundedMatrix& matrix) {
  BoundedMatrix activated = matrix;
  change_each(activated, [&](const Bounded& x, std::int64_t, std::int64_t) {
    return gate_part(arithmetic, activation, x);
  });
  return activated;
}

}  // namespace moeref::bounds
