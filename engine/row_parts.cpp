#include "engine/row_parts.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace moeref {
namespace {

// Each part takes room - log2(segment length) bits. Past this many the superaccumulator is as good.
constexpr std::size_t kMaxParts = 12;

using Part = std::vector<double>;  // one row, all columns

/// Moves the multiples of 2^lowest out of `rest` into `part`, cutting toward zero. Scaling by
/// powers of two, cutting and the difference are all exact.
void move_multiples(std::span<double> rest, double* part, int lowest) {
  const double up = std::ldexp(1.0, -lowest);
  const double down = std::ldexp(1.0, lowest);
  for (std::size_t k = 0; k < rest.size(); ++k) {
    part[k] = std::trunc(rest[k] * up) * down;
    rest[k] -= part[k];
  }
}

/// Spreads one segment of a row over as many parts as it needs. False if kMaxParts are not enough.
bool cut_segment(std::span<double> rest, Window window, int room, std::size_t first_col,
                 std::size_t cols, const simd::GemmKernels& kernels, std::vector<Part>& parts) {
  for (std::size_t p = 0; !window.empty; ++p) {
    if (p == kMaxParts) return false;
    if (p == parts.size()) parts.emplace_back(cols, 0.0);
    double* part = parts[p].data() + first_col;
    if (fits(window, room)) {
      std::copy(rest.begin(), rest.end(), part);
      return true;
    }
    move_multiples(rest, part, window.sum - room);
    window = window_of(rest, kernels);
  }
  return true;
}

}  // namespace

RowParts cut_rows(std::span<const MeasuredRow> rows, std::span<const std::int64_t> bounds, int room,
                  const simd::GemmKernels& kernels) {
  RowParts result;
  result.begin.push_back(0);
  const auto width = static_cast<std::size_t>(bounds.back());
  std::vector<Part> all;
  for (const MeasuredRow& row : rows) {
    Part values(row.values.begin(), row.values.end());
    std::vector<Part> parts(1, Part(width, 0.0));
    bool possible = true;
    for (std::size_t s = 0; s < row.windows.size() && possible; ++s) {
      const auto from = static_cast<std::size_t>(bounds[s]);
      const auto to = static_cast<std::size_t>(bounds[s + 1]);
      const std::span<double> rest = std::span(values).subspan(from, to - from);
      possible = cut_segment(rest, row.windows[s], room, from, width, kernels, parts);
    }
    if (!possible) parts.assign(1, Part(row.values.begin(), row.values.end()));
    result.possible.push_back(possible ? 1 : 0);
    result.begin.push_back(result.begin.back() + std::ssize(parts));
    std::move(parts.begin(), parts.end(), std::back_inserter(all));
  }
  result.values =
      PackedRows(std::ssize(all), bounds.back(), static_cast<std::int64_t>(kernels.row_block));
  for (std::size_t part = 0; part < all.size(); ++part) {
    result.values.put(static_cast<std::int64_t>(part), all[part]);
  }
  return result;
}

}  // namespace moeref
