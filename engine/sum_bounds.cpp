#include "engine/sum_bounds.hpp"

#include <cmath>

#include "engine/operand.hpp"

namespace moeref {
namespace {

constexpr double kRoundedUp = 1.0 + 0x1p-30;

}  // namespace

double sum_bound(std::int64_t additions) {
  return static_cast<double>(additions) * 0x1p-53 * kRoundedUp;
}

double fold_bound(std::int64_t count, double total, int lowest) {
  if (total == 0.0) return 0.0;
  constexpr int kSmallestProduct = -960;
  if (lowest < kSmallestProduct || !std::isfinite(total)) return HUGE_VAL;
  const auto terms = static_cast<double>(count + 1);
  if (exponent_above(total * terms) - lowest <= 106) return 0.0;
  return 2.0 * terms * terms * total * 0x1p-106 * kRoundedUp;
}

}  // namespace moeref
