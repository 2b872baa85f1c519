#pragma once

#include <string_view>

namespace moeref::bench {

/// f64 multiply-adds per second, times two, of one thread: chains in registers that depend on
/// nothing else, in the vectors of instruction set `isa`. Measured anew at each call.
double fma_flops(std::string_view isa);

}  // namespace moeref::bench
