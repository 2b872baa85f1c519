#pragma once

#include <cstdint>
#include <vector>

#include "quant/scaled_matrix.hpp"

namespace moeref::bench {

/// A matrix with storage of its own.
struct Operand {
  std::vector<std::byte> codes;
  std::vector<std::byte> scales;
  ScaledMatrix matrix;
};

/// Random weights as a checkpoint has them. Forms: "mxfp4", "nvfp4", "mxfp8", "fp8_channel",
/// "fp8_block", "bf16". Their size is that of layers: dot products with some thousand activations
/// N(0, 1) are about N(0, 1).
Operand random_weight(const char* form, std::int64_t rows, std::int64_t cols, std::uint64_t seed);

/// Activations N(0, 1): "bf16" or "f32" (f32 values have all 24 bits, as the stages of `reference`
/// do); "mxfp4": as a weight.
Operand random_activations(const char* form, std::int64_t rows, std::int64_t cols,
                           std::uint64_t seed);

/// Measured once per process, one thread: bytes per second of reading memory far larger than the
/// caches.
double read_bandwidth();
/// The same of writing (memset), the median.
double write_bandwidth();
/// Measured once per process, one thread: the best of some fma_flops of the instruction set in
/// use.
double peak_f64_flops();

/// The middle one; of an even number the lower. Not of none.
double median(std::vector<double> values);

/// main of a benchmark: CPU, instruction set and the limits above go into the context, then
/// `register_all` registers what BENCHMARK has not. --markdown prints tables. Exit code.
int run(int argc, char** argv, void (*register_all)());

}  // namespace moeref::bench
