#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "engine/exact/double_double.hpp"

// e^-a in double and in double-double for 0 <= a <= 300, with proved errors. Both write
// a = k ln2/64 + r, |r| < 0.00542 = 2^-7.52, and e^-a = 2^-(k div 64) 2^-((k mod 64)/64) e^-r.
// The tests check the constants against exact arithmetic.

namespace moeref::exact {

inline constexpr double kLargestExpArgument = 300.0;

inline constexpr double kStepsPerUnit = 0x1.71547652b82fep+6;  ///< 64 / ln 2
/// ln 2 / 64 in three parts. The first two have 38 bits, so that k times each is exact; what is
/// missing after the third is below 2^-130.
inline constexpr double kStep1 = 0x1.62e42fefa0000p-7;
inline constexpr double kStep2 = 0x1.cf79abc9e0000p-46;
inline constexpr double kStep3 = 0x1.d9cc01f97b57ap-85;
/// ln 2 / 64 - kStep1, rounded: what is missing is below 2^-96.
inline constexpr double kStepRest = 0x1.cf79abc9e3b3ap-46;

/// 2^(-j/64), each entry hi + lo.
inline constexpr std::array<DoubleDouble, 64> kExpTable{{
    {0x1p+0, 0x0.0p+0},
    {0x1.fa7c1819e90d8p-1, 0x1.74853f3a5931ep-56},
    {0x1.f50765b6e4540p-1, 0x1.9d3e12dd8a18bp-55},
    {0x1.efa1bee615a27p-1, 0x1.dc7f486a4b6b0p-55},
    {0x1.ea4afa2a490dap-1, -0x1.e9c23179c2893p-55},
    {0x1.e502ee78b3ff6p-1, 0x1.39e8980a9cc8fp-56},
    {0x1.dfc97337b9b5fp-1, -0x1.1a5cd4f184b5cp-55},
    {0x1.da9e603db3285p-1, 0x1.c2300696db532p-55},
    {0x1.d5818dcfba487p-1, 0x1.2ed02d75b3707p-56},
    {0x1.d072d4a07897cp-1, -0x1.cbc3743797a9cp-55},
    {0x1.cb720dcef9069p-1, 0x1.503cbd1e949dbp-57},
    {0x1.c67f12e57d14bp-1, 0x1.2884dff483cadp-55},
    {0x1.c199bdd85529cp-1, 0x1.11065895048ddp-56},
    {0x1.bcc1e904bc1d2p-1, 0x1.23dd07a2d9e84p-56},
    {0x1.b7f76f2fb5e47p-1, -0x1.5584f7e54ac3bp-57},
    {0x1.b33a2b84f15fbp-1, -0x1.2805e3084d708p-58},
    {0x1.ae89f995ad3adp-1, 0x1.7a1cd345dcc81p-55},
    {0x1.a9e6b5579fdbfp-1, 0x1.0fac90ef7fd31p-55},
    {0x1.a5503b23e255dp-1, -0x1.d2f6edb8d41e1p-55},
    {0x1.a0c667b5de565p-1, -0x1.359495d1cd533p-55},
    {0x1.9c49182a3f090p-1, 0x1.c7c46b071f2bep-57},
    {0x1.97d829fde4e50p-1, -0x1.d185b7c1b85d1p-55},
    {0x1.93737b0cdc5e5p-1, -0x1.75fc781b57ebcp-58},
    {0x1.8f1ae99157736p-1, 0x1.5cc13a2e3976cp-56},
    {0x1.8ace5422aa0dbp-1, 0x1.6e9f156864b27p-55},
    {0x1.868d99b4492edp-1, -0x1.fc6f89bd4f6bap-55},
    {0x1.82589994cce13p-1, -0x1.d4c1dd41532d8p-55},
    {0x1.7e2f336cf4e62p-1, 0x1.05d02ba15797ep-57},
    {0x1.7a11473eb0187p-1, -0x1.41577ee04992fp-56},
    {0x1.75feb564267c9p-1, -0x1.0245957316dd3p-55},
    {0x1.71f75e8ec5f74p-1, -0x1.16e4786887a99p-56},
    {0x1.6dfb23c651a2fp-1, -0x1.bbe3a683c88abp-58},
    {0x1.6a09e667f3bcdp-1, -0x1.bdd3413b26456p-55},
    {0x1.6623882552225p-1, -0x1.bb60987591c34p-55},
    {0x1.6247eb03a5585p-1, -0x1.383c17e40b497p-55},
    {0x1.5e76f15ad2148p-1, 0x1.ba6f93080e65ep-55},
    {0x1.5ab07dd485429p-1, 0x1.6324c054647adp-55},
    {0x1.56f4736b527dap-1, 0x1.9bb2c011d93adp-55},
    {0x1.5342b569d4f82p-1, -0x1.07abe1db13cadp-56},
    {0x1.4f9b2769d2ca7p-1, -0x1.4b309d25957e3p-55},
    {0x1.4bfdad5362a27p-1, 0x1.d4397afec42e2p-57},
    {0x1.486a2b5c13cd0p-1, 0x1.3c1a3b69062f0p-57},
    {0x1.44e086061892dp-1, 0x1.89b7a04ef80d0p-60},
    {0x1.4160a21f72e2ap-1, -0x1.ef3691c309278p-59},
    {0x1.3dea64c123422p-1, 0x1.ada0911f09ebcp-56},
    {0x1.3a7db34e59ff7p-1, -0x1.5e436d661f5e3p-57},
    {0x1.371a7373aa9cbp-1, -0x1.63aeabf42eae2p-55},
    {0x1.33c08b26416ffp-1, 0x1.32721843659a6p-55},
    {0x1.306fe0a31b715p-1, 0x1.6f46ad23182e4p-56},
    {0x1.2d285a6e4030bp-1, 0x1.0024754db41d5p-55},
    {0x1.29e9df51fdee1p-1, 0x1.612e8afad1255p-56},
    {0x1.26b4565e27cddp-1, 0x1.2bd339940e9d9p-56},
    {0x1.2387a6e756238p-1, 0x1.9b07eb6c70573p-55},
    {0x1.2063b88628cd6p-1, 0x1.dc775814a8495p-56},
    {0x1.1d4873168b9aap-1, 0x1.e016e00a2643cp-55},
    {0x1.1a35beb6fcb75p-1, 0x1.e5b4c7b4968e4p-56},
    {0x1.172b83c7d517bp-1, -0x1.19041b9d78a76p-56},
    {0x1.1429aaea92de0p-1, -0x1.32fbf9af1369ep-55},
    {0x1.11301d0125b51p-1, -0x1.6c51039449b3ap-55},
    {0x1.0e3ec32d3d1a2p-1, 0x1.03a1727c57b53p-60},
    {0x1.0b5586cf9890fp-1, 0x1.8a62e4adc610bp-55},
    {0x1.0874518759bc8p-1, 0x1.186be4bb284ffp-58},
    {0x1.059b0d3158574p-1, 0x1.d73e2a475b465p-56},
    {0x1.02c9a3e778061p-1, -0x1.19083535b085dp-57},
}};

/// 1 / n! for n = 2 ... 12.
inline constexpr std::array<DoubleDouble, 11> kInverseFactorials{{
    {0x1p-1, 0x0.0p+0},
    {0x1.5555555555555p-3, 0x1.5555555555555p-57},
    {0x1.5555555555555p-5, 0x1.5555555555555p-59},
    {0x1.1111111111111p-7, 0x1.1111111111111p-63},
    {0x1.6c16c16c16c17p-10, -0x1.f49f49f49f49fp-65},
    {0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-73},
    {0x1.a01a01a01a01ap-16, 0x1.a01a01a01a01ap-76},
    {0x1.71de3a556c734p-19, -0x1.c154f8ddc6c00p-73},
    {0x1.27e4fb7789f5cp-22, 0x1.cbbc05b4fa99ap-76},
    {0x1.ae64567f544e4p-26, -0x1.c062e06d1f209p-80},
    {0x1.1eed8eff8d898p-29, -0x1.2aec959e14c06p-83},
}};

/// k, the multiple of ln2/64 nearest to a, and its two parts.
struct ExpSteps {
  double count;         ///< k <= 27701 < 2^15
  std::size_t entry;    ///< k mod 64
  double power_of_two;  ///< 2^-(k div 64), at least 2^-433
};

inline ExpSteps exp_steps(double a) {
  constexpr double kIntegers = 0x1.8p52;  // adding it leaves an integer in the low bits
  const double shifted = a * kStepsPerUnit + kIntegers;
  const std::uint64_t k = std::bit_cast<std::uint64_t>(shifted) & 0xFFFFFFFF;
  return {shifted - kIntegers, k % 64, std::bit_cast<double>((1023 - k / 64) << 52)};
}

/// e^-a, relative error at most 2.2 u, u = 2^-53.
///
/// t = -r is off by less than 2^-59.9: k kStep1 is exact, and each of the two subtractions rounds a
/// number below 2^-7. The polynomial leaves out t^7 / 5040 < 2^-65; p is below 0.0055 and rounded
/// to about 3 u p: all in all e^t - 1 is within 2^-58. The table entry and the last sum give u
/// each, the product T p another 0.0055 u.
inline double exp_minus(double a) {
  const ExpSteps steps = exp_steps(a);
  const double t = steps.count * kStepRest - (a - steps.count * kStep1);
  const double square = t * t;
  const double tail = (1.0 / 6 + t * (1.0 / 24)) + square * (1.0 / 120 + t * (1.0 / 720));
  const double p = t + square * (0.5 + t * tail);
  const double table = kExpTable[steps.entry].hi;
  return (table + table * p) * steps.power_of_two;
}

/// e^-a, relative error at most 10 u^2 = 2^-102.6, for a exact or with its own error beside it.
///
/// Reduction: the first difference is exact, then three sums of numbers below 2^-7 with 2 u^2 each
/// and k kStep3 rounded at 2^-120: t within 2^-111. The series leaves out t^13 / 13! < 2^-130; in
/// Horner's scheme all errors but those of the last step are multiplied by |t|: 3 u^2 for the last
/// sum and 0.1 u^2 for the rest. The table has u^2, the last product 5 u^2.
inline DoubleDouble exp_minus(DoubleDouble a) {
  const ExpSteps steps = exp_steps(a.hi);
  DoubleDouble r = two_sum(a.hi, -(steps.count * kStep1));
  r = add(r, -(steps.count * kStep2));
  r = add(r, a.lo);
  r = add(r, -(steps.count * kStep3));
  const DoubleDouble t{-r.hi, -r.lo};
  DoubleDouble sum = kInverseFactorials.back();
  for (std::size_t i = kInverseFactorials.size() - 1; i-- > 0;) {
    sum = add(multiply(t, sum), kInverseFactorials[i]);
  }
  sum = add(multiply(t, sum), 1.0);
  sum = add(multiply(t, sum), 1.0);
  const DoubleDouble value = multiply(sum, kExpTable[steps.entry]);
  return {value.hi * steps.power_of_two, value.lo * steps.power_of_two};
}

}  // namespace moeref::exact
