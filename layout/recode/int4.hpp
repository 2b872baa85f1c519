#pragma once

#include "layout/step.hpp"

namespace moeref::recode {

/// One int4 value a byte, -8 .. 7 in two's complement, to 4-bit codes: the low nibble. Other values
/// lose their upper bits, and undo, which extends the sign, does not give them back.
/// Source: aiter@e4048607a5 aiter/ops/shuffle.py pack_int8_to_packed_int4
Recode int8_to_int4();

}  // namespace moeref::recode
