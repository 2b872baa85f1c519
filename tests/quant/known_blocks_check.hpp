#pragma once

#include <cstdint>
#include <vector>

#include "tests/quant/quantizer_cases.hpp"

namespace moeref {

/// The quantizers whose blocks are known by their amax.
std::vector<QuantizerCase> known_block_cases();

/// Holds rows of known blocks against the coder one number at a time, for every `stride`th amax of
/// 16 bits, on every instruction set.
void check_known_blocks(const QuantizerCase& chosen, std::uint32_t stride);

}  // namespace moeref
