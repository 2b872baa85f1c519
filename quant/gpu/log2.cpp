#include "quant/gpu/log2.hpp"

#include <cmath>
#include <cstdlib>

namespace moeref::gpu {
namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr int kF32Bits = 24;
constexpr int kBf16Bits = 8;

/// log2 of half a unit in the last place, in a format of `bits` significand bits, of the numbers
/// between k != 0 and its neighbour: beyond k (`away` from 0) or before it.
int half_unit(int k, bool away, int bits) {
  const int magnitude = std::abs(k);
  int binade = std::ilogb(static_cast<double>(magnitude));
  if (!away && magnitude == 1 << binade) --binade;
  return binade - bits;
}

/// The largest relative distance from 2^k at which log2f still gives k. No f32 lies so near to this
/// boundary that the logarithm's terms beyond the first, or the rounding here, matter.
double reach(int k, bool away) {
  if (k == 0) return 0.0;  // around 0 the units have no end
  return std::ldexp(kLn2, half_unit(k, away, kF32Bits));
}

/// x = fraction * 2^exponent, fraction in [1, 2).
struct Parts {
  double fraction;
  int exponent;
};

Parts parts(float x) {
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(x), &exponent);
  return {2.0 * fraction, exponent - 1};
}

}  // namespace

int ceil_log2(float x) {
  const auto [fraction, exponent] = parts(x);
  return fraction - 1.0 <= reach(exponent, exponent > 0) ? exponent : exponent + 1;
}

int floor_log2(float x) {
  const auto [fraction, exponent] = parts(x);
  const int above = exponent + 1;
  return 1.0 - 0.5 * fraction <= reach(above, above < 0) ? above : exponent;
}

int ceil_log2_bf16(float x) {
  const auto [fraction, exponent] = parts(x);
  if (fraction == 1.0) return exponent;
  if (exponent == 0) return 1;
  // fraction <= 2^h, h = half a unit = 2^-m: fraction^(2^m) <= 2.
  double power = fraction;
  for (int m = half_unit(exponent, exponent > 0, kBf16Bits); m < 0 && power <= 2.0; ++m) {
    power *= power;
  }
  return power <= 2.0 ? exponent : exponent + 1;
}

}  // namespace moeref::gpu
