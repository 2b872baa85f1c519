#pragma once

#include <cstdint>

#include "quant/dtype.hpp"

namespace moeref::exact {

/// hi + lo rounded to a double by round-to-odd: itself if it is one, else the neighbour whose last
/// bit is set. hi + lo must be normalised (hi = RN(hi + lo)), both finite.
/// See `Dyadic::to_double_odd` for why a second rounding of the result is the only one.
double round_to_odd(double hi, double lo);

/// Rounds once, to nearest even, to the value of an output format and widens it to f32 again. `odd`
/// comes from a round-to-odd or is exact. Overflow gives infinity, NaN the canonical NaN. Zero
/// keeps its sign bit, and a value that underflows to zero its sign; callers that hold an exact
/// zero pass +0. Formats: f32, bf16, f16; std::invalid_argument for any other.
float round_to(Format format, double odd);

/// The one NaN that moeref computes: 0x7FC00000.
float canonical_nan();

}  // namespace moeref::exact
