#include "engine/exact/exact_dot.hpp"

#include <algorithm>
#include <array>

namespace moeref::exact {
namespace {

/// high + low, and whether an addition dropped anything.
struct Sum {
  double high = 0.0;
  double low = 0.0;
  double dropped = 0.0;  ///< NaN or not zero: something

  void add(double term) {
    const DoubleDouble first = two_sum(high, term);
    high = first.hi;
    const DoubleDouble second = two_sum(low, first.lo);
    low = second.hi;
    dropped = second.lo == 0.0 ? dropped : 1.0;
  }
};

}  // namespace

std::optional<DoubleDouble> exact_dot(std::span<const double> x, std::span<const double> y) {
  // Sums that do not wait for each other.
  constexpr std::size_t kSums = 8;
  std::array<Sum, kSums> sums;
  std::size_t i = 0;
  for (; i + kSums <= x.size(); i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j) sums[j].add(x[i + j] * y[i + j]);
  }
  for (std::size_t j = 0; i < x.size(); ++i, ++j) sums[j].add(x[i] * y[i]);
  Sum total;
  for (const Sum& sum : sums) {
    total.add(sum.high);
    total.add(sum.low);
    total.dropped = std::max(total.dropped, sum.dropped);
  }
  if (total.dropped != 0.0) return std::nullopt;
  return two_sum(total.high, total.low);
}

}  // namespace moeref::exact
