#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

// Running error analysis: every number carries how far another evaluation of the same formula may
// be from it. Nothing here shares code with the exact engine, so the two can judge each other.

namespace moeref::bounds {

/// The arithmetic of the evaluation that is judged.
enum class Precision : std::uint8_t { f32, f64 };

/// How one arithmetic rounds. Every field is an upper bound.
struct RoundingModel {
  int significant_bits;  ///< 24 or 53
  double unit;           ///< relative error of one operation: 2^-24 or 2^-53
  double tiny;  ///< absolute error of an operation whose result underflows: the smallest subnormal
  double function_error;  ///< relative error of exp, log1p, tanh, erf: 4 ulp are at most 8 units
  double largest;         ///< largest finite number
  bool single_functions;  ///< sigmoid, softplus, ... are rounded once as a whole, not operation by
                          ///< operation

  /// Error of one rounded operation whose exact result is at most `magnitude`; infinite if it may
  /// overflow.
  double round(double magnitude) const {
    if (magnitude >= largest) return std::numeric_limits<double>::infinity();
    return magnitude * unit + tiny;
  }
  /// Error of one library function whose exact result is at most `magnitude`.
  double round_library(double magnitude) const {
    if (magnitude >= largest) return std::numeric_limits<double>::infinity();
    return magnitude * function_error + 4.0 * tiny;
  }
  /// Whether this arithmetic has a number for `value`, so that an operation with this exact result
  /// does not round.
  bool holds(double value) const;
  /// Relative error of a product of `n` factors (1 + d), |d| <= unit: n * unit / (1 - n * unit).
  /// Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, lemma 3.1.
  double gamma(double n) const { return n * unit / (1.0 - n * unit); }
};

/// The two arithmetics of a comparison: the one of the stored value, and the one in which this
/// folder computes.
struct Arithmetic {
  RoundingModel stored;
  RoundingModel own;
  bool compensated;  ///< own sums are carried in twice the precision: needed where `stored` is as
                     ///< good as double
};

const Arithmetic& arithmetic(Precision precision);

/// A number as computed here, unrounded between stages, and how far from the exact value of the
/// formula (a) the stored and (b) this computed value may be.
struct Bounded {
  double value = 0.0;
  double stored = 0.0;
  double own = 0.0;

  /// Bound of |stored value - value|, with half an ulp of double for the delivery of `value`.
  double total() const;
};

/// One of the two errors of a Bounded.
using Channel = double Bounded::*;

/// Room for the roundings of the bound arithmetic itself: sums of up to 2^20 terms in double stay
/// below 2^-32 relative.
inline double outward(double error) {
  const double widened = error * (1.0 + 0x1p-30);
  return std::isnan(widened) ? std::numeric_limits<double>::infinity() : widened;
}

/// Applies one error rule, `rule(model, channel)`, to both arithmetics.
template <typename Rule>
Bounded with_errors(double value, const Arithmetic& arithmetic, const Rule& rule) {
  return {value, outward(rule(arithmetic.stored, &Bounded::stored)),
          outward(rule(arithmetic.own, &Bounded::own))};
}

/// exp(distance) from above.
inline double growth(double distance) {
  return distance <= 0.5 ? 1.0 + 1.5 * distance : std::numeric_limits<double>::infinity();
}

/// A number that every evaluation has exactly.
inline Bounded exact(double value) { return {value, 0.0, 0.0}; }

/// A constant of a model's source or configuration, kept as f32 here: the decimal that an f32
/// spells (1.702f means 1.702). Evaluations in double have the double nearest to that decimal,
/// evaluations in f32 the f32.
Bounded constant(const Arithmetic& arithmetic, float spelled);

/// A double of a script, as it stands. Evaluations in f32 have the f32 nearest to it.
Bounded script_constant(const Arithmetic& arithmetic, double value);

Bounded add(const Arithmetic& arithmetic, const Bounded& x, const Bounded& y);
Bounded multiply(const Arithmetic& arithmetic, const Bounded& x, const Bounded& y);
/// x * factor for a factor that every evaluation has exactly. Unlike `multiply` it knows of
/// products that fit: those of an exact x round only where the arithmetic does not hold the result.
Bounded scale(const Arithmetic& arithmetic, const Bounded& x, double factor);
/// The sum of the terms in any order. Terms that are certainly 0 do not count.
Bounded sum(const Arithmetic& arithmetic, std::span<const Bounded> terms);
/// min(x, limit) and max(x, limit): selections, never rounded.
Bounded at_most(const Bounded& x, const Bounded& limit);
Bounded at_least(const Bounded& x, const Bounded& limit);
inline Bounded negate(const Bounded& x) { return {-x.value, x.stored, x.own}; }

}  // namespace moeref::bounds
