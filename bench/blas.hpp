#pragma once

#include <cstdint>
#include <string>

namespace moeref::bench {

/// Whether this build has OpenBLAS to compare with.
bool has_blas();
/// The kernels that it chose for this CPU, "SkylakeX".
std::string blas_core();

/// Starts the program again under the fastest kernels that OpenBLAS has for this CPU, which it does
/// not choose by itself on every one; does nothing the second time.
void choose_blas_core(char** argv);

/// Seconds of one sgemm of ready f32 weights [columns, depth] with `rows` activations, each time
/// with other weights of more than the caches hold together.
double sgemm_seconds(std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads);

/// Waits until its threads have stopped looking for work, which they do for some milliseconds on
/// the cores that others need.
void let_blas_sleep();

}  // namespace moeref::bench
