#pragma once

#include <array>
#include <cstdint>

#include "engine/exact/dyadic.hpp"

namespace moeref::exact {

/// A fixed-point sum as wide as the double range: adds any number of finite doubles without
/// rounding. For rows whose values lie so far apart that no split of the activations makes f64 sums
/// exact.
class Superaccumulator {
 public:
  void add(double value);
  Dyadic total() const;

 private:
  // Limb i counts multiples of 2^(32 i - 1088); up to 2^31 additions of 32-bit digits fit before
  // carries must move.
  static constexpr int kLowest = -1088;
  static constexpr int kLimbs = (1024 + 1088) / 32 + 2;
  void carry();
  std::array<std::int64_t, kLimbs> limbs_{};
  std::int64_t additions_ = 0;
};

}  // namespace moeref::exact
